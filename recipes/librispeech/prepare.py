"""LibriSpeech (or a folder laid out like it) -> lhotse manifests.

python recipes/librispeech/prepare.py corpus.root=data corpus.subsets=[train-clean-5,dev-clean-2] output=data/mini
python recipes/librispeech/prepare.py corpus.download=true     # mini LibriSpeech from openslr.org, 0.5 GB
"""

import hydra
from omegaconf import DictConfig, OmegaConf

from asr._exit import friendly_errors
from asr.corpus import librispeech


@hydra.main(version_base="1.3", config_path="../../conf", config_name="prepare")
@friendly_errors
def main(config: DictConfig) -> None:
    corpus = OmegaConf.to_container(config.corpus, resolve=True)
    scans = librispeech.prepare(
        corpus["root"],
        corpus["subsets"],
        config.output,
        check=corpus["check"],
        eval_subsets=corpus["eval_subsets"],
        fetch_missing=corpus["download"],
        base_url=corpus["base_url"],
        keep_archives=corpus["keep_archives"],
    )
    librispeech.print_summary(scans, config.output)


if __name__ == "__main__":
    main()
