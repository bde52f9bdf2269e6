r"""Train a word LSTM beside the n-gram model that ngram.py wrote, and write both as one language model.

python recipes/language_model/word_lstm.py text=data/text ngram=runs/ngram/model output=runs/word_lstm
python recipes/language_model/word_lstm.py trainer.max_minutes=100     # within a time, whatever the machine reads in it
torchrun --nproc-per-node=2 recipes/language_model/word_lstm.py        # several GPUs, or processes on CPUs
python recipes/language_model/word_lstm.py text=data/minutes ngram=asr/assets/mini init_from=asr/assets/mini \
    model.layers=2 model.rare=20000 output=runs/minutes                # on from the one that ships

A run that was stopped, for whatever reason, goes on when the same command is given again.
Every setting, with what it means: conf/word_lstm.yaml.
"""

import hydra
from omegaconf import DictConfig

from asr.training.recipe import run_training


@hydra.main(version_base="1.3", config_path="../../conf", config_name="word_lstm")
def main(config: DictConfig) -> None:
    run_training(config, "asr.training.word_lstm")


if __name__ == "__main__":
    main()
