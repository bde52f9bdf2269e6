"""Audio -> segments -> batches -> text."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asr import audio
from asr.bundle import Bundle, load_bundle
from asr.config import from_mapping, to_mapping
from asr.decoding.alignment import Confidence, WordTiming, align_batch, geometric_mean
from asr.decoding.beam_search import PRESETS, DecodingConfig, Hypothesis, beam_search
from asr.errors import AudioError, ConfigError, ModelError
from asr.model.language_model import SETTINGS
from asr.writers import Segment, Transcript, Word

__all__ = [
    "ASSETS",
    "DEFAULT_MODEL",
    "Transcriber",
    "choose_decoding",
    "find_model",
    "load_model",
    "pick_device",
    "split_at_pauses",
    "word_settings",
]

ASSETS = Path(__file__).parent / "assets"
DEFAULT_MODEL = "mini"  # a folder of ASSETS
MAX_SEGMENT = 20.0  # seconds; longer audio is cut at its quietest moments
SILENCE = 1e-3  # RMS (-60 dB of full scale); where the loudest moment stays below, nobody speaks


def find_model(model: str | Path | None = None) -> Path:
    """A model folder by its path, or the name of one that ships; the default one for None."""
    if model is None:
        return ASSETS / DEFAULT_MODEL
    path = Path(model)
    if path.is_dir():
        return path
    shipped = sorted(p.parent.name for p in ASSETS.glob("*/config.yaml"))
    if str(model) in shipped:
        return ASSETS / str(model)
    raise ModelError(f"{model}: no such model folder; models that ship: {', '.join(shipped) or 'none'}")


def pick_device(device: str = "auto") -> torch.device:
    """`auto` takes CUDA where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("device cuda: this machine has no CUDA GPU that PyTorch can use; try --device cpu")
    try:
        return torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device {device!r}: use auto, cpu or cuda") from None


@dataclass(frozen=True)
class _Piece:
    """A stretch of one source that is decoded as one."""

    start: float  # s
    end: float  # s
    frames: torch.Tensor | None  # (T, n_mels) normalised; None where there is only silence


@dataclass(frozen=True)
class _Recognised:
    """What was found in one piece."""

    text: str
    words: tuple[Word, ...] = ()  # on the source's clock


class Transcriber:
    """Turns sources into transcripts, many at a time.

    Args:
        bundle: the model.
        decoding: how to search; by default the preset `greedy_ctc`, with a language model only if its `lm_weight` asks.
        batch_seconds: speech decoded together; more is faster and takes more memory.
        words: whether transcripts have word times and confidences, which cost a little more.

    Raises:
        ConfigError: a language model is asked for, but the bundle has none.
        ModelError: the language model is damaged; or words are wanted, but the model's settings for them make no sense.
    """

    def __init__(
        self,
        bundle: Bundle,
        decoding: DecodingConfig | None = None,
        batch_seconds: float = 120.0,
        words: bool = False,
    ) -> None:
        self.bundle = bundle
        self.decoding = decoding or PRESETS["greedy_ctc"]
        self.batch_seconds = batch_seconds
        self.words = words
        self.language_model = bundle.language_model if self.decoding.lm_weight else None
        if self.decoding.lm_weight and self.language_model is None:
            raise ConfigError(
                f"lm_weight is {self.decoding.lm_weight:g}, but {bundle.path or 'the model'} has no language model; "
                "set it to 0"
            )
        if words:
            self.timing, self.confidence = word_settings(bundle)

    @property
    def seconds_per_state(self) -> float:
        return self.bundle.frontend.config.hop * self.bundle.model.encoder.config.reduction

    @torch.inference_mode()
    def recognise(self, frames: Sequence[torch.Tensor]) -> list[list[Hypothesis]]:
        """Normalised frames (T, n_mels) of several segments -> the n best hypotheses of each."""
        return self.search(*self.encode(frames)) if frames else []

    @torch.inference_mode()
    def encode(self, frames: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised frames (T, n_mels) of several segments -> encoder states (B, N, d) and their lengths (B,)."""
        # An utterance shorter than one encoder state still needs one.
        reduction = self.bundle.model.encoder.config.reduction
        lengths = torch.tensor([max(len(f), reduction) for f in frames], device=self.bundle.device)
        padded = frames[0].new_zeros(len(frames), int(lengths.max()), frames[0].shape[1])
        for row, f in zip(padded, frames, strict=True):
            row[: len(f)] = f
        return self.bundle.model.encoder(padded, lengths)

    def search(self, h: torch.Tensor, lengths: torch.Tensor) -> list[list[Hypothesis]]:
        """Encoder states (B, N, d), lengths (B,) -> the n best hypotheses of each."""
        return beam_search(self.bundle.model, h, lengths, self.decoding, self.bundle.tokenizer, self.language_model)

    @torch.inference_mode()
    def _recognise_pieces(self, pieces: Sequence[_Piece]) -> list[_Recognised]:
        """The best hypothesis of each piece and, where they are wanted, its words on the source's clock."""
        h, lengths = self.encode([p.frames for p in pieces if p.frames is not None])
        best = [hypotheses[0] for hypotheses in self.search(h, lengths)]
        if not self.words:
            return [_Recognised(b.text) for b in best]
        words = align_batch(
            self.bundle.model.ctc(h).log_softmax(-1),
            lengths,
            [b.tokens for b in best],
            self.bundle.tokenizer,
            self.seconds_per_state,
            token_scores=[b.token_scores for b in best],
            attention=[b.attention for b in best],
            durations=[p.end - p.start for p in pieces],
            timing=self.timing,
            confidence=self.confidence,
        )
        return [
            _Recognised(
                b.text, tuple(replace(w, start=p.start + w.start, end=min(p.start + w.end, p.end)) for w in found)
            )
            for b, p, found in zip(best, pieces, words, strict=True)
        ]

    def transcribe(self, source: Any, name: str | None = None) -> Transcript:
        """One source: a path, bytes, a file object, or an array at the model's sample rate.

        Raises:
            AudioError: the source cannot be read.
        """
        ((_, result),) = self.transcribe_all([source], [name] if name else None)
        if isinstance(result, AudioError):
            raise result
        return result

    def transcribe_all(
        self, sources: Iterable[Any], names: Sequence[str] | None = None
    ) -> Iterator[tuple[Any, Transcript | AudioError]]:
        """Each source with its transcript, or with what is wrong with it, in the order given.

        Sources are read as they are needed and short ones are decoded together.
        """
        waiting: list[tuple[Any, str, float, float, list[_Piece] | AudioError]] = []
        seconds = 0.0
        for i, source in enumerate(sources):
            began = time.perf_counter()
            name = names[i] if names else _name(source)
            try:
                samples = audio.load(source, self.bundle.frontend.config.sample_rate, name=name)
                length = len(samples) / self.bundle.frontend.config.sample_rate
                pieces: list[_Piece] | AudioError = self._pieces(samples)
                seconds += length
            except AudioError as error:
                length, pieces = 0.0, error
            waiting.append((source, name, length, time.perf_counter() - began, pieces))
            if seconds >= self.batch_seconds:
                yield from self._decoded(waiting)
                waiting, seconds = [], 0.0
        yield from self._decoded(waiting)

    def _pieces(self, samples: np.ndarray) -> list[_Piece]:
        rate = self.bundle.frontend.config.sample_rate
        pieces = []
        for start, end in split_at_pauses(samples, rate, MAX_SEGMENT):
            part = samples[start:end]
            frames = None if is_silent(part, rate) else self.bundle.encode(torch.from_numpy(np.ascontiguousarray(part)))
            pieces.append(_Piece(start / rate, end / rate, frames))
        return pieces

    def _decoded(
        self, waiting: Sequence[tuple[Any, str, float, float, list[_Piece] | AudioError]]
    ) -> Iterator[tuple[Any, Transcript | AudioError]]:
        began = time.perf_counter()
        spoken = [p for *_, pieces in waiting if isinstance(pieces, list) for p in pieces if p.frames is not None]
        found: dict[int, _Recognised] = {}
        # Pieces of like length share a batch, so that little of it is padding.
        order = sorted(spoken, key=lambda p: p.end - p.start)
        for group in _grouped(order, self.batch_seconds):
            found.update(zip(map(id, group), self._recognise_pieces(group), strict=True))
        total = sum(length for _, _, length, _, _ in waiting)
        share = (time.perf_counter() - began) / total if total else 0.0
        for source, name, length, reading, pieces in waiting:
            if isinstance(pieces, AudioError):
                yield source, pieces
                continue
            recognised = [(p, found[id(p)]) for p in pieces if id(p) in found]
            segments = tuple(Segment(p.start, p.end, r.text, _mean_confidence(r.words), r.words) for p, r in recognised)
            text = " ".join(s.text for s in segments if s.text)
            confidence = _mean_confidence([word for s in segments for word in s.words])
            rtf = reading / length + share
            yield source, Transcript(name, length, text, segments, confidence, self.bundle.name, rtf)


def word_settings(bundle: Bundle) -> tuple[WordTiming, Callable[[Sequence[float]], float]]:
    """How the model's words are timed and how sure they are: `word_times` and `confidence` of its training summary.

    Raises:
        ModelError: they make no sense.
    """
    try:
        timing = from_mapping(WordTiming, bundle.training.get("word_times") or {}, "training.word_times")
        calibration = bundle.training.get("confidence")
        if not calibration:
            return timing, geometric_mean
        return timing, from_mapping(Confidence, calibration, "training.confidence")
    except (ConfigError, AttributeError, TypeError) as error:
        raise ModelError(f"{bundle.path}/config.yaml: {error}; fit them again with word_times.py save=true") from error


def _mean_confidence(words: Sequence[Word]) -> float | None:
    """The share of the words that should be right; None without words."""
    sure = [word.confidence for word in words if word.confidence is not None]
    return sum(sure) / len(sure) if sure else None


def _name(source: Any) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else "audio"


def _grouped(pieces: Sequence[_Piece], seconds: float) -> Iterator[list[_Piece]]:
    group: list[_Piece] = []
    for piece in pieces:
        if group and (len(group) + 1) * (piece.end - piece.start) > seconds:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _levels(samples: np.ndarray, width: int) -> np.ndarray:
    """Mean power of each `width` samples of (T,); the rest at the end, if any, makes one more."""
    power = np.square(samples, dtype=np.float64)
    return np.add.reduceat(power, np.arange(0, len(power), width)) / width if len(power) else power


def is_silent(samples: np.ndarray, sample_rate: int) -> bool:
    """Whether no 25 ms stretch of (T,) samples is louder than SILENCE."""
    return bool(_levels(samples, sample_rate // 40).max(initial=0.0) < SILENCE**2)


def split_at_pauses(samples: np.ndarray, sample_rate: int, longest: float = MAX_SEGMENT) -> list[tuple[int, int]]:
    """Cut (T,) samples into pieces of at most `longest` seconds, each cut in the quietest 0.2 s of its last half.

    Returns (start, end) in samples; the pieces follow each other without a gap.
    """
    limit, step = int(longest * sample_rate), sample_rate // 100
    pieces, start = [], 0
    while len(samples) - start > limit:
        first = start + limit // 2
        level = np.convolve(_levels(samples[first : start + limit], step), np.ones(20), "valid")
        cut = first + (int(level.argmin()) + 10) * step
        pieces.append((start, cut))
        start = cut
    pieces.append((start, len(samples)))
    return pieces


def choose_decoding(bundle: Bundle, **settings: Any) -> DecodingConfig:
    """How to search with this model where only some `settings` of DecodingConfig, or none, are given.

    What is not given is as the model's folder says (`decoding:` in language_model.yaml) where it has a language model,
    else as in the presets `greedy_ctc` or, with a beam above 1, `beam_ctc`. An `lm_weight` of 0 leaves the language
    model out, and so does a `beam` of 1 unless there is an `lm_weight`: without alternatives at hand it does harm.

    Raises:
        ConfigError: a setting does not exist or cannot work.
        ModelError: the settings in the model's folder make no sense.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    preset = PRESETS["beam_ctc" if given.get("beam", 1) > 1 else "greedy_ctc"]
    if bundle.language_model_path and given.get("lm_weight", given.get("beam", 2) > 1):
        tuned = bundle.language_model_settings.get("decoding") or {}
        try:
            preset = from_mapping(DecodingConfig, {**to_mapping(PRESETS["beam_ctc_lm"]), **tuned}, "decoding")
        except (ConfigError, TypeError) as error:
            raise ModelError(f"{bundle.language_model_path / SETTINGS}: {error}; tune.py save=true mends it") from error
    try:
        # A narrower beam than the tuned one has room for fewer results.
        return replace(preset, **{"nbest": min(preset.nbest, given.get("beam", preset.beam)), **given})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"decoding: {error}") from None


def load_model(
    path: str | Path | None = None, device: str = "auto", words: bool = False, **decoding: Any
) -> Transcriber:
    """Load a model folder, or the model that ships.

    Args:
        path: folder with `model.safetensors` and `config.yaml`, or the name of a model that ships.
        device: auto, cpu or cuda.
        words: whether transcripts have word times and confidences.
        decoding: settings of `asr.decoding.beam_search.DecodingConfig`, such as `beam=8` or, to leave out the model's
            language model, `lm_weight=0`; the others are as `choose_decoding` says.

    Raises:
        ModelError: no such model, or it is damaged.
        ConfigError: a setting cannot work.
    """
    bundle = load_bundle(find_model(path), pick_device(device))
    return Transcriber(bundle, choose_decoding(bundle, **decoding), words=words)
