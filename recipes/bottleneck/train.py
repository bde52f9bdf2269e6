"""Train one decoder, or the whole grid of them, and score each by the length of what was said.

python recipes/bottleneck/train.py decoder=cho training.seed=2 output=runs/cho
python recipes/bottleneck/train.py experiment=bottleneck -m           # 4 decoders, with and without CTC, 3 seeds
python recipes/bottleneck/train.py experiment=bottleneck_quick -m     # 1 seed, few steps

The same command in another terminal takes its share of the grid. Runs that are finished or at work elsewhere are
skipped, those that were stopped go on.
"""

import hydra
from omegaconf import DictConfig

from asr.training.recipe import run_training


@hydra.main(version_base="1.3", config_path="../../conf", config_name="train_bottleneck")
def main(config: DictConfig) -> None:
    run_training(config, trainer="_run")  # beside this file


if __name__ == "__main__":
    main()
