"""From a recipe's Hydra configuration to the library: what all `train.py` and `decode.py` share."""

from __future__ import annotations

import logging
import sys
import warnings
from importlib import import_module
from typing import Any

from asr._exit import friendly_errors
from asr.training.settings import use_threads

__all__ = ["run_decoding", "run_training"]


def _prepare(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for name, part in (("threads", settings), ("trainer.threads", settings.get("trainer") or {})):
        use_threads(part.get("threads"), name)
    # Libraries' notes to their own developers, of no use to somebody who trains a model.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*eagerly read CutSet.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    return settings


@friendly_errors
def run_training(config: Any, trainer: str = "asr.training.run") -> None:
    """Call `train` of a module, which is imported only once Hydra has found nothing wrong."""
    settings = _prepare(config)
    from asr.training.checkpoint import TrainingInterrupted

    train = import_module(trainer).train
    for part in ("lightning.pytorch", "lightning.fabric"):  # notes, each of them twice, on devices there are not
        logging.getLogger(part).setLevel(logging.WARNING)
    try:
        train(settings)
    except TrainingInterrupted as stop:
        if str(stop):
            print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)


@friendly_errors
def run_decoding(config: Any) -> None:
    settings = _prepare(config)
    from asr.training.evaluate import decode

    decode(settings)
