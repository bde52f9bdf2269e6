"""A training subset in rooms, in noise, over the telephone -> another subset for recipes/librispeech/prepare.py.

python recipes/synthetic/augment.py root=data subset=train-clean-5 noises=data/noise output=data/augmented
python recipes/librispeech/prepare.py corpus.root=data/augmented output=data/augmented \
    "corpus.subsets=[train-clean-5-augmented]"

Every setting, with what it means: conf/augment.yaml. The same command goes on where it stopped.
"""

import hydra
from omegaconf import DictConfig, OmegaConf

from asr._exit import friendly_errors
from asr.config import from_mapping
from asr.corpus.augment import AugmentConfig, augment_subset


@hydra.main(version_base="1.3", config_path="../../conf", config_name="augment")
@friendly_errors
def main(config: DictConfig) -> None:
    settings = OmegaConf.to_container(config, resolve=True)
    where = {name: settings.pop(name) for name in ("root", "subset", "noises", "output", "processes")}
    folder = augment_subset(**where, config=from_mapping(AugmentConfig, settings))
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
