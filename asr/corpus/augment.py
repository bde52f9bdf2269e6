"""Copies of recorded utterances as they would sound elsewhere: in a room, in noise, louder or softer, over a telephone.

A copy depends on the settings and the utterance's id alone. The folder is laid out like LibriSpeech and can be gone on
with; the speakers' names begin with another letter, so that no id stands in two subsets.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from scipy.signal import butter, fftconvolve, sosfiltfilt

from asr import audio
from asr.config import check_kinds, to_mapping
from asr.corpus.chapters import (
    COPY,
    SAMPLE_RATE,
    Range,
    Samples,
    check_ranges,
    claim_folder,
    write_chapter,
    write_chapters,
)
from asr.corpus.librispeech import Utterance, is_evaluation, scan
from asr.errors import ConfigError, CorpusError

__all__ = [
    "AugmentConfig",
    "add_noise",
    "augment",
    "augment_subset",
    "augment_utterance",
    "coded",
    "find_recordings",
    "reverberate",
    "telephone",
]

REFLECTIONS = 20  # by so many walls at most; what comes later is hardly heard
FULL_SCALE = 0.99


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to how many utterances; each is drawn by itself."""

    rooms: float = 0.5  # share of the utterances that are heard in a room
    width: Range = (3.0, 9.0)  # m, of the floor's two sides
    height: Range = (2.4, 4.0)  # m
    absorption: Range = (0.25, 0.8)  # share of the energy, of the walls
    distance: Range = (0.3, 3.0)  # m from mouth to microphone
    noise: float = 0.7  # share of the utterances with noise
    snr: Range = (5.0, 25.0)  # dB
    gain: Range = (-12.0, 6.0)  # dB, of all
    telephone: float = 0.1  # share of the utterances: 300 to 3400 Hz, 8 bits at 8 kHz
    mp3: float = 0.1  # share of the utterances
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("rooms", "noise", "telephone", "mp3"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1; got {getattr(self, name):g}")
        check_ranges(
            {name: getattr(self, name) for name in ("width", "height", "absorption", "distance", "snr", "gain")}
        )
        if not (self.width[0] > 1 and self.height[0] > 1 and self.absorption[0] > 0 and self.absorption[1] <= 1):
            raise ValueError("width and height must be above 1 m, absorption above 0 and at most 1")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more; got {self.seed}")


def augment(samples: Samples, noises: Sequence[Path], config: AugmentConfig, rng: np.random.Generator) -> Samples:
    """(T,) at 16 kHz -> (T,), changed as the settings say; `noises` are recordings."""
    if rng.random() < config.rooms:
        samples = reverberate(samples, config, rng)
    if noises and rng.random() < config.noise:
        samples = add_noise(samples, _recordings[noises[int(rng.integers(len(noises)))]], rng.uniform(*config.snr), rng)
    samples = samples * np.float32(10 ** (rng.uniform(*config.gain) / 20))
    samples *= min(1.0, FULL_SCALE / max(float(np.abs(samples).max()), 1e-9))
    if rng.random() < config.telephone:
        samples = telephone(samples)
    if rng.random() < config.mp3:
        samples = coded(samples, rng.uniform(0.5, 0.95))  # 40 to 25 kbit/s
    return samples


def augment_utterance(identity: str, samples: Samples, noises: Sequence[Path], config: AugmentConfig) -> Samples:
    """`augment` with what the seed and the utterance's id draw."""
    return augment(samples, noises, config, np.random.default_rng([config.seed, zlib.crc32(identity.encode())]))


def reverberate(samples: Samples, config: AugmentConfig, rng: np.random.Generator) -> Samples:
    """(T,) as heard in a shoebox-shaped room by the image source method, at the same level and time."""
    try:
        import pyroomacoustics
    except ImportError as error:
        raise ConfigError("pyroomacoustics is not installed; pip install 'asr[augment]', or rooms=0") from error
    pyroomacoustics.constants.set("num_threads", 1)
    room = np.array([rng.uniform(*config.width), rng.uniform(*config.width), rng.uniform(*config.height)])
    mouth = rng.uniform(0.5, room - 0.5)
    direction = rng.normal(size=3)
    away = rng.uniform(*config.distance) * direction / np.linalg.norm(direction)
    box = pyroomacoustics.ShoeBox(
        room,
        fs=SAMPLE_RATE,
        materials=pyroomacoustics.Material(rng.uniform(*config.absorption)),
        max_order=REFLECTIONS,
    )
    box.add_source(mouth)
    box.add_microphone(np.clip(mouth + away, 0.1, room - 0.1))
    box.compute_rir()
    response = box.rir[0][0]
    start = int(np.abs(response).argmax())  # the direct sound
    heard = fftconvolve(samples, response)[start : start + len(samples)].astype(np.float32)
    return heard * (_level(samples) / max(_level(heard), 1e-9))


class _Recordings:
    """Recordings at 16 kHz, of which those that were asked for last stay in memory, up to so many samples."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept: dict[Path, Samples] = {}

    def __getitem__(self, path: Path) -> Samples:
        samples = self.kept.pop(path, None)
        if samples is None:
            samples = audio.load(path, SAMPLE_RATE)
            while self.kept and sum(map(len, self.kept.values())) + len(samples) > self.limit:
                del self.kept[next(iter(self.kept))]
        self.kept[path] = samples
        return samples


_recordings = _Recordings(limit=3600 * SAMPLE_RATE)  # 230 MB


def add_noise(samples: Samples, noise: Samples, snr: float, rng: np.random.Generator) -> Samples:
    """(T,) with a stretch of `noise` from anywhere, over and over where it is shorter, `snr` dB below the speech."""
    start = int(rng.integers(len(noise)))
    stretch = np.take(noise, np.arange(start, start + len(samples)), mode="wrap")
    level = _level(stretch)
    return samples + stretch * np.float32(_level(samples) * 10 ** (-snr / 20) / level) if level else samples


def telephone(samples: Samples) -> Samples:
    """(T,) through 300 to 3400 Hz, 8 kHz and mu-law (ITU-T G.711)."""
    import torch
    from torchaudio.functional import mu_law_decoding, mu_law_encoding

    narrow = sosfiltfilt(butter(4, (300, 3400), "bandpass", fs=SAMPLE_RATE, output="sos"), samples)
    narrow = soxr.resample(narrow.astype(np.float32), SAMPLE_RATE, 8000)
    received = mu_law_decoding(mu_law_encoding(torch.from_numpy(narrow), 256), 256).numpy()
    return _same_length(soxr.resample(received, 8000, SAMPLE_RATE), len(samples))


def coded(samples: Samples, compression: float) -> Samples:
    """(T,) through MP3 and back; compression 0 is the highest bit rate, near 1 the lowest."""
    from lhotse.augmentation.compress import Compress

    heard = Compress("mp3", compression)(samples[None], SAMPLE_RATE)[0]
    return _same_length(heard, len(samples))


def _same_length(samples: Samples, count: int) -> Samples:
    return np.pad(samples[:count], (0, max(0, count - len(samples))))


def _level(samples: Samples) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def augment_subset(
    root: str | Path,
    subset: str,
    output: str | Path,
    config: AugmentConfig | None = None,
    *,
    noises: str | Path | None = None,
    processes: int = 1,
) -> Path:
    """Write a copy of every utterance as subset `<subset>-augmented`; returns its folder.

    root: the folder that holds LibriSpeech/, or the LibriSpeech folder itself
    noises: a folder of recordings without speech to draw from; None adds none

    Raises:
        ConfigError: a setting cannot work, the folder was made with others, or the disk is too full.
        CorpusError: speech or noise is missing or cannot be read.
    """
    config = config or AugmentConfig()
    check_kinds({"processes": processes}, {"processes": int})
    if processes < 1:
        raise ConfigError(f"processes must be 1 or more; got {processes}")
    if is_evaluation(subset):
        raise ConfigError(f"{subset} is an evaluation set; augment training sets")
    utterances = scan(root, subset).utterances  # without the damaged ones, as prepare.py takes them
    chapters: dict[tuple[str, str], list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        chapters[utterance.speaker, utterance.chapter].append(utterance)
    folder = Path(output) / "LibriSpeech" / f"{subset}-augmented"
    copier = _Copier(folder, find_recordings(noises) if noises else [], config)
    claim_folder(folder, {"root": str(root), "noises": noises and str(noises), **to_mapping(config)})
    missing = [chapter for chapter in chapters.values() if not copier.transcript(chapter[0]).is_file()]
    seconds = sum(utterance.duration for chapter in missing for utterance in chapter)
    write_chapters(f"augment {subset}", folder, missing, len(chapters) - len(missing), seconds, copier.copy, processes)
    return folder


def find_recordings(folder: str | Path) -> list[Path]:
    """All audio files below a folder; CorpusError where there are none, or a folder cannot be read."""

    def stop(error: OSError) -> None:
        raise CorpusError(f"{error.filename}: cannot be read ({error.strerror})")

    found = audio.audio_below(folder, on_error=stop) if Path(folder).is_dir() else []
    if not found:
        raise CorpusError(f"{folder}: no recordings there; name a folder of audio files, or noises=null")
    return found


@dataclass(frozen=True)
class _Copier:
    """Writes changed copies of chapters."""

    folder: Path
    noises: list[Path]
    config: AugmentConfig

    def transcript(self, utterance: Utterance) -> Path:
        """Of the copy of its chapter."""
        speaker, chapter = f"{COPY}{utterance.speaker}", utterance.chapter or "0"
        return self.folder / speaker / chapter / f"{speaker}-{chapter}.trans.txt"

    def copy(self, chapter: list[Utterance]) -> None:
        write_chapter(self.transcript(chapter[0]), self._copies(chapter))

    def _copies(self, chapter: list[Utterance]) -> Iterator[tuple[str, str, Samples]]:
        for utterance in chapter:
            samples = audio.load(utterance.path, SAMPLE_RATE)
            heard = augment_utterance(utterance.id, samples, self.noises, self.config)
            yield f"{COPY}{utterance.id}", utterance.text, heard
