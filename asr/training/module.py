"""Loss, optimiser, schedule, and what is logged, as a LightningModule."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from asr.config import from_mapping, to_mapping
from asr.corpus.dataset import Batch
from asr.corpus.passages import PassageSource
from asr.corpus.pronunciation import PHONES, Pronouncer
from asr.decoding.beam_search import PRESETS, DecodingConfig, beam_search
from asr.decoding.greedy import ctc_greedy
from asr.errors import ConfigError
from asr.frontend import FrontendConfig, Normalizer, SpecAugment, SpecAugmentConfig
from asr.model import ListenAttendSpell, ModelConfig
from asr.model.encoder import length_mask
from asr.model.loss import ctc_loss, joint_loss, spelling_loss
from asr.tokenizer import CharTokenizer
from asr.training.completion import completion_loss, optimal_completions
from asr.training.failures import TrainingStoppedError

log = logging.getLogger(__name__)

__all__ = ["LasModule", "TrainingConfig", "consistency_loss", "sampled_inputs"]

# The searches behind the logged dev WERs, beside CTC's best path. "joint" is what users get unless they ask for more.
JOINT = PRESETS["greedy_ctc"]
# The decoder alone loops where it has lost its place. What it writes past 1.5 times the characters of CTC's best path
# costs time and tells nothing new, and every fourth batch of the development set is enough to see how it comes on.
ATTENTION = DecodingConfig(beam=1, max_length_ratio=1.5)
ATTENTION_EVERY = 4
GOLDEN = (math.sqrt(5) - 1) / 2


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
    text_weight: float = 0.3  # of the speller's loss on text without speech, where there is any (corpus.text)
    label_smoothing: float = 0.1
    gradient_clip: float = 5.0  # largest norm
    max_skipped_steps: int = 10  # so many non-finite losses or gradients in a row stop the run
    seed: int = 1
    average: int = 1  # checkpoints with the best dev WER that are kept; above 1 the mean of their weights is tried too
    scheduled_sampling: float = 0.0  # at the end of training, this share of the speller's inputs are its own outputs
    optimal_completion: float = 0.0  # share of the steps that learn from what the search spells, and its mistakes
    consistency: float = 0.0  # weight, beside CTC's loss, of how far CTC's heads on two changed copies are apart
    phones: float = 0.0  # share of CTC's loss that is over phones, told at a lower layer; above 0 needs hibari-tts
    phones_layer: int = 3  # that layer, the first being 1; above the pyramid, below residual layers
    weight_noise: float = 0.0  # standard deviation of Gaussian noise on the weight matrices while a gradient is taken
    find_learning_rate: bool = False  # try rising rates over 100 steps, suggest one, write a plot and stop
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)

    def __post_init__(self) -> None:
        if self.average < 1:
            raise ValueError(f"average must be at least 1, got {self.average}")
        if not 0 <= self.ctc_weight <= 1:
            raise ValueError(f"ctc_weight must be 0 .. 1, got {self.ctc_weight}")
        if not 0 <= self.scheduled_sampling <= 1:
            raise ValueError(f"scheduled_sampling must be 0 .. 1, got {self.scheduled_sampling}")
        if not 0 <= self.optimal_completion <= 1:
            raise ValueError(f"optimal_completion must be 0 .. 1, got {self.optimal_completion}")
        if self.text_weight < 0:
            raise ValueError(f"text_weight must not be negative, got {self.text_weight}")
        if self.consistency < 0:
            raise ValueError(f"consistency must not be negative, got {self.consistency}")
        if not 0 <= self.phones < 1:
            raise ValueError(f"phones must be 0 or more and below 1, got {self.phones}")
        if self.weight_noise < 0:
            raise ValueError(f"weight_noise must not be negative, got {self.weight_noise}")


def consistency_loss(ctc_logits: Tensor, lengths: Tensor, character_lengths: Tensor) -> Tensor:
    """How far CTC's outputs on two changed copies of the same speech are apart, in nats a character (Yao et al. 2025).

    From their "CR-CTC: Consistency regularization on CTC": the mean of both Kullback-Leibler divergences, state
    by state. Each copy goes to where the other is, which itself is held fast.

    Args:
        ctc_logits: (2 B, N, V), all rows of the one copy and then all of the other.
        lengths: (2 B,) encoder states of each row.
        character_lengths: (2 B,)
    """
    states = length_mask(lengths, ctc_logits.shape[1])
    log_p = ctc_logits.float().log_softmax(-1)
    target = log_p.detach().roll(len(log_p) // 2, dims=0)  # the other copy's
    divergence = (target.exp() * (target - log_p)).sum(-1)  # (2 B, N)
    return divergence.masked_fill(~states, 0.0).sum() / character_lengths.sum()


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


def sampled_inputs(characters: Tensor, logits: Tensor, probability: float) -> Tensor:
    """Speller inputs, some replaced by what the model would have written itself (Mihaylova & Martins 2019).

    The second of their two passes, in which training still needs no loop over characters. Every character has a coin
    of its own (Bengio et al. 2015).

    Args:
        characters: (B, U + 1) beginning with BOS, padded with 0.
        logits: (B, U + 1, V) of a first pass over `characters`.
        probability: that a character is replaced; BOS, EOS and padding never are.
    """
    t = CharTokenizer
    special = torch.zeros(logits.shape[-1], device=logits.device)
    special[[t.blank_id, t.bos_id, t.eos_id, t.unk_id]] = -torch.inf
    predicted = (logits[:, :-1] + special).argmax(-1)  # (B, U): in the place of characters 1 .. U
    replaced = torch.rand(predicted.shape, device=logits.device) < probability
    given = characters[:, 1:]
    replaced &= (given != t.pad_id) & (given != t.bos_id) & (given != t.eos_id)
    return torch.cat([characters[:, :1], torch.where(replaced, predicted, given)], dim=1)


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
        self.normalizer = Normalizer(frontend.n_mels, frontend.mean_prior / frontend.hop)
        self.spec_augment = SpecAugment(training.spec_augment)
        self.save_hyperparameters(
            {"model": to_mapping(model), "training": to_mapping(training), "frontend": to_mapping(frontend)}
        )
        self.phones = self._phones(model, training)
        self.pronounce: Pronouncer | None = None  # loaded when training begins
        self.skipped_in_a_row = 0
        self.skipped: list[list[str]] = []  # utterance ids of each skipped batch
        self._verdicts: list[tuple[Tensor, list[str]]] = []
        self._last_loss, self._last_ids = torch.zeros(()), list[str]()
        self._edits: Counter[str] = Counter()
        self._clean: list[Tensor] = []  # the weights without noise, while there is noise on them
        self.data: dict[str, Any] = {}  # names and hours of the corpora, for the model folder
        self.text: PassageSource | None = None  # what the speller learns from beside speech
        self.batch_shape = ""  # of the batch at work, in words
        self.sets_learning_rate = True  # False: somebody else does, as the learning-rate finder

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], tokenizer: CharTokenizer | None = None) -> LasModule:
        """From nested mappings `model`, `training` and `frontend`, as Hydra or a checkpoint holds them."""
        return cls(
            from_mapping(ModelConfig, settings["model"], "model"),
            from_mapping(TrainingConfig, settings["training"], "training"),
            from_mapping(FrontendConfig, settings["frontend"], "frontend"),
            tokenizer or CharTokenizer(),
        )

    @staticmethod
    def _phones(model: ModelConfig, training: TrainingConfig) -> nn.Linear | None:
        """What tells phones while training goes on; no part of the model."""
        if not training.phones:
            return None
        encoder = model.encoder
        if not max(encoder.join_before, default=0) < training.phones_layer <= encoder.layers - encoder.residual:
            raise ConfigError(
                f"training.phones_layer={training.phones_layer}: it must be above those in model.encoder.join_before "
                f"({', '.join(map(str, encoder.join_before))}, the first layer being 0 there) and at most the last "
                f"that is not residual, {encoder.layers - encoder.residual}"
            )
        return nn.Linear(encoder.d, 1 + len(PHONES))

    def on_fit_start(self) -> None:
        if self.phones is not None:
            self.pronounce = Pronouncer()

    # ---- optimisation -------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        others = [p for p in self._learned if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": self._matrices, "weight_decay": self.settings.weight_decay},
            {"params": others},
        ]
        return torch.optim.AdamW(
            groups, lr=self.settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )

    @property
    def progress(self) -> float:
        """How far training has come, 0 at its start and 1 at its end; a resumed run goes on where it was.

        The end is where the nearer of `max_epochs` and `max_steps` is.
        """
        trainer = self.trainer
        limits = (self.epochs_done, trainer.max_epochs or 1), (trainer.global_step, trainer.max_steps)
        return min(1.0, max(done / limit for done, limit in limits if limit > 0))

    @property
    def epochs_done(self) -> float:
        trainer = self.trainer
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        return trainer.current_epoch + done / max(1, trainer.num_training_batches)

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Linear warm-up in steps, then a cosine in progress."""
        c = self.settings
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        rate = c.final_learning_rate + (c.learning_rate - c.final_learning_rate) * cosine
        return rate * min(1.0, (step + 1) / max(1, c.warmup_steps))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # A batch's random numbers (dropout, SpecAugment) depend on the seed and the batch's number alone, so that a
        # resumed run draws what the uninterrupted one would have drawn.
        several = self.trainer.accumulate_grad_batches
        number = self.trainer.global_step * several + batch_idx % several
        torch.manual_seed((self.settings.seed * 1_000_003 + number) * 4096 + self.global_rank)
        if self.sets_learning_rate:
            for group in self.optimizers().param_groups:  # type: ignore[union-attr]
                group["lr"] = self.learning_rate_at(self.trainer.global_step, self.progress)
        self._note_shape(batch, copies=2 if self.settings.consistency else 1)
        if self.settings.weight_noise:
            self._add_weight_noise()

    def _note_shape(self, batch: Batch, copies: int = 1) -> None:
        rows, frames = copies * len(batch.frames), batch.frames.shape[1]
        self.batch_shape = (
            f"{rows} x {frames} frames and {batch.characters.shape[1] - 2} characters "
            f"({rows * frames * self.frontend.hop:.0f} s with padding)"
        )

    @torch.no_grad()
    def _add_weight_noise(self) -> None:
        """Weight noise as in Graves 2011, fresh at every batch; biases and norms stay as they are."""
        for weight in self._matrices:
            self._clean.append(weight.detach().clone())
            weight.add_(torch.randn_like(weight), alpha=self.settings.weight_noise)

    @torch.no_grad()
    def on_after_backward(self) -> None:
        """The optimiser changes the weights that were there before the noise; exactly those, not about those."""
        if self._clean:
            for weight, clean in zip(self._matrices, self._clean, strict=True):
                weight.copy_(clean)
            self._clean = []

    @property
    def _learned(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *(self.phones.parameters() if self.phones is not None else ())]

    @property
    def _matrices(self) -> list[nn.Parameter]:
        return [p for p in self._learned if p.ndim > 1]

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

    @property
    def sampling(self) -> float:
        """Share of the speller's inputs that are its own outputs now; it rises while the speller learns."""
        c = self.settings
        if not c.scheduled_sampling:
            return 0.0
        epochs = (self.trainer.max_epochs or 1) - c.ctc_only_epochs
        return c.scheduled_sampling * min(1.0, max(0.0, self.epochs_done - c.ctc_only_epochs) / max(epochs, 1e-9))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        if self.settings.consistency:
            batch = batch.twice()
        frames = self.spec_augment.perturb(batch.frames, self.frontend.sample_rate)
        frames = self.spec_augment(self.normalizer(frames, batch.lengths), batch.lengths)
        if self.phones is None:
            h, lengths = self.model.encoder(frames, batch.lengths)
            ctc = self._ctc_loss(h, lengths, batch)
        else:
            taps: list[Tensor] = []
            h, lengths = self.model.encoder(frames, batch.lengths, taps=taps)
            said = self._phones_loss(taps[self.settings.phones_layer - 1], lengths, batch)
            ctc = (1 - self.settings.phones) * self._ctc_loss(h, lengths, batch) + self.settings.phones * said
        if self.epochs_done < self.settings.ctc_only_epochs:
            return self._log_loss(ctc, batch)
        memory = self.model.speller.memory(h, lengths)
        if self.spells_itself:
            inputs, best = self._own_spelling(batch, h, lengths)
        else:
            inputs, best = batch.characters[:, :-1], self._as_said(batch)
            if self.sampling:
                with torch.no_grad():
                    inputs = sampled_inputs(inputs, self.model.speller(inputs, memory)[0], self.sampling)
        logits, weights = self.model.speller(inputs, memory)
        attention = completion_loss(logits, best, self.settings.label_smoothing)
        weight = self.ctc_weight
        loss = (1 - weight) * attention + weight * ctc
        size = len(batch.ids)
        if self.guidance and weights is not None:
            width = self.settings.guided_attention_width
            off = off_diagonal(weights, lengths, best.any(-1).sum(-1), width)
            self.log("train/off_diagonal", off.detach(), batch_size=size)
            loss = loss + self.guidance * off
        if self.text is not None and self.settings.text_weight:
            text = self._text_loss(self.text, batch_idx)
            self.log("train/text", text.detach(), batch_size=size)
            loss = loss + self.settings.text_weight * text
        self.log("train/attention", attention.detach(), batch_size=size)
        return self._log_loss(loss, batch)

    def _ctc_loss(self, h: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        """CTC's loss, and that of its inconsistency where `training.consistency` asks for it."""
        ctc_logits = self.model.ctc(h)
        ctc = ctc_loss(ctc_logits, lengths, batch.characters, batch.character_lengths)
        self.log("train/ctc", ctc.detach(), batch_size=len(batch.ids))
        if not self.settings.consistency:
            return ctc
        apart = consistency_loss(ctc_logits, lengths, batch.character_lengths)
        self.log("train/consistency", apart.detach(), batch_size=len(batch.ids))
        return ctc + self.settings.consistency * apart

    def _phones_loss(self, x: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        """CTC's loss over phones, in nats a phone, from a layer's output (B, N, d).

        After Krishna et al. 2018, "Hierarchical multitask learning for CTC-based speech recognition".
        """
        assert self.phones is not None
        assert self.pronounce is not None
        said = [self.pronounce(text) for text in batch.texts] * (len(x) // len(batch.texts))
        targets = pad_sequence([torch.tensor([0, *phones, 0]) for phones in said], batch_first=True).to(x.device)
        counts = torch.tensor([len(phones) for phones in said], device=x.device)
        loss = ctc_loss(self.phones(x), lengths, targets, counts, zero_infinity=True)
        self.log("train/phones", loss.detach(), batch_size=len(batch.ids))
        return loss

    def _log_loss(self, loss: Tensor, batch: Batch) -> Tensor:
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.ids))
        self._last_loss, self._last_ids = loss.detach(), batch.ids
        return loss

    @property
    def spells_itself(self) -> bool:
        """Whether this step gives the speller what the search makes of the batch.

        All of a batch or none: a search takes hardly longer for more utterances. And the same in all processes, for
        they wait for each other.
        """
        share = self.settings.optimal_completion
        # Spread by the golden ratio: the steps that are logged, every tenth, hold the same share of them as all do.
        return bool(share) and self.trainer.global_step * GOLDEN % 1 < share

    def _as_said(self, batch: Batch) -> Tensor:
        """What to write after each of characters[:, :-1], (B, U + 1, V), where nothing else was written before."""
        said = batch.characters[:, 1:, None]
        return (said == torch.arange(self.model.config.speller.vocabulary, device=said.device)) & (
            said != CharTokenizer.pad_id
        )

    def _own_spelling(self, batch: Batch, h: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Speller inputs (B, T) as the search spells the batch now, and what is best after each (B, T, V).

        Of a batch that is there twice, what the first copy is spelled like serves the second too.
        """
        training = self.model.training
        self.model.eval()
        copies = len(h) // len(batch.ids)
        h, lengths = h[: len(batch.ids)], lengths[: len(batch.ids)]
        with torch.no_grad(), torch.autocast(h.device.type, enabled=False):
            found = beam_search(self.model, h.detach().float(), lengths, JOINT, self.tokenizer)
        self.model.train(training)
        written = [torch.tensor([CharTokenizer.bos_id, *hypothesis.tokens]) for hypothesis, *_ in found]
        inputs = pad_sequence(written * copies, batch_first=True, padding_value=CharTokenizer.pad_id).to(h.device)
        vocabulary = self.model.config.speller.vocabulary
        return inputs, optimal_completions(inputs, batch.characters, batch.character_lengths, vocabulary)

    def _text_loss(self, source: PassageSource, batch_idx: int) -> Tensor:
        """The speller's loss on passages that no other step or process reads, in nats a character."""
        trainer = self.trainer
        several = trainer.accumulate_grad_batches
        number = trainer.global_step * several + batch_idx % several
        characters = source[number * trainer.world_size + self.global_rank].to(self.device)
        logits = self.model.speller.without_speech(characters[:, :-1])
        return spelling_loss(logits, characters, self.settings.label_smoothing)

    # ---- validation ---------------------------------------------------------------------------------------------

    @property
    def search(self) -> str:
        """Which search's WER is `dev/wer`, the one that chooses checkpoints: joint, or what can be used so far.

        Until the CTC-only epochs are over the speller has learned nothing, and joint search would be worse than CTC's
        best path; where the CTC weight is 0, it is the other way about.
        """
        c = self.settings
        if c.ctc_weight == 1 or 0 < c.ctc_only_epochs >= self.epochs_done - 1e-6:  # asked at an epoch's end
            return "ctc"
        return "joint" if c.ctc_weight else "attention"

    def count_errors(
        self, texts: Sequence[str], h: Tensor, lengths: Tensor, ctc_logits: Tensor, index: int = 0
    ) -> Counter[str]:
        """Word errors and words of each search, as "joint errors" and "joint words".

        Args:
            texts: B references.
            h: (B, N, d) encoder states.
            lengths: (B,) encoder states of each row.
            ctc_logits: (B, N, V).
            index: of the batch; see ATTENTION_EVERY.
        """
        searches = {"joint": {"joint": JOINT}, "attention": {"attention": PRESETS["greedy"]}, "ctc": {}}[self.search]
        if self.search == "joint" and index % ATTENTION_EVERY == 0:
            searches["attention"] = ATTENTION
        found = {"ctc": [self.tokenizer.decode(row) for row in ctc_greedy(ctc_logits, lengths)]}
        for name, config in searches.items():
            rows = beam_search(self.model, h, lengths, config, self.tokenizer)
            found[name] = [best.text for best, *_ in rows]
        counts: Counter[str] = Counter()
        for name, hypotheses in found.items():
            counts[f"{name} errors"] = sum(map(word_errors, texts, hypotheses))
            counts[f"{name} words"] = sum(len(text.split()) for text in texts)
        return counts

    def on_validation_epoch_start(self) -> None:
        self._edits = Counter()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._note_shape(batch)
        size = len(batch.ids)
        h, lengths = self.model.encoder(self.normalizer(batch.frames, batch.lengths), batch.lengths)
        logits, _ = self.model.speller(batch.characters[:, :-1], self.model.speller.memory(h, lengths))
        ctc_logits = self.model.ctc(h)
        targets = batch.characters, batch.character_lengths
        attention, ctc = joint_loss(logits, ctc_logits, lengths, *targets, zero_infinity=True)
        self.log("dev/attention", attention, batch_size=size, sync_dist=True)
        self.log("dev/ctc", ctc, batch_size=size, sync_dist=True)
        self._edits += self.count_errors(batch.texts, h, lengths, ctc_logits, batch_idx)

    def on_validation_epoch_end(self) -> None:
        names = [f"{search} {what}" for search in ("joint", "attention", "ctc") for what in ("errors", "words")]
        summed = torch.tensor([self._edits[name] for name in names], dtype=torch.float64)
        summed = self.trainer.strategy.reduce(summed.to(self.device), reduce_op="sum")
        counts = dict(zip(names, summed, strict=True))

        def wer(search: str) -> Tensor:
            return (counts[f"{search} errors"] / counts[f"{search} words"].clamp_min(1)).float()

        # Already the same in all processes; without sync_dist Lightning would warn that it may not be.
        self.log("dev/wer", wer(self.search), prog_bar=True, sync_dist=True)
        self.log("dev/wer_ctc", wer("ctc"), prog_bar=True, sync_dist=True)
        if self.search != "ctc":
            self.log("dev/wer_attention", wer("attention"), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["data"] = self.data
        checkpoint["processes"] = self.trainer.world_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning counts the batches of each process; with another number of these it would stop elsewhere."""
        before, now = checkpoint.get("processes"), self.trainer.world_size
        if before in (None, now):
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        current = progress["current"]
        everyones, under_way = current["processed"] * before, current["processed"] - current["completed"]
        here = math.ceil(everyones / now) if progress["is_last_batch"] else everyones // now
        current |= {"ready": here, "started": here, "processed": here, "completed": here - under_way}

    # ---- clipping, and bad numbers -------------------------------------------------------------------------------

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient; make a step whose loss or gradient is not finite harmless, and stop if they go on.

        The fused optimiser itself leaves the weights alone where `found_inf` is 1, so nothing has to wait for the
        device here; on CUDA the verdicts are read some steps later.
        """
        norm = nn.utils.clip_grad_norm_(self._learned, self.settings.gradient_clip)
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
