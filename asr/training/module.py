"""Loss, optimiser, schedule, and what is logged, as a LightningModule."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional

from asr.config import from_mapping, to_mapping
from asr.corpus.dataset import Batch
from asr.decoding.greedy import ctc_greedy, speller_greedy
from asr.errors import AsrError
from asr.frontend import FrontendConfig, Normalizer, SpecAugment, SpecAugmentConfig
from asr.model import ListenAttendSpell, ModelConfig
from asr.tokenizer import CharTokenizer

log = logging.getLogger(__name__)

__all__ = ["LasModule", "TrainingConfig", "TrainingStoppedError", "joint_loss"]


class TrainingStoppedError(AsrError):
    """Training cannot usefully go on."""


@dataclass(frozen=True)
class TrainingConfig:
    learning_rate: float = 1e-3  # peak
    warmup_steps: int = 300
    final_learning_rate: float = 1e-5  # reached at max_epochs by a cosine
    weight_decay: float = 1e-2
    ctc_weight: float = 0.3  # loss = (1 - w) attention + w CTC
    ctc_only_epochs: float = 0.0  # at first the encoder learns from CTC alone, and faster; the speller waits
    ctc_warmup_epochs: float = 0.0  # then the weight falls from 1 to ctc_weight over these
    guided_attention: float = 0.0  # weight of a loss on attention far from the diagonal; falls to 0
    guided_attention_epochs: float = 10.0  # over these, counted from the end of ctc_only_epochs
    guided_attention_width: float = 0.1  # of the diagonal, as a share of the utterance
    label_smoothing: float = 0.1
    gradient_clip: float = 5.0  # largest norm
    max_skipped_steps: int = 10  # so many non-finite losses or gradients in a row stop the run
    seed: int = 1
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)


def joint_loss(
    logits: Tensor,
    ctc_logits: Tensor,
    lengths: Tensor,
    characters: Tensor,
    character_lengths: Tensor,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attention and CTC losses, each in nats a character.

    Args:
        logits: (B, U + 1, V) after BOS and each character.
        ctc_logits: (B, N, V).
        lengths: (B,) encoder states.
        characters: (B, U + 2) with BOS and EOS, padded with 0.
        character_lengths: (B,) without BOS and EOS.
    """
    attention = functional.cross_entropy(
        logits.float().flatten(0, 1),
        characters[:, 1:].flatten(),
        ignore_index=CharTokenizer.pad_id,
        label_smoothing=label_smoothing,
    )
    return attention, ctc_loss(ctc_logits, lengths, characters, character_lengths)


def ctc_loss(ctc_logits: Tensor, lengths: Tensor, characters: Tensor, character_lengths: Tensor) -> Tensor:
    """CTC's part of `joint_loss` (Graves et al. 2006)."""
    total = functional.ctc_loss(
        ctc_logits.float().log_softmax(-1).transpose(0, 1),  # (N, B, V)
        characters[:, 1:-1],
        lengths,
        character_lengths,
        blank=CharTokenizer.blank_id,
        reduction="sum",
    )
    return total / character_lengths.sum()


def off_diagonal(weights: Tensor, lengths: Tensor, steps: Tensor, width: float) -> Tensor:
    """Share of the attention that lies far from the diagonal (Tachibana et al. 2018, "guided attention").

    Speech is spelled in its order, so character u of U should look near state n of N where n / N = u / U; small data
    alone takes long to show that.

    Args:
        weights: (B, U, N).
        lengths: (B,) encoder states of each row.
        steps: (B,) characters of each row, EOS included.
        width: standard deviation of the band in which attention costs little, as a share of the utterance.
    """
    u = torch.arange(weights.shape[1], device=weights.device) / steps[:, None]  # (B, U)
    n = torch.arange(weights.shape[2], device=weights.device) / lengths[:, None]  # (B, N)
    cost = 1 - torch.exp(-((u[:, :, None] - n[:, None, :]) ** 2) / (2 * width**2))
    by_step = (weights * cost).sum(-1)  # (B, U); padding has weight 0
    return (by_step * (u < 1)).sum() / steps.sum()


class LasModule(lightning.LightningModule):
    """What Lightning trains: model, normaliser and SpecAugment, with the settings they were made from."""

    def __init__(
        self, model: ModelConfig, training: TrainingConfig, frontend: FrontendConfig, tokenizer: CharTokenizer
    ) -> None:
        super().__init__()
        self.settings = training
        self.frontend = frontend
        self.tokenizer = tokenizer
        self.model = ListenAttendSpell(model)
        self.normalizer = Normalizer(frontend.n_mels)
        self.spec_augment = SpecAugment(training.spec_augment)
        self.save_hyperparameters(
            {"model": to_mapping(model), "training": to_mapping(training), "frontend": to_mapping(frontend)}
        )
        self.skipped_in_a_row = 0
        self.skipped: list[list[str]] = []  # utterance ids of each skipped batch
        self._verdicts: list[tuple[Tensor, list[str]]] = []
        self._last_loss, self._last_ids = torch.zeros(()), list[str]()
        self._edits: dict[str, int] = {}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], tokenizer: CharTokenizer | None = None) -> LasModule:
        """From nested mappings `model`, `training` and `frontend`, as Hydra or a checkpoint holds them."""
        return cls(
            from_mapping(ModelConfig, settings["model"], "model"),
            from_mapping(TrainingConfig, settings["training"], "training"),
            from_mapping(FrontendConfig, settings["frontend"], "frontend"),
            tokenizer or CharTokenizer(),
        )

    # ---- optimisation -------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": self.settings.weight_decay},
            {"params": others},
        ]
        return torch.optim.AdamW(
            groups, lr=self.settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )

    @property
    def progress(self) -> float:
        """How far training has come, 0 at its start and 1 at its end; a resumed run goes on where it was."""
        trainer = self.trainer
        batches = trainer.num_training_batches
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        return min(1.0, (trainer.current_epoch + done / max(1, batches)) / max(1, trainer.max_epochs or 1))

    @property
    def epochs_done(self) -> float:
        return self.progress * (self.trainer.max_epochs or 1)

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Linear warm-up in steps, then a cosine in progress."""
        c = self.settings
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        rate = c.final_learning_rate + (c.learning_rate - c.final_learning_rate) * cosine
        return rate * min(1.0, (step + 1) / max(1, c.warmup_steps))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # A step's random numbers (dropout, SpecAugment) depend on the seed and the step alone, so that a resumed
        # run draws what the uninterrupted one would have drawn.
        torch.manual_seed((self.settings.seed * 1_000_003 + self.trainer.global_step) * 4096 + self.global_rank)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = self.learning_rate_at(self.trainer.global_step, self.progress)

    @property
    def ctc_weight(self) -> float:
        c = self.settings
        past = self.epochs_done - c.ctc_only_epochs
        if past < 0:
            return 1.0
        if past >= c.ctc_warmup_epochs:
            return c.ctc_weight
        return c.ctc_weight + (1 - c.ctc_weight) * (1 - past / c.ctc_warmup_epochs)

    @property
    def guidance(self) -> float:
        """Weight of `off_diagonal` now."""
        c = self.settings
        past = max(0.0, self.epochs_done - c.ctc_only_epochs)
        return c.guided_attention * max(0.0, 1 - past / max(c.guided_attention_epochs, 1e-9))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        frames = self.spec_augment(self.normalizer(batch.frames), batch.lengths)
        if self.epochs_done < self.settings.ctc_only_epochs:
            return self._ctc_step(frames, batch)
        out = self.model(frames, batch.lengths, batch.characters[:, :-1])
        attention, ctc = joint_loss(
            out.logits,
            out.ctc_logits,
            out.lengths,
            batch.characters,
            batch.character_lengths,
            self.settings.label_smoothing,
        )
        weight = self.ctc_weight
        loss = (1 - weight) * attention + weight * ctc
        size = len(batch.ids)
        if self.guidance and out.weights is not None:
            width = self.settings.guided_attention_width
            off = off_diagonal(out.weights, out.lengths, batch.character_lengths + 1, width)
            self.log("train/off_diagonal", off.detach(), batch_size=size)
            loss = loss + self.guidance * off
        self.log("train/attention", attention.detach(), batch_size=size)
        self.log("train/ctc", ctc.detach(), batch_size=size)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size)
        self._last_loss, self._last_ids = loss.detach(), batch.ids
        return loss

    def _ctc_step(self, frames: Tensor, batch: Batch) -> Tensor:
        h, lengths = self.model.encoder(frames, batch.lengths)
        loss = ctc_loss(self.model.ctc(h), lengths, batch.characters, batch.character_lengths)
        self.log("train/ctc", loss.detach(), batch_size=len(batch.ids))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.ids))
        self._last_loss, self._last_ids = loss.detach(), batch.ids
        return loss

    # ---- validation ---------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._edits = dict.fromkeys(("attention", "ctc", "words"), 0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        size = len(batch.ids)
        h, lengths = self.model.encoder(self.normalizer(batch.frames), batch.lengths)
        logits, _ = self.model.speller(batch.characters[:, :-1], self.model.speller.memory(h, lengths))
        ctc_logits = self.model.ctc(h)
        attention, ctc = joint_loss(logits, ctc_logits, lengths, batch.characters, batch.character_lengths)
        self.log("dev/attention", attention, batch_size=size, sync_dist=True)
        self.log("dev/ctc", ctc, batch_size=size, sync_dist=True)
        for name, ids in (
            ("attention", speller_greedy(self.model.speller, h, lengths)[0]),
            ("ctc", ctc_greedy(ctc_logits, lengths)),
        ):
            self._edits[name] += sum(
                word_errors(text, self.tokenizer.decode(row)) for text, row in zip(batch.texts, ids, strict=True)
            )
        self._edits["words"] += sum(len(text.split()) for text in batch.texts)

    def on_validation_epoch_end(self) -> None:
        counts = torch.tensor([self._edits[k] for k in ("attention", "ctc", "words")], dtype=torch.float64)
        counts = self.trainer.strategy.reduce(counts.to(self.device), reduce_op="sum")
        words = counts[2].clamp_min(1)
        self.log("dev/wer", (counts[0] / words).float(), prog_bar=True)  # free-running greedy attention
        self.log("dev/wer_ctc", (counts[1] / words).float(), prog_bar=True)

    # ---- clipping, and bad numbers -------------------------------------------------------------------------------

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient; make a step whose loss or gradient is not finite harmless, and stop if they go on.

        The fused optimiser itself leaves the weights alone where `found_inf` is 1, so nothing has to wait for the
        device here; on CUDA the verdicts are read some steps later.
        """
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        bad = ~(norm.isfinite() & self._last_loss.isfinite())
        optimizer.grad_scale, optimizer.found_inf = None, bad.float()  # type: ignore[attr-defined]
        self.log("train/gradient_norm", norm)
        self._verdicts.append((bad, self._last_ids))
        if not bad.is_cuda or len(self._verdicts) >= self.settings.max_skipped_steps:
            self._read_verdicts()

    def _read_verdicts(self) -> None:
        verdicts, self._verdicts = self._verdicts, []
        for bad, ids in verdicts:
            if not bad.item():
                self.skipped_in_a_row = 0
                continue
            self.skipped_in_a_row += 1
            self.skipped.append(ids)
            log.warning("step skipped, loss or gradient is not finite; utterances: %s", " ".join(ids))
            if self.skipped_in_a_row >= self.settings.max_skipped_steps:
                raise TrainingStoppedError(
                    f"{self.skipped_in_a_row} steps in a row had a loss or gradient that is not finite; lower "
                    f"training.learning_rate or look at these utterances: {' '.join(ids)}"
                )


def word_errors(reference: str, hypothesis: str) -> int:
    """Substitutions, deletions and insertions between two texts."""
    import jiwer

    if not reference or not hypothesis:
        return len((reference or hypothesis).split())
    out = jiwer.process_words(reference, hypothesis)
    return out.substitutions + out.deletions + out.insertions
