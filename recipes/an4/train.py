"""Train on prepared AN4 manifests: minutes on a laptop.

python recipes/an4/train.py corpus.manifests=data/an4 output=runs/an4

A run that was stopped, for whatever reason, goes on when the same command is given again.
"""

import hydra
from omegaconf import DictConfig

from asr.training.recipe import run_training


@hydra.main(version_base="1.3", config_path="../../conf", config_name="train_an4")
def main(config: DictConfig) -> None:
    run_training(config)


if __name__ == "__main__":
    main()
