"""Decode prepared AN4 with a trained model, and score it.

python recipes/an4/decode.py model_dir=runs/an4/model corpus.manifests=data/an4 output=runs/an4/an4-test

Writes ref.trn, hyp.trn, wer.txt, wer.json and nbest.jsonl into the output folder.
"""

import hydra
from omegaconf import DictConfig

from asr.training.recipe import run_decoding


@hydra.main(version_base="1.3", config_path="../../conf", config_name="decode_an4")
def main(config: DictConfig) -> None:
    run_decoding(config)


if __name__ == "__main__":
    main()
