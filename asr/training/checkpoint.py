"""Checkpoints that survive a power cut and a full disk, stopping on a signal, averaged weights."""

from __future__ import annotations

import copy
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from asr.bundle import read_weights
from asr.errors import AsrError, ModelError
from asr.training.module import LasModule

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer

__all__ = [
    "BestCheckpoint",
    "DurableCheckpointIO",
    "ExponentialAverage",
    "JointEarlyStopping",
    "SafeCheckpoint",
    "StopOnSignal",
    "TrainingInterrupted",
    "average_checkpoints",
    "latest_checkpoint",
    "load_checkpoint",
]

log = logging.getLogger(__name__)

_LAYER = re.compile(r"model\.encoder\.(?:layers|norms)\.(\d+)\.")


# ---- writing ---------------------------------------------------------------------------------------------------------


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes under a temporary name, flushes to the disk, then renames: a checkpoint is whole or not there.

    A write that fails raises nothing, or one process would leave while the others wait for it; `failure` says what
    happened, and `SafeCheckpoint` draws the consequences in all of them.
    """

    failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        self.failure = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, RuntimeError) as error:  # RuntimeError: torch's zip writer, when it cannot end its file
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            partial.unlink(missing_ok=True)
            self.failure = cause.strerror or str(cause)


class _NotWrittenError(Exception):
    """Inside `SafeCheckpoint` only."""


class SafeCheckpoint(ModelCheckpoint):
    """A checkpoint that could not be written has not happened.

    The one before stays, training goes on, and the next try comes in its time.
    """

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        before = self._last_global_step_saved, self._last_checkpoint_saved
        super()._save_checkpoint(trainer, filepath)
        # Only the first process writes; all must agree on what there is.
        failure = trainer.strategy.broadcast(getattr(trainer.strategy.checkpoint_io, "failure", None))
        if failure:
            self._last_global_step_saved, self._last_checkpoint_saved = before
            raise _NotWrittenError(f"{filepath}: NOT written ({failure})")

    def _update_best_and_save(self, current: Tensor, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        before = copy.copy(self.state_dict()) | {"best_k_models": dict(self.best_k_models)}
        try:
            super()._update_best_and_save(current, trainer, monitor_candidates)
        except _NotWrittenError as error:
            for name, value in before.items():
                setattr(self, name, value)
            if trainer.is_global_zero:
                log.error("%s; training goes on, but a crash would lose what came since the one before", error)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of the checkpoints that the state knows, those that are (still, or after a move) in this run's folder."""
        folder = Path(self.dirpath or "")
        found = {str(folder / Path(p).name): score for p, score in state_dict["best_k_models"].items()}
        ranked = sorted((p for p in found if Path(p).is_file()), key=found.__getitem__, reverse=self.mode == "max")
        kept = ranked[: self.save_top_k]
        worst = kept[-1] if len(kept) == self.save_top_k else ""
        super().load_state_dict(
            state_dict
            | {
                "dirpath": self.dirpath,
                "best_k_models": {p: found[p] for p in kept},
                "best_model_path": kept[0] if kept else "",
                "best_model_score": found[kept[0]] if kept else None,
                "kth_best_model_path": worst,
                "kth_value": found[worst] if worst else self.kth_value,
            }
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Between the batches of one step, the gradients so far would be lost; and after an epoch's last batch a resumed
        # run would take the epoch for over, validation and all. It is saved once that is done.
        if steps_now(trainer, batch_idx) and not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def save_now(self, trainer: Trainer) -> Path | None:
        """Save if that has not been done since the last step; the file, or None where it cannot be written."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        return Path(self.best_model_path) if self._last_global_step_saved == trainer.global_step else None


def steps_now(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimiser has made its step with this batch, or gathers more of them first."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


class BestCheckpoint(SafeCheckpoint):
    """The checkpoints with the best dev WER.

    While CTC alone is trained, dev WER is CTC's; a checkpoint of that time has a speller that has learned nothing and
    would be useless however good its WER. So where the search behind dev WER changes, the choice begins anew.
    """

    search: str | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LasModule)
        old: list[str] = []
        if self.search != pl_module.search and not trainer.sanity_checking:
            old = list(self.best_k_models)
            self.best_k_models, self.kth_best_model_path, self.best_model_path = {}, "", ""
            self.search = pl_module.search
        super().on_validation_end(trainer, pl_module)
        for path in old:
            if self.best_k_models and path not in self.best_k_models:
                self._remove_checkpoint(trainer, path)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"search": self.search}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.search = state_dict.get("search")


class JointEarlyStopping(EarlyStopping):
    """Does not count while CTC alone is trained, for its WER stands still long before training is over."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LasModule)
        if pl_module.search != "ctc" or pl_module.settings.ctc_weight == 1:
            super().on_validation_end(trainer, pl_module)


# ---- stopping --------------------------------------------------------------------------------------------------------


class TrainingInterrupted(AsrError):
    """Ctrl-C or SIGTERM; everything is saved. The message is empty in all processes but the first."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopOnSignal(Callback):
    """SIGINT (Ctrl-C) and SIGTERM (kill, Slurm, a container that ends): finish the step, save, stop.

    A signal during validation takes effect in the first step after it. The same signal once more, some seconds later,
    ends the process at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    AGAIN = 3.0  # s; within this torchrun and a terminal may both have passed on one Ctrl-C
    ASK_EVERY = 10  # steps between two questions to the other processes, each of which costs a round of messages

    def __init__(self, checkpoint: SafeCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.received = 0
        self.since = 0.0
        self._before: dict[int, Any] = {}

    def _receive(self, number: int, _: FrameType | None) -> None:
        if not self.received:
            self.received, self.since = number, time.monotonic()
            log.warning("%s: stopping after this step; once more to stop at once", signal.Signals(number).name)
        elif time.monotonic() - self.since > self.AGAIN:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in self.SIGNALS}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # At the end of an epoch validation and the epoch's own checkpoint come first.
        if trainer.is_last_batch or not steps_now(trainer, batch_idx):
            return
        received = self.received
        if trainer.world_size > 1:
            if trainer.global_step % self.ASK_EVERY:
                return
            tensor = torch.tensor(received, device=pl_module.device)
            received = int(trainer.strategy.reduce(tensor, reduce_op="max"))
        if not received:
            return
        path = self.checkpoint.save_now(trainer)
        saved = f"saved {path}; the same command goes on" if path else "could not save; see above"
        message = f"stopped at step {trainer.global_step}, {saved}" if trainer.is_global_zero else ""
        raise TrainingInterrupted(message, received)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()


# ---- averaging -------------------------------------------------------------------------------------------------------


class ExponentialAverage(WeightAveraging):
    """Exponential moving average of the weights, used for validation and kept in every checkpoint.

    The decay grows from 0 towards `decay`, so that the average forgets the first, random weights at once.
    """

    def __init__(self, decay: float) -> None:
        def update(average: list[Tensor], current: list[Tensor], count: int | Tensor) -> None:
            weight = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
            torch._foreach_lerp_(average, current, weight)

        super().__init__(multi_avg_fn=update)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device  # the model is not there yet, and the average would stay behind
        super().setup(trainer, pl_module, stage)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None


def average_checkpoints(paths: Sequence[Path]) -> dict[str, Any]:
    """The first checkpoint, with the mean of all their weights (Vaswani et al. 2017, section 6.1).

    paths: the first is a checkpoint; others may be model folders too, and may lack residual layers at the top of the
        encoder. These add nothing there, so that they add less in the mean.

    Raises:
        ModelError: a checkpoint or model is missing or damaged, or is of another model than the first.
    """
    first = load_checkpoint(paths[0])
    # What tells phones in training is no part of a model, so a model folder has none.
    weights = {n: tensor.double() for n, tensor in first["state_dict"].items() if not n.startswith("phones.")}
    of = dict.fromkeys(weights, 1)  # how many have each
    for path in paths[1:]:
        other = read_weights(path) if path.is_dir() else load_checkpoint(path)["state_dict"]
        other = {name: tensor for name, tensor in other.items() if not name.startswith("phones.")}
        lacks = _of_residual_layers(weights.keys() - other.keys(), first["hyper_parameters"])
        if {n: t.shape for n, t in other.items()} != {n: t.shape for n, t in weights.items() if n not in lacks}:
            raise ModelError(f"{path}: is of another model than {paths[0]}; average those of one")
        for name, tensor in other.items():
            weights[name] += tensor
            of[name] += 1
    for name in weights:
        if ".norms." in name:  # what scales a residual layer's output
            of[name] = len(paths)
    mean = {name: (total / of[name]).to(first["state_dict"][name].dtype) for name, total in weights.items()}
    return first | {"state_dict": first["state_dict"] | mean}


def _of_residual_layers(names: Iterable[str], hyper_parameters: Mapping[str, Any]) -> set[str]:
    """Those of the weights that belong to residual layers of the encoder."""
    encoder = hyper_parameters.get("model", {}).get("encoder", {})
    plain = encoder.get("layers", 0) - encoder.get("residual", 0)
    found = ((name, _LAYER.match(name)) for name in names)
    return {name for name, layer in found if layer and int(layer[1]) >= plain}


# ---- reading ---------------------------------------------------------------------------------------------------------


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A training checkpoint, its tensors memory-mapped.

    Raises:
        ModelError: it is missing, damaged, or not one of ours.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # zip, pickle and operating system each have their own
        raise ModelError(f"{path}: a damaged checkpoint ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(state, dict) or not {"state_dict", "hyper_parameters", "global_step"} <= state.keys():
        raise ModelError(f"{path}: not a training checkpoint")
    return state


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint under `folder` that can be read; damaged ones are skipped with a warning."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            load_checkpoint(path)
        except ModelError as error:
            log.warning("%s is damaged and skipped (%s)", path, error)
            continue
        return path
    return None
