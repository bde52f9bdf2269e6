"""One run from prepared text to a language model's folder: what `recipes/language_model/train.py` calls.

The text is read as passages: each begins with BOS at a zero state, exactly as a search does, and holds one sentence
or, as an utterance may, several with spaces between them. Passages of nearly one length lie side by side in a batch,
which is learned in windows: the state is carried from window to window, the gradient stops between them (truncated
back-propagation).
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
import yaml
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional

from asr.config import from_mapping, to_mapping
from asr.corpus.passages import MULTIPLE, PassageBatch, Passages, plan_batches, read_batch
from asr.corpus.text import PreparedText
from asr.errors import ConfigError
from asr.model.language_model import (
    SETTINGS,
    CharLanguageModel,
    LanguageModelConfig,
    LanguageModelState,
    language_model_summary,
    load_language_model,
    read_settings,
    save_language_model,
)
from asr.tokenizer import CharTokenizer
from asr.training.checkpoint import (
    DurableCheckpointIO,
    SafeCheckpoint,
    StopOnSignal,
    latest_checkpoint,
    load_checkpoint,
)
from asr.training.failures import TrainingStoppedError, readable_failures
from asr.training.run import choose_accelerator, choose_precision, count_processes, differences
from asr.training.settings import check_resume, check_trainer
from asr.writers import make_writable, write_atomically

__all__ = [
    "LanguageModelModule",
    "LanguageModelTraining",
    "Window",
    "WindowLoader",
    "bits_per_character",
    "train",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LanguageModelTraining:
    learning_rate: float = 3e-3  # peak
    warmup_steps: int = 100
    final_learning_rate: float = 1e-5  # reached at the end by a cosine
    weight_decay: float = 1e-3
    gradient_clip: float = 1.0  # largest norm
    batch_characters: int = 6400  # of a window, in each process
    window: int = 160  # characters through which the gradient flows back
    join: float = 0.5  # chance that a passage goes on after a sentence
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.join < 1:
            raise ValueError(f"join must be at least 0 and below 1; got {self.join}")
        if self.window < 1 or self.batch_characters < 1:
            raise ValueError("window and batch_characters must be 1 or more")


# ------------------------------------------------------------------------------------------------------------- text


class Window(NamedTuple):
    """(R, T) ids and what follows each; 0 where a passage has ended."""

    inputs: Tensor
    targets: Tensor
    first: bool  # the passages begin here
    characters: int  # targets that are no padding


def windows_of(ids: Tensor, batch: PassageBatch) -> Iterator[Window]:
    """What `read_batch` read, one window after another."""
    for start in range(0, batch.windows * batch.width, batch.width):
        end = start + batch.width
        targets = ids[:, start + 1 : end + 1].contiguous()
        yield Window(ids[:, start:end].contiguous(), targets, start == 0, int((targets != CharTokenizer.pad_id).sum()))


class WindowLoader:
    """The windows of one epoch, batch after batch; each process gets its rows of every batch.

    Lightning saves its state with a checkpoint and gives it back, so that a run goes on in the middle of a batch. With
    several processes, whose carried states are not all saved, it goes on at the next batch.
    """

    def __init__(
        self,
        text: PreparedText,
        settings: LanguageModelTraining,
        tokenizer: CharTokenizer,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.text = text
        self.tokenizer = tokenizer
        self.rank, self.world_size = rank, world_size
        seed = (settings.seed, epoch)
        self.passages = self._draw(settings.join, seed)
        multiple = world_size * (MULTIPLE if len(self.passages.steps) >= 64 * MULTIPLE * world_size else 1)
        self.plan = plan_batches(
            self.passages.steps, settings.batch_characters * world_size, settings.window, multiple, seed
        )
        if not self.plan:
            raise ConfigError(f"{len(text)} sentences are too few for {world_size} processes")
        self.begins = np.cumsum([0] + [batch.windows for batch in self.plan])
        self.position = 0  # windows handed out

    def __len__(self) -> int:
        return int(self.begins[-1])

    def __iter__(self) -> Iterator[Window]:
        index = int(np.searchsorted(self.begins, self.position, side="right")) - 1
        skip = self.position - int(self.begins[index])
        for batch in self.plan[index:]:
            mine = batch._replace(passages=batch.passages[self.rank :: self.world_size])
            for window in islice(windows_of(self._read(mine), mine), skip, None):
                self.position += 1
                yield window
            skip = 0
        self.position = 0

    def _draw(self, join: float, seed: tuple[int, int]) -> Passages:
        return Passages.draw(self.text.lengths, join, seed)

    def _read(self, batch: PassageBatch) -> Tensor:
        return read_batch(self.text, self.passages, batch, self.tokenizer)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "windows": len(self), "world_size": self.world_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        position = state["position"]
        if self.world_size > 1 or state["world_size"] != self.world_size or state["windows"] != len(self):
            share = position / state["windows"] * len(self)
            position = int(self.begins[np.searchsorted(self.begins, share)])
        self.position = position % len(self)  # at the end: the next epoch's start


# ------------------------------------------------------------------------------------------------------ measurement


@torch.no_grad()
def bits_per_character(
    model: CharLanguageModel,
    text: PreparedText,
    tokenizer: CharTokenizer,
    *,
    sentences: int | None = None,
    batch_characters: int = 16_000,
    window_size: int = 512,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[float, int]:
    """Sum of -log2 p over the characters of each sentence and its EOS, and how many they are.

    Their quotient is what is called bits per character. Every sentence is read by itself from a zero state, as in a
    search; EOS counts as a character, BOS is given.

    Args:
        model: as it is; put it into evaluation mode first.
        text: what to measure on.
        tokenizer: the model's.
        sentences: only so many, the first ones; None: all.
        batch_characters: read at once.
        window_size: steps of one call of the model.
        rank: of this process, which reads its share of the batches.
        world_size: processes.
    """
    lengths = text.lengths[:sentences]
    passages = Passages.draw(lengths, 0.0, None)
    device = next(model.parameters()).device
    bits, count = 0.0, 0
    for batch in plan_batches(passages.steps, batch_characters, window_size)[rank::world_size]:
        state = None
        for window in windows_of(read_batch(text, passages, batch, tokenizer), batch):
            logits, state = model(window.inputs.to(device), state)
            bits += _nats(logits, window.targets.to(device)).double().item() / math.log(2)
            count += window.characters
    return bits, count


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of all targets (R, T) under logits (R, T, V), padding left out."""
    return functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=CharTokenizer.pad_id, reduction="sum"
    )


# --------------------------------------------------------------------------------------------------------- training


class LanguageModelModule(lightning.LightningModule):
    """What Lightning trains: the model and the state that it carries from window to window."""

    unit = "character"  # what the model reads one at a time
    model: Any

    def __init__(
        self,
        model: LanguageModelConfig,
        training: LanguageModelTraining,
        tokenizer: CharTokenizer,
        max_minutes: float | None = None,
    ) -> None:
        super().__init__()
        self.settings = training
        self.tokenizer = tokenizer
        self.model = self.make_model(model)
        self.max_minutes = max_minutes
        self.save_hyperparameters({"model": to_mapping(model), "training": to_mapping(training)})
        self.carried: LanguageModelState | None = None
        self.seconds = 0.0  # of training so far, those of an earlier part of the run included
        self.read = 0  # characters so far, EOS included, of all processes (taking them for equally fast)
        self._last = time.monotonic()

    def make_model(self, config: Any) -> nn.Module:
        return CharLanguageModel(config)

    def nats(self, batch: Window, state: LanguageModelState | None) -> tuple[Tensor, LanguageModelState]:
        """The mean of -log p over the targets, and the state after them."""
        logits, state = self.model(batch.inputs, state)
        return _nats(logits, batch.targets) / max(1, batch.characters), state

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], tokenizer: CharTokenizer | None = None) -> LanguageModelModule:
        """From nested mappings `model`, `training` and `trainer`, as Hydra holds them."""
        tokenizer = tokenizer or CharTokenizer()
        sizes = {"vocabulary": len(tokenizer), **settings["model"]}
        return cls(
            from_mapping(LanguageModelConfig, sizes, "model"),
            from_mapping(LanguageModelTraining, settings["training"], "training"),
            tokenizer,
            settings["trainer"]["max_minutes"],
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        c = self.settings
        return torch.optim.AdamW(
            self.model.parameters(), lr=c.learning_rate, betas=(0.9, 0.98), weight_decay=c.weight_decay, fused=True
        )

    @property
    def progress(self) -> float:
        """How far training has come, 0 at its start and 1 at its end, by whichever limit is nearest."""
        trainer = self.trainer
        batches = trainer.num_training_batches
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        shares = [(trainer.current_epoch + done / max(1, batches)) / max(1, trainer.max_epochs or 1)]
        if trainer.max_steps > 0:
            shares.append(trainer.global_step / trainer.max_steps)
        if self.max_minutes:
            shares.append(self.seconds / 60 / self.max_minutes)
        return min(1.0, max(shares))

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Linear warm-up in steps, then a cosine in progress."""
        c = self.settings
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        rate = c.final_learning_rate + (c.learning_rate - c.final_learning_rate) * cosine
        return rate * min(1.0, (step + 1) / max(1, c.warmup_steps))

    def on_train_start(self) -> None:
        self._last = time.monotonic()

    def on_train_batch_start(self, batch: Window, batch_idx: int) -> int | None:
        now = time.monotonic()
        self.seconds, self._last = self.seconds + now - self._last, now
        if self.max_minutes and self.trainer.world_size > 1:  # all must agree on when it is over
            self.seconds = self.trainer.strategy.broadcast(self.seconds)
        if self.progress >= 1:
            self.trainer.should_stop = True
            return -1
        # Dropout depends on the seed and the step alone, so that a resumed run draws what it would have drawn.
        torch.manual_seed((self.settings.seed * 1_000_003 + self.trainer.global_step) * 4096 + self.global_rank)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = self.learning_rate_at(self.trainer.global_step, self.progress)
        return None

    def training_step(self, batch: Window, batch_idx: int) -> Tensor:
        state = None if batch.first else self.carried
        if state is not None:  # checkpoints are read into the processor's memory
            state = LanguageModelState(state.s.to(batch.inputs.device), state.c.to(batch.inputs.device))
        loss, state = self.nats(batch, state)
        self.carried = state.detach()
        self.read += batch.characters * self.trainer.world_size
        bits = loss.detach() / math.log(2)
        self.log(f"train/bits_per_{self.unit}", bits, prog_bar=True, batch_size=len(batch.inputs))
        if self.trainer.global_step % 50 == 0 and not math.isfinite(bits):
            raise TrainingStoppedError(f"the loss is {bits.item()}; lower training.learning_rate")
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        # At a gradient that is no number the fused step leaves all as it is, in every process: the gradient is of all.
        optimizer.grad_scale, optimizer.found_inf = None, (~norm.isfinite()).float()  # type: ignore[attr-defined]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        carried = None if self.carried is None else (self.carried.s.float(), self.carried.c.float())
        checkpoint["language_model"] = {
            "seconds": self.seconds,
            "characters": self.read,
            "carried": carried,
            "text": self.trainer.datamodule.digest,  # type: ignore[attr-defined]
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["language_model"]
        self.seconds, self.read = saved["seconds"], saved["characters"]
        if saved["carried"] is not None:
            self.carried = LanguageModelState(*saved["carried"])


class TextData(lightning.LightningDataModule):
    """A prepared text, epoch by epoch."""

    def __init__(self, folder: str, settings: LanguageModelTraining, tokenizer: CharTokenizer) -> None:
        super().__init__()
        self.settings, self.tokenizer = settings, tokenizer
        self.text = PreparedText(folder, "train", tokenizer)
        self.held_out = PreparedText(folder, "held_out", tokenizer)

    def train_dataloader(self) -> WindowLoader:
        t = self.trainer
        epoch, rank, world_size = (t.current_epoch, t.global_rank, t.world_size) if t else (0, 0, 1)
        return WindowLoader(self.text, self.settings, self.tokenizer, epoch, rank, world_size)

    @property
    def digest(self) -> str:
        """Tells what is learned from apart from other texts."""
        return self.text.digest

    def about(self) -> dict[str, Any]:
        """The text, for a model's folder."""
        return {
            "texts": [Path(path).name for path in self.text.about["texts"]],
            "not_overlapping_with": [Path(path).name for path in self.text.about["overlap_with"]],
            "sentences": len(self.text),
            "characters": int(self.text.lengths.sum()),
        }

    def summary(self, progress: Mapping[str, Any], measured: int, held_out: float) -> dict[str, Any]:
        """What a model's folder tells of its training: the text, how far it was read, bits per character."""
        return {
            **self.about(),
            **{key: progress[key] for key in ("characters_read", "steps", "minutes")},
            "held_out": {"sentences": measured, "bits_per_character": round(held_out, 4)},
            "date": time.strftime("%Y-%m-%d"),
        }

    def measure(self, module: LanguageModelModule, sentences: int, rank: int, world_size: int) -> tuple[float, int]:
        """Bits of this process's share of the first held-out sentences, and of how many characters."""
        return bits_per_character(
            module.model, self.held_out, module.tokenizer, sentences=sentences, rank=rank, world_size=world_size
        )

    def save(self, folder: Path, module: LanguageModelModule, progress: Mapping[str, Any], held_out: float) -> None:
        """Write the model's folder as it stands; `progress` also says how many sentences it was measured on."""
        about = self.summary(progress, progress["measured"], held_out)
        save_language_model(folder, module.model, module.tokenizer, about)

    def finish(self, folder: Path, module: LanguageModelModule) -> None:
        """Write into the model's folder what the weights there, fp16 as they are, make of all the held-out text."""
        model = load_language_model(folder, module.tokenizer, module.device)
        bits, count = bits_per_character(model, self.held_out, module.tokenizer)
        about = self.summary(language_model_summary(folder), len(self.held_out), bits / count)
        save_language_model(folder, model, module.tokenizer, about)
        log.info("wrote %s: %.4f bits per character on %d held-out sentences", folder, bits / count, len(self.held_out))


class Measure(callbacks.Callback):
    """Some times a run: held-out bits per character, a line in `history.jsonl`, a checkpoint, and the best model."""

    def __init__(self, output: Path, data: TextData, times: int, sentences: int, checkpoint: SafeCheckpoint) -> None:
        self.output, self.data, self.checkpoint = output, data, checkpoint
        self.times, self.sentences = times, sentences
        self.done, self.step = 0, -1  # measurements, and the step of the last one
        self.best = math.inf

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step, self.best = state_dict.get("step", -1), state_dict["best"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.done = int(pl_module.progress * self.times)  # a run that goes on may end later than it was to

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        due = int(pl_module.progress * self.times)
        if due > self.done:
            self.done = due
            self.measure(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.step < trainer.global_step and pl_module.progress >= 1:
            self.measure(trainer, pl_module)

    def measure(self, trainer: lightning.Trainer, module: LanguageModelModule) -> None:
        module.model.eval()
        with trainer.precision_plugin.val_step_context():
            bits, count = self.data.measure(module, self.sentences, trainer.global_rank, trainer.world_size)
        module.model.train()
        sums = torch.tensor([bits, count], dtype=torch.float64, device=module.device)
        bits, count = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        held_out = bits / count
        progress: dict[str, Any] = {
            "steps": trainer.global_step,
            "minutes": round(module.seconds / 60, 1),
            f"{module.unit}s_read": module.read,
        }
        rates = {"learning_rate": module.learning_rate_at(trainer.global_step, module.progress)}
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        rounded = {name: float(f"{value:.5g}") for name, value in {**rates, **logged}.items()}
        record = {**progress, **rounded, f"held_out/bits_per_{module.unit}": round(held_out, 4)}
        if trainer.is_global_zero:
            try:
                with open(self.output / "history.jsonl", "a") as file:
                    file.write(json.dumps(record) + "\n")
            except OSError as error:
                log.error("%s: NOT written (%s)", self.output / "history.jsonl", error.strerror)
            log.info("%3.0f %%  %s", 100 * module.progress, json.dumps(record))
            if held_out < self.best:
                progress["measured"] = min(self.sentences, len(self.data.held_out))
                self.data.save(self.output / "model", module, progress, held_out)
        self.step, self.best = trainer.global_step, min(self.best, held_out)
        self.checkpoint.save_now(trainer)


def train(settings: Mapping[str, Any]) -> Path:
    """Train as `settings` say (`text`, `model`, `training`, `trainer`, `output`, `resume`).

    Returns the language model's folder. The output folder then holds `config.yaml`, `history.jsonl`, `checkpoints/`,
    TensorBoard's events and `model/`: during the run the best so far, and after it with its bits per character on all
    of the held-out text.

    Raises:
        AsrError: the settings, the text or the disk will not do, or training cannot usefully go on.
        TrainingInterrupted: Ctrl-C or SIGTERM; all is saved.
    """
    seed_from(settings)
    module = LanguageModelModule.from_settings(settings)
    return fit(settings, module, lambda: TextData(settings["text"], module.settings, module.tokenizer))


def seed_from(settings: Mapping[str, Any]) -> None:
    """The first weights depend on it."""
    seed = from_mapping(LanguageModelTraining, settings["training"], "training").seed
    lightning.seed_everything(seed, workers=True, verbose=False)


def fit(settings: Mapping[str, Any], module: LanguageModelModule, make_data: Callable[[], TextData]) -> Path:
    """Train a language model of whatever kind; what `train` says."""
    check_trainer(settings["trainer"])
    check_resume(settings["resume"])
    output = Path(settings["output"])
    checkpoints = output / "checkpoints"
    t = settings["trainer"]
    resume = _resume_from(settings, checkpoints, module)
    data = make_data()
    if resume is not None and load_checkpoint(resume)["language_model"].get("text", data.digest) != data.digest:
        # What its model's folder says of the text would not be true; and an LSTM's words would be others.
        raise ConfigError(f"{resume}: has learned from another text; set text= back or choose another output=")
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0:
        make_writable(checkpoints, "output")
        # A run that goes on only replaces what it wrote itself.
        for old in sorted(checkpoints.glob("step-*.ckpt"))[:-1]:
            if resume is None or old.resolve() != resume.resolve():
                old.unlink()
        with write_atomically(output / "config.yaml") as file:
            yaml.safe_dump(dict(settings), file, sort_keys=False)
    log.info(
        "%.1f M characters in %d sentences, %.2f M parameters",
        data.text.lengths.sum() / 1e6, len(data.text), module.model.num_parameters / 1e6,
    )  # fmt: skip
    regular = SafeCheckpoint(
        checkpoints,
        "step-{step:07d}",
        "step",
        mode="max",
        auto_insert_metric_name=False,
        enable_version_counter=False,
        train_time_interval=timedelta(minutes=t["checkpoint_minutes"]),
    )
    devices, nodes = count_processes(t)
    trainer = lightning.Trainer(
        accelerator=choose_accelerator(t["accelerator"]),
        devices=devices,
        num_nodes=nodes,
        precision=choose_precision(t["precision"]),
        max_epochs=t["max_epochs"],
        max_steps=t["max_steps"],
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        log_every_n_steps=t["log_every"],
        logger=TensorBoardLogger(output, name="", version="tensorboard"),
        callbacks=[
            Measure(output, data, t["measurements"], t["measured_sentences"], regular),
            regular,
            StopOnSignal(regular),
            callbacks.RichProgressBar() if t["progress"] else callbacks.TQDMProgressBar(refresh_rate=0),
        ],
        plugins=[DurableCheckpointIO()],
        default_root_dir=output,
        enable_model_summary=False,
    )
    with readable_failures(output, partial(_out_of_memory, trainer, settings)):
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    folder = output / "model"
    if trainer.is_global_zero:
        tuned = read_settings(folder).get("decoding")  # by tune.py, where the run was over already
        data.finish(folder, module)
        if tuned:
            settings = read_settings(folder) | {"decoding": tuned}
            with write_atomically(folder / SETTINGS) as file:
                yaml.safe_dump(settings, file, sort_keys=False, allow_unicode=True)
    return folder


def _out_of_memory(trainer: lightning.Trainer, settings: Mapping[str, Any]) -> str:
    lower = f"training.batch_characters (now {settings['training']['batch_characters']})"
    return f"out of memory at step {trainer.global_step}; lower {lower} or the model's size"


def _resume_from(settings: Mapping[str, Any], checkpoints: Path, module: LanguageModelModule) -> Path | None:
    """Which checkpoint to go on from; ConfigError where that cannot work."""
    resume = settings["resume"]
    path = latest_checkpoint(checkpoints) if resume in ("auto", "never") else Path(resume)
    if path is None:
        return None
    if resume == "never":
        raise ConfigError(f"{checkpoints.parent} holds a run already: resume=auto goes on, or choose another output=")
    saved = load_checkpoint(path)["hyper_parameters"]
    then = to_mapping(type(module.model.config)()) | saved["model"]  # with what has been added since
    if keys := differences(then, module.hparams["model"]):
        raise ConfigError(f"{path}: was trained with another model ({keys}); set that back or choose another output=")
    return path
