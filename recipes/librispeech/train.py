"""Train on prepared LibriSpeech manifests.

python recipes/librispeech/train.py experiment=small corpus.manifests=data/mini corpus.train=[train-clean-5] \
    corpus.dev=[dev-clean-2] output=runs/mini

A run that was stopped, for whatever reason, goes on when the same command is given again.
"""

import hydra
from omegaconf import DictConfig

from asr.training.recipe import run_training


@hydra.main(version_base="1.3", config_path="../../conf", config_name="train")
def main(config: DictConfig) -> None:
    run_training(config)


if __name__ == "__main__":
    main()
