"""Audio -> segments -> batches -> text."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asr import audio
from asr.bundle import Bundle, load_bundle
from asr.decoding.beam_search import PRESETS, DecodingConfig, Hypothesis, beam_search
from asr.errors import AudioError, ConfigError, ModelError
from asr.writers import Segment, Transcript

__all__ = ["ASSETS", "DEFAULT_MODEL", "Transcriber", "find_model", "load_model", "pick_device", "split_at_pauses"]

ASSETS = Path(__file__).parent / "assets"
DEFAULT_MODEL = "mini"  # a folder of ASSETS
MAX_SEGMENT = 20.0  # seconds; longer audio is cut at its quietest moments
SILENCE = 1e-3  # RMS (-60 dB of full scale); where the loudest moment stays below, nobody speaks


def find_model(model: str | Path | None = None) -> Path:
    """A model folder by its path, or the name of one that ships; the default one for None."""
    if model is None:
        model = DEFAULT_MODEL
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


class Transcriber:
    """Turns sources into transcripts, many at a time.

    Args:
        bundle: the model.
        decoding: how to search; greedy by default.
        batch_seconds: speech decoded together; more is faster and takes more memory.
    """

    def __init__(self, bundle: Bundle, decoding: DecodingConfig | None = None, batch_seconds: float = 120.0) -> None:
        self.bundle = bundle
        self.decoding = decoding or PRESETS["greedy"]
        self.batch_seconds = batch_seconds

    @torch.inference_mode()
    def recognise(self, frames: Sequence[torch.Tensor]) -> list[list[Hypothesis]]:
        """Normalised frames (T, n_mels) of several segments -> the n best hypotheses of each."""
        if not frames:
            return []
        # An utterance shorter than one encoder state still needs one.
        reduction = self.bundle.model.encoder.config.reduction
        lengths = torch.tensor([max(len(f), reduction) for f in frames], device=self.bundle.device)
        padded = frames[0].new_zeros(len(frames), int(lengths.max()), frames[0].shape[1])
        for row, f in zip(padded, frames, strict=True):
            row[: len(f)] = f
        h, lengths = self.bundle.model.encoder(padded, lengths)
        return beam_search(self.bundle.model, h, lengths, self.decoding, self.bundle.tokenizer)

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
        texts: dict[int, Hypothesis] = {}
        # Pieces of like length share a batch, so that little of it is padding.
        order = sorted(spoken, key=lambda p: p.end - p.start)
        for group in _grouped(order, self.batch_seconds):
            for piece, best in zip(group, self.recognise([p.frames for p in group]), strict=True):  # type: ignore[misc]
                if best:
                    texts[id(piece)] = best[0]
        total = sum(length for _, _, length, _, _ in waiting)
        share = (time.perf_counter() - began) / total if total else 0.0
        for source, name, length, reading, pieces in waiting:
            if isinstance(pieces, AudioError):
                yield source, pieces
                continue
            segments = tuple(Segment(p.start, p.end, texts[id(p)].text) for p in pieces if id(p) in texts)
            text = " ".join(s.text for s in segments if s.text)
            rtf = reading / length + share
            yield source, Transcript(name, length, text, segments, model=self.bundle.name, real_time_factor=rtf)


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


def load_model(path: str | Path | None = None, device: str = "auto", **decoding: Any) -> Transcriber:
    """Load a model folder, or the model that ships.

    Args:
        path: folder with `model.safetensors` and `config.yaml`, or the name of a model that ships.
        device: auto, cpu or cuda.
        decoding: settings of `asr.decoding.beam_search.DecodingConfig`, such as `beam=8`; what is not named is as
            in its presets `greedy` or, with a beam above 1, `beam_ctc`.

    Raises:
        ModelError: no such model, or it is damaged.
    """
    preset = PRESETS["beam_ctc" if decoding.get("beam", 1) > 1 else "greedy"]
    try:
        config = replace(preset, **decoding)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"decoding: {error}") from None
    return Transcriber(load_bundle(find_model(path), pick_device(device)), config)
