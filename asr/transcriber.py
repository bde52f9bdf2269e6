"""Audio -> segments -> batches -> text."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from asr import audio
from asr.bundle import Bundle, load_bundle
from asr.config import from_mapping, to_mapping
from asr.decoding.adaptation import adapt
from asr.decoding.alignment import Confidence, WordTiming, align_batch, geometric_mean
from asr.decoding.beam_search import PRESETS, DecodingConfig, Hypothesis, beam_search
from asr.errors import AudioError, ConfigError, ModelError
from asr.frontend import band_warps
from asr.model.encoder import Adaptation
from asr.model.language_model import SETTINGS
from asr.segmenter import Loudness, Segmenter, SegmenterConfig, SileroVad, SpeechDetector, Stretch
from asr.writers import Alternative, Segment, Transcript, Word

__all__ = [
    "ASSETS",
    "DEFAULT_MODEL",
    "Transcriber",
    "choose_decoding",
    "find_model",
    "load_model",
    "pick_device",
    "word_settings",
]

ASSETS = Path(__file__).parent / "assets"
DEFAULT_MODEL = "mini"  # a folder of ASSETS
BLOCK_SECONDS = 30.0  # audio read at a time
MAX_BATCH, MAX_ROWS = 32, 256  # segments, and hypotheses, decoded together unless said otherwise; more gains little
PRUNED_BEAM = 16  # hypotheses that pruning leaves of a wide beam, more or less
ADAPT = ("file", "all")  # what one voice is heard in
ADAPTING = 2 / 3  # of the time; the rest is the second search
BATCHES_AHEAD = 4  # so many batches of segments are collected and sorted by length, so that little of them is padding


def find_model(model: str | Path | None = None) -> Path:
    """A model folder by its path, or the name of one that ships; the default one for None."""
    if model is None:
        return ASSETS / DEFAULT_MODEL
    path = Path(model)
    if os.path.isdir(path):
        return path
    shipped = sorted(p.parent.name for p in ASSETS.glob("*/config.yaml"))
    if str(model) in shipped:
        return ASSETS / str(model)
    raise ModelError(f"{model}: no such model folder; models that ship: {', '.join(shipped) or 'none'}")


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """`auto` takes CUDA where there is one."""
    device = str(device)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("device cuda: this machine has no CUDA GPU that PyTorch can use; try --device cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        picked = None
    if picked is None or picked.type not in ("cpu", "cuda"):  # Apple's MPS lacks the double precision that CTC needs
        raise ConfigError(f"device {device!r}: use auto, cpu or cuda")
    return picked


@dataclass(eq=False)
class _Job:
    """One source on its way to a transcript."""

    source: Any
    name: str
    duration: float = 0.0  # s that have been read
    computing: float = 0.0  # s
    waiting: int = 0  # pieces that are still to be decoded
    read: bool = False  # to its end
    error: AudioError | None = None
    segments: list[Segment] = field(default_factory=list)


@dataclass
class _Piece:
    """A stretch of speech of one source that is decoded as one."""

    job: _Job
    start: float  # s
    end: float  # s
    frames: torch.Tensor  # (T, n_mels) normalised


class Transcriber:
    """Turns sources into transcripts, many at a time.

    Args:
        bundle: the model.
        decoding: how to search; by default the preset `greedy_ctc`, with a language model only if its `lm_weight` asks.
        batch_size: segments decoded together, also those of different sources; more is faster and takes more memory.
            By default 32, or as many as make 256 hypotheses.
        words: whether transcripts have word times and confidences, which cost a little more.
        vad: whether a voice activity detector says where speech is. Otherwise whatever is not silence counts, as it
            does where the model's sample rate is not the detector's 16 kHz.
        segmentation: how sources are cut into segments.
        adapt: `file` or `all`: search twice, and in between get used to the voice, one for each source or one for all;
            fewer errors for three times the time. The features of that much speech are kept, 115 MB an hour.
        on_segment: called with the name of the source, each segment that is found in it, its best hypothesis, and its
            normalised frames (T, n_mels).

    Raises:
        ConfigError: a language model is asked for, but the bundle has none; or `adapt` or `batch_size` makes no sense.
        ModelError: the language model is damaged; or words are wanted, but the model's settings for them make no sense.
    """

    def __init__(
        self,
        bundle: Bundle,
        decoding: DecodingConfig | None = None,
        *,
        batch_size: int | None = None,
        words: bool = False,
        vad: bool = True,
        segmentation: SegmenterConfig | None = None,
        adapt: str | None = None,
        on_segment: Callable[[str, Segment, Hypothesis, torch.Tensor], None] | None = None,
    ) -> None:
        if adapt not in (None, *ADAPT):
            raise ConfigError(f"adapt {adapt!r}: use {' or '.join(ADAPT)}")
        if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
            raise ConfigError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        self.bundle = bundle
        self.decoding = decoding or PRESETS["greedy_ctc"]
        beam = self.decoding.beam if math.isinf(self.decoding.prune) else min(self.decoding.beam, PRUNED_BEAM)
        self.batch_size = batch_size or max(1, min(MAX_BATCH, MAX_ROWS // beam))
        self.words = words
        self.vad = vad and self.sample_rate == SileroVad.sample_rate
        self.segmentation = segmentation or SegmenterConfig()
        self.adapt_to = adapt
        self.on_segment = on_segment
        self.warps = self._warps()
        self.language_model = bundle.language_model if self.decoding.lm_weight else None
        if self.decoding.lm_weight and self.language_model is None:
            raise ConfigError(
                f"lm_weight is {self.decoding.lm_weight:g}, but {bundle.path or 'the model'} has no language model; "
                "set it to 0"
            )
        if words:
            self.timing, self.confidence = word_settings(bundle, self.decoding)

    @property
    def sample_rate(self) -> int:
        return self.bundle.frontend.config.sample_rate

    @property
    def seconds_per_state(self) -> float:
        return self.bundle.frontend.config.hop * self.bundle.model.encoder.config.reduction

    def _warps(self) -> torch.Tensor | None:
        """What the encoder's input is multiplied by at each phase: (phases, n_mels, n_mels)."""
        warp, frontend = self.decoding.warp, self.bundle.frontend.config
        if not warp or self.decoding.phases == 1:
            return None
        factors = torch.linspace(1 - warp, 1 + warp, self.decoding.phases, device=self.bundle.device)
        return band_warps(factors, frontend.n_mels, frontend.sample_rate)

    @torch.inference_mode()
    def recognise(self, frames: Sequence[torch.Tensor], adaptation: Adaptation | None = None) -> list[list[Hypothesis]]:
        """Normalised frames (T, n_mels) of several segments -> the n best hypotheses of each."""
        return self.search(*self.encode(frames, adaptation)) if frames else []

    def adapt(
        self, groups: Sequence[Sequence[torch.Tensor]], on_progress: Callable[[float], None] | None = None
    ) -> Adaptation:
        """Get used to the voice of these segments, normalised frames (T, n_mels), which are searched group by group.

        `on_progress` is called with the share of the work that was done since the last call.
        """
        tell = on_progress or (lambda _: None)
        everything = [frames for group in groups for frames in group]
        total = sum(map(len, everything)) or 1
        written = []
        for group in groups:
            written += [hypotheses[0].tokens for hypotheses in self.recognise(group)]
            tell(sum(map(len, group)) / total / 2)
        weight = self.decoding.ctc_weight
        return adapt(self.bundle.model, everything, written, weight, lambda share: tell(share / 2))

    @torch.inference_mode()
    def encode(
        self, frames: Sequence[torch.Tensor], adaptation: Adaptation | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised frames (T, n_mels) of several segments -> encoder states (B, N, d) and their lengths (B,)."""
        # An utterance shorter than one encoder state still needs one.
        reduction = self.bundle.model.encoder.config.reduction
        lengths = torch.tensor([max(len(f), reduction) for f in frames], device=self.bundle.device)
        padded = frames[0].new_zeros(len(frames), int(lengths.max()), frames[0].shape[1])
        for row, f in zip(padded, frames, strict=True):
            row[: len(f)] = f
        return self.bundle.model.listen(padded, lengths, self.decoding.phases, self.warps, adaptation)

    def search(self, h: torch.Tensor, lengths: torch.Tensor) -> list[list[Hypothesis]]:
        """Encoder states (B, N, d), lengths (B,) -> the n best hypotheses of each."""
        return beam_search(self.bundle.model, h, lengths, self.decoding, self.bundle.tokenizer, self.language_model)

    # --- sources ---

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
        self,
        sources: Iterable[Any],
        names: Sequence[str] | None = None,
        on_progress: Callable[[str, float], None] | None = None,
        in_order: bool = True,
    ) -> Iterator[tuple[Any, Transcript | AudioError]]:
        """Each source with its transcript, or with what is wrong with it, in the order given and as soon as it is done.

        Sources are read block by block as they are needed, however long they are, and segments of many are decoded
        together. `on_progress` is called with the name of the source that is being read and the seconds of audio that
        were finished since the last call. Without `in_order` no source waits for those before it.
        """
        jobs: list[_Job] = []
        waiting: list[_Piece] = []
        heard = told = 0.0

        def tell(name: str, now: float) -> None:
            nonlocal told
            if on_progress:
                on_progress(name, now - told)
            told = now

        def decode(name: str, end: float) -> Iterator[tuple[Any, Transcript | AudioError]]:
            nonlocal waiting
            start, pieces, waiting = told, waiting, []
            for _ in self._decode(pieces, lambda share: tell(name, start + share * (end - start))):
                yield from self._finished(jobs, in_order)
            tell(name, end)

        for i, source in enumerate(sources):
            job = _Job(source, names[i] if names else _name(source))
            jobs.append(job)
            try:
                for piece in _timed(self._pieces(job), job):
                    waiting.append(piece)
                    if not self.adapt_to and len(waiting) >= BATCHES_AHEAD * self.batch_size:
                        yield from decode(job.name, heard + job.duration)
            except AudioError as error:
                job.error = error
                waiting = [piece for piece in waiting if piece.job is not job]
            job.read = True
            heard += job.duration
            if not waiting:
                tell(job.name, heard)
            elif self.adapt_to == "file":
                yield from decode(job.name, heard)
            yield from self._finished(jobs, in_order)
        if waiting:
            yield from decode(job.name, heard)
        yield from self._finished(jobs, in_order)

    def listen(self, blocks: Iterable[audio.Samples]) -> Iterator[Segment]:
        """Blocks of samples (T,) of one live source -> what was said, segment by segment as pauses end them."""
        job, segmenter = _Job(None, "audio"), self._segmenter()
        for block in blocks:
            yield from self._heard(job, segmenter.feed(block))
        yield from self._heard(job, segmenter.finish())

    def _heard(self, job: _Job, stretches: Sequence[Stretch]) -> Iterator[Segment]:
        pieces = [self._piece(job, stretch) for stretch in stretches]
        for start in range(0, len(pieces), self.batch_size):
            segments = self._recognise_pieces(pieces[start : start + self.batch_size])
            yield from (segment for segment in segments if segment.text)

    @cached_property
    def _detector(self) -> SpeechDetector:
        return SileroVad() if self.vad else Loudness(self.sample_rate)

    def _segmenter(self) -> Segmenter:
        # A copy, as it has a state: several sources may be listened to at a time.
        return Segmenter(copy(self._detector), self.sample_rate, self.segmentation)

    def _pieces(self, job: _Job) -> Iterator[_Piece]:
        """The stretches of speech in a source, as it is read."""
        segmenter = self._segmenter()
        for block in audio.stream(job.source, self.sample_rate, BLOCK_SECONDS, name=job.name):
            job.duration += len(block) / self.sample_rate
            yield from (self._piece(job, stretch) for stretch in segmenter.feed(block))
        yield from (self._piece(job, stretch) for stretch in segmenter.finish())

    def _piece(self, job: _Job, stretch: Stretch) -> _Piece:
        job.waiting += 1
        frames = self.bundle.encode(torch.from_numpy(stretch.samples))
        return _Piece(job, stretch.start / self.sample_rate, stretch.end / self.sample_rate, frames)

    def _decode(self, pieces: Sequence[_Piece], on_progress: Callable[[float], None]) -> Iterator[None]:
        """Recognise the pieces, those of like length together, and hand each its segment; yields after each batch.

        `on_progress` is called with the share of the work that is done so far.
        """
        ordered = sorted(pieces, key=lambda piece: len(piece.frames))
        groups = [ordered[start : start + self.batch_size] for start in range(0, len(ordered), self.batch_size)]
        adaptation, done, search = None, 0.0, 1.0
        length = sum(len(piece.frames) for piece in pieces) or 1

        def advance(share: float) -> None:
            nonlocal done
            done += share
            on_progress(done)

        if self.adapt_to:
            began, search = time.perf_counter(), 1 - ADAPTING
            heard = [[piece.frames for piece in group] for group in groups]
            adaptation = self.adapt(heard, lambda share: advance(ADAPTING * share))
            _charge(pieces, time.perf_counter() - began)
        for group in groups:
            began = time.perf_counter()
            segments = self._recognise_pieces(group, adaptation)
            _charge(group, time.perf_counter() - began)
            for piece, segment in zip(group, segments, strict=True):
                piece.job.waiting -= 1
                if segment.text:
                    piece.job.segments.append(segment)
            advance(search * sum(len(piece.frames) for piece in group) / length)
            yield

    @torch.inference_mode()
    def _recognise_pieces(self, pieces: Sequence[_Piece], adaptation: Adaptation | None = None) -> list[Segment]:
        """What was said in each piece, on the source's clock."""
        if not pieces:
            return []
        h, lengths = self.encode([piece.frames for piece in pieces], adaptation)
        found = self.search(h, lengths)
        words = self._words(h, lengths, found, pieces) if self.words else [()] * len(pieces)
        segments = []
        for piece, hypotheses, spoken in zip(pieces, found, words, strict=True):
            best = hypotheses[0]
            ranked = tuple(Alternative(h.text, h.score) for h in hypotheses) if self.decoding.nbest > 1 else ()
            segment = Segment(piece.start, piece.end, best.text, _mean_confidence(spoken), spoken, ranked)
            segments.append(segment)
            if self.on_segment and best.text:
                self.on_segment(piece.job.name, segment, best, piece.frames)
        return segments

    def _words(
        self, h: torch.Tensor, lengths: torch.Tensor, found: list[list[Hypothesis]], pieces: Sequence[_Piece]
    ) -> list[tuple[Word, ...]]:
        """The words of the best hypothesis of each piece, on the source's clock."""
        best = [hypotheses[0] for hypotheses in found]
        aligned = align_batch(
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
            tuple(replace(w, start=p.start + w.start, end=min(p.start + w.end, p.end)) for w in words)
            for p, words in zip(pieces, aligned, strict=True)
        ]

    def _finished(self, jobs: list[_Job], in_order: bool) -> Iterator[tuple[Any, Transcript | AudioError]]:
        """Take what is done off the list; in order, what none that is not done stands before."""
        for job in list(jobs):
            if not (job.error or (job.read and not job.waiting)):
                if in_order:
                    return
                continue
            jobs.remove(job)
            if job.error:
                yield job.source, job.error
                continue
            segments = tuple(sorted(job.segments, key=lambda segment: segment.start))
            text = " ".join(segment.text for segment in segments)
            confidence = _mean_confidence([word for segment in segments for word in segment.words])
            factor = job.computing / job.duration
            yield job.source, Transcript(job.name, job.duration, text, segments, confidence, self.bundle.name, factor)


def _charge(pieces: Sequence[_Piece], seconds: float) -> None:
    """Add a computing time to those of the jobs that these pieces are of."""
    share = seconds / sum(piece.end - piece.start for piece in pieces)
    for piece in pieces:
        piece.job.computing += share * (piece.end - piece.start)


def _timed(pieces: Iterator[_Piece], job: _Job) -> Iterator[_Piece]:
    """The pieces, and the time that finding them takes added to the job's."""
    while True:
        began = time.perf_counter()
        piece = next(pieces, None)
        job.computing += time.perf_counter() - began
        if piece is None:
            return
        yield piece


def confidence_key(bundle: Bundle, decoding: DecodingConfig) -> str:
    """Where the training summary has what was fitted to such a search: scores with a language model are others."""
    left_out = bundle.language_model_path and not decoding.lm_weight
    return "confidence_without_lm" if left_out else "confidence"


def word_settings(bundle: Bundle, decoding: DecodingConfig) -> tuple[WordTiming, Callable[[Sequence[float]], float]]:
    """How the model's words are timed and how sure they are: what `word_times.py` wrote into its training summary.

    Raises:
        ModelError: they make no sense.
    """
    key = confidence_key(bundle, decoding)
    try:
        timing = from_mapping(WordTiming, bundle.training.get("word_times") or {}, "training.word_times")
        calibration = bundle.training.get(key)
        if not calibration:
            return timing, geometric_mean
        return timing, from_mapping(Confidence, calibration, f"training.{key}")
    except (ConfigError, AttributeError, TypeError) as error:
        raise ModelError(f"{bundle.path}/config.yaml: {error}; fit them again with word_times.py save=true") from error


def _mean_confidence(words: Sequence[Word]) -> float | None:
    """The share of the words that should be right, as far as confidences are fitted; None without words."""
    sure = [word.confidence for word in words if word.confidence is not None]
    return sum(sure) / len(sure) if sure else None


def _name(source: Any) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else "audio"


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
    greedy = given.get("beam") == 1
    preset = PRESETS["beam_ctc" if "beam" in given and not greedy else "greedy_ctc"]
    if bundle.language_model_path and given.get("lm_weight", not greedy):
        tuned = bundle.language_model_settings.get("decoding") or {}
        try:
            merged = {**to_mapping(PRESETS["beam_ctc_lm"]), **tuned}
            merged.pop("adapt", None)  # a setting once, which tune.py saved with the others
            preset = from_mapping(DecodingConfig, merged, "decoding")
        except (ConfigError, TypeError) as error:
            raise ModelError(f"{bundle.language_model_path / SETTINGS}: {error}; tune.py save=true mends it") from error
    if isinstance(beam := given.get("beam"), int):  # a narrower one than the tuned has room for fewer results
        given.setdefault("nbest", max(1, min(preset.nbest, beam)))
    return from_mapping(DecodingConfig, {**to_mapping(preset), **given}, "decoding")


def load_model(
    path: str | Path | None = None,
    device: str = "auto",
    *,
    batch_size: int | None = None,
    words: bool = False,
    vad: bool = True,
    segmentation: SegmenterConfig | None = None,
    adapt: str | None = None,
    **decoding: Any,
) -> Transcriber:
    """Load a model folder, or the model that ships.

    Args:
        path: folder with `model.safetensors` and `config.yaml`, or the name of a model that ships.
        device: auto, cpu or cuda.
        batch_size, words, vad, segmentation, adapt: see `Transcriber`.
        decoding: settings of `asr.decoding.beam_search.DecodingConfig`, such as `beam=8` or, to leave out the model's
            language model, `lm_weight=0`; the others are as `choose_decoding` says.

    Raises:
        ModelError: no such model, or it is damaged.
        ConfigError: a setting cannot work.
    """
    bundle = load_bundle(find_model(path), pick_device(device))
    search = choose_decoding(bundle, **decoding)
    return Transcriber(
        bundle, search, batch_size=batch_size, words=words, vad=vad, segmentation=segmentation, adapt=adapt
    )
