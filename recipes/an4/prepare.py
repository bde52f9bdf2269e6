"""CMU AN4 -> lhotse manifests of an4-train, an4-dev and an4-test.

python recipes/an4/prepare.py corpus.root=data output=data/an4
python recipes/an4/prepare.py corpus.download=true     # from CMU, 64 MB
"""

import hydra
from omegaconf import DictConfig, OmegaConf

from asr._exit import friendly_errors
from asr.corpus import an4, librispeech


@hydra.main(version_base="1.3", config_path="../../conf", config_name="prepare_an4")
@friendly_errors
def main(config: DictConfig) -> None:
    corpus = OmegaConf.to_container(config.corpus, resolve=True)
    scans = an4.prepare(
        corpus["root"],
        config.output,
        dev_utterances=corpus["dev_utterances"],
        augmented=corpus["augmented"],
        spliced=corpus["spliced"],
        check=corpus["check"],
        fetch_missing=corpus["download"],
        url=corpus["url"],
    )
    librispeech.print_summary(scans, config.output)


if __name__ == "__main__":
    main()
