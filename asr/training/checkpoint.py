"""Checkpoints that survive a power cut, averaged weights, and what a run wrote last."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

__all__ = ["DurableCheckpointIO", "ExponentialAverage", "latest_checkpoint"]

log = logging.getLogger(__name__)


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes under a temporary name, flushes to the disk, then renames: a checkpoint is whole or not there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


class ExponentialAverage(WeightAveraging):
    """Exponential moving average of the weights, used for validation and kept in every checkpoint.

    The decay grows from 0 towards `decay`, so that the average forgets the first, random weights at once.
    """

    def __init__(self, decay: float) -> None:
        def update(average: list[Tensor], current: list[Tensor], count: int | Tensor) -> None:
            weight = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
            torch._foreach_lerp_(average, current, weight)

        super().__init__(multi_avg_fn=update)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint under `folder` that can be read; damaged ones are skipped with a warning."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            log.warning("%s is damaged and skipped (%s)", path, " ".join(str(error).split())[:120])
            continue
        return path
    return None
