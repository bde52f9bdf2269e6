"""Train on prepared LibriSpeech manifests.

python recipes/librispeech/train.py experiment=small corpus.manifests=data/mini corpus.train=[train-clean-5] \
    corpus.dev=[dev-clean-2] output=runs/mini

A run that was stopped, for whatever reason, goes on when the same command is given again.
"""

import logging

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from asr._exit import friendly_errors


@hydra.main(version_base="1.3", config_path="../../conf", config_name="train")
@friendly_errors
def main(config: DictConfig) -> None:
    from asr.training.run import train

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    train(OmegaConf.to_container(config, resolve=True))


if __name__ == "__main__":
    main()
