"""Decode a prepared subset with a trained model, and score it.

python recipes/librispeech/decode.py model_dir=runs/mini/model corpus.manifests=data/mini corpus.decode=[dev-clean-2] \
    decoding=greedy output=runs/mini/dev-clean-2

Writes ref.trn, hyp.trn, wer.txt, wer.json and nbest.jsonl into the output folder.
"""

import hydra
from omegaconf import DictConfig

from asr.training.recipe import run_decoding


@hydra.main(version_base="1.3", config_path="../../conf", config_name="decode")
def main(config: DictConfig) -> None:
    run_decoding(config)


if __name__ == "__main__":
    main()
