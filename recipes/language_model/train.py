"""Train a character language model on the text that prepare.py wrote.

python recipes/language_model/train.py text=data/text output=runs/language_model
python recipes/language_model/train.py trainer.max_minutes=100     # within a time, whatever the machine reads in it
torchrun --nproc-per-node=2 recipes/language_model/train.py        # several GPUs, or processes on CPUs

A run that was stopped, for whatever reason, goes on when the same command is given again.
Every setting, with what it means: conf/language_model.yaml.
"""

import hydra
from omegaconf import DictConfig

from asr.training.recipe import run_training


@hydra.main(version_base="1.3", config_path="../../conf", config_name="language_model")
def main(config: DictConfig) -> None:
    run_training(config, "asr.training.language_model")


if __name__ == "__main__":
    main()
