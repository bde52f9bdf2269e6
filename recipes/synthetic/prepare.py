"""Sentences read aloud by pseudo-speakers -> a subset for recipes/librispeech/prepare.py.

python recipes/synthetic/prepare.py text=data/text hours=30 output=data/synthetic
python recipes/librispeech/prepare.py corpus.root=data/synthetic corpus.subsets=[synthetic] output=data/synthetic

Every setting, with what it means: conf/synthetic.yaml. The same command goes on where it stopped.
"""

import hydra
from omegaconf import DictConfig, OmegaConf

from asr._exit import friendly_errors
from asr.config import from_mapping
from asr.corpus.synthetic import SyntheticConfig, synthesize


@hydra.main(version_base="1.3", config_path="../../conf", config_name="synthetic")
@friendly_errors
def main(config: DictConfig) -> None:
    settings = OmegaConf.to_container(config, resolve=True)
    where = {name: settings.pop(name) for name in ("text", "output", "hours", "subset", "processes")}
    folder = synthesize(**where, config=from_mapping(SyntheticConfig, settings))
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
