"""Sentences of a text read aloud by pseudo-speakers, in a folder laid out like LibriSpeech.

A pseudo-speaker is a synthetic voice with other pitch, intonation, formants and pace, recorded at another level with
another background hiss. What a chapter says and who reads it depend on the settings and its number alone: a folder can
be made by any number of processes, goes on where it stopped, and grows when more hours are asked for.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import soundfile
import soxr

from asr.config import check_kinds, to_mapping
from asr.corpus.chapters import SAMPLE_RATE, Range, Samples, check_ranges, claim_folder, write_chapter, write_chapters
from asr.corpus.text import PreparedText
from asr.errors import ConfigError, CorpusError
from asr.tokenizer import CharTokenizer

__all__ = [
    "FliteVoice",
    "HibariVoice",
    "PicoVoice",
    "Speaker",
    "SpeakerRanges",
    "SyntheticConfig",
    "Voice",
    "draw_speaker",
    "make_voice",
    "synthesize",
]

log = logging.getLogger(__name__)

SENTENCES_PER_MINUTE = 20  # set apart for a chapter; a minute of prose has about 10
_PAUSE_BEFORE = re.compile(r" (?=(?:and|but|for|which|who|when|while|because|though|if|as|or|so|then|yet) )")


@dataclass(frozen=True)
class Speaker:
    """What makes a pseudo-speaker; factors are on the voice's own value."""

    pitch: float  # factor
    intonation: float  # factor on the logarithmic distance of the pitch from its mean
    formants: float  # factor, the inverse of one on the length of the vocal tract
    pace: float  # factor on the speed
    breath: float  # dB more noise in the voice
    pauses: float  # share of the conjunctions with a pause before
    level: float  # dB below full scale, root mean square
    snr: float  # dB of the speech above the background hiss
    hiss_slope: float  # dB an octave by which the hiss falls


@dataclass(frozen=True)
class SpeakerRanges:
    """Where a speaker's properties are drawn from, uniformly; the pitch is near what goes with the formants."""

    formants: Range = (0.8, 1.12)
    pitch: Range = (0.55, 1.3)
    intonation: Range = (0.7, 1.4)
    pace: Range = (0.75, 1.1)
    breath: Range = (-3.0, 6.0)
    pauses: Range = (0.0, 0.5)
    level: Range = (-32.0, -20.0)
    snr: Range = (25.0, 60.0)
    hiss_slope: Range = (0.0, 6.0)

    def __post_init__(self) -> None:
        check_ranges(vars(self))


@dataclass(frozen=True)
class SyntheticConfig:
    """What to read aloud, and how."""

    voices: tuple[str, ...] = ("hibari",)  # names of VOICES; pseudo-speakers have them in turn
    speakers: int = 200
    prefix: str = "T"  # of their names; another for each subset, or their utterances are taken for the same ones
    chapter_minutes: float = 10.0
    min_seconds: float = 2.0  # of an utterance
    max_seconds: float = 17.0
    max_words: int = 35  # longer sentences are left out
    seed: int = 1
    ranges: SpeakerRanges = field(default_factory=SpeakerRanges)

    def __post_init__(self) -> None:
        if not self.voices or not set(self.voices) <= set(VOICES):
            raise ValueError(f"voices must be some of {', '.join(VOICES)}; got {', '.join(self.voices) or 'none'}")
        if not re.fullmatch("[B-Z]+", self.prefix):  # A begins the names of changed copies
            raise ValueError(f"prefix must be capital letters without A; got {self.prefix!r}")
        if self.speakers < 1:
            raise ValueError(f"speakers must be 1 or more; got {self.speakers}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more; got {self.seed}")
        if self.chapter_minutes <= 0:
            raise ValueError(f"chapter_minutes must be above 0; got {self.chapter_minutes}")
        if not 0 < self.min_seconds < self.max_seconds:
            raise ValueError("min_seconds must be above 0 and below max_seconds")


class Voice(Protocol):
    """Reads a sentence aloud."""

    def __call__(self, sentence: str, speaker: Speaker, rng: np.random.Generator) -> Samples:
        """A-Z and apostrophe -> samples (T,) at 16 kHz; of the speaker, how it was recorded does not matter."""
        ...


class HibariVoice:
    """hibari-tts (https://github.com/MMWilliams/hibari, Apache-2.0): a network gives spectrum and pitch by frame.

    Pitch and breath are changed before the waveform is made of them; the formants move when it is resampled.
    """

    def __init__(self) -> None:
        try:
            from hibari import Hibari
        except ImportError as error:
            raise ConfigError("hibari-tts is not installed; pip install 'asr[tts]'") from error
        self.tts = Hibari(threads=1)

    def __call__(self, sentence: str, speaker: Speaker, rng: np.random.Generator) -> Samples:
        from hibari import SAMPLE_RATE as RATE
        from hibari import dsp

        parts = [np.zeros(0, np.float32)]
        for phonemes in self.tts.phonemize(punctuate(sentence, speaker.pauses, rng)):
            ids = np.array([self.tts.ids(phonemes)], np.int64)
            # Resampling will make it quicker by the formants' factor.
            speed = np.array([speaker.pace / speaker.formants], np.float32)
            harmonics, phase, noise, rest, rest_phase, f0 = (
                output[0] for output in self.tts.sess.run(None, {"ids": ids, "speed": speed})
            )
            noise = noise + np.float32(speaker.breath * math.log(10) / 20)
            parts.append(dsp.synth(harmonics, phase, noise, rest, rest_phase, _bend(f0, speaker), rng))
        samples = np.concatenate(parts)
        return soxr.resample(samples, RATE * speaker.formants, SAMPLE_RATE) if len(samples) else samples


class FliteVoice:
    """A voice of flite (Black and Lenzo 2001, https://github.com/festvox/flite), which the system has to have.

    Pace and pitch are flite's to change, the formants move when the samples are read at another rate. Intonation and
    breath stay the voice's own; so does the pitch of `rms`, but for what the other rate makes of it.
    """

    # Mean pitch in Hz, as set: 0 where flite does not let it be set.
    PITCHES: ClassVar = {"awb": 132, "kal16": 92, "rms": 0, "slt": 172}

    def __init__(self, name: str) -> None:
        if not shutil.which("flite"):
            raise ConfigError("flite is not installed; on Debian and Ubuntu: apt-get install flite")
        self.name = name

    def __call__(self, sentence: str, speaker: Speaker, rng: np.random.Generator) -> Samples:
        text = punctuate(sentence, speaker.pauses, rng)
        settings = [f"duration_stretch={speaker.formants / speaker.pace:.4f}"]
        if mean := self.PITCHES[self.name]:
            settings.append(f"int_f0_target_mean={mean * speaker.pitch / speaker.formants:.1f}")
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            command = ["flite", "-voice", self.name, "-t", text, "-o", file.name]
            for setting in settings:
                command += ["--setf", setting]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise CorpusError(f"flite: {' '.join(done.stderr.split())[:200] or f'exit code {done.returncode}'}")
            samples, rate = soundfile.read(file.name, dtype="float32")
        return soxr.resample(samples, rate * speaker.formants, SAMPLE_RATE) if len(samples) else samples


class PicoVoice:
    """A voice of SVOX Pico (https://pypi.org/project/ttspico, Apache-2.0): an American or a British woman's.

    Pace and pitch are Pico's to change, the formants move when the samples are read at another rate. Intonation and
    breath stay the voice's own.
    """

    RATE = 16000  # Hz
    SILENCE = 0.01  # of full scale
    LANGUAGES: ClassVar = {"us": "en-US", "gb": "en-GB"}

    def __init__(self, name: str) -> None:
        try:
            from ttspico import TtsEngine
        except ImportError as error:
            raise ConfigError("ttspico is not installed; pip install 'asr[pico]' (it needs a C compiler)") from error
        self.engine = partial(TtsEngine, self.LANGUAGES[name])

    def __call__(self, sentence: str, speaker: Speaker, rng: np.random.Generator) -> Samples:
        # In percent, within what Pico takes. Resampling will make it quicker and higher by the formants' factor.
        tts = self.engine()  # anew each time, which costs nothing: one that has spoken goes on with another noise
        tts.volume = 50  # percent; at 100 loud vowels are clipped
        tts.rate = round(min(max(100 * speaker.pace / speaker.formants, 20), 500))
        tts.pitch = round(min(max(100 * speaker.pitch / speaker.formants, 50), 200))
        spoken = tts.speak(punctuate(sentence, speaker.pauses, rng)) or b""
        samples = (np.frombuffer(spoken, np.int16) / 32768).astype(np.float32)
        loud = np.flatnonzero(np.abs(samples) > self.SILENCE)
        samples = samples[: loud[-1] + 1] if len(loud) else samples[:0]  # half a second of silence followed
        return soxr.resample(samples, self.RATE * speaker.formants, SAMPLE_RATE) if len(samples) else samples


VOICES = (
    "hibari",
    *(f"flite-{name}" for name in FliteVoice.PITCHES),
    *(f"pico-{name}" for name in PicoVoice.LANGUAGES),
)


def make_voice(name: str) -> Voice:
    """One of VOICES."""
    kind, _, which = name.partition("-")
    if kind == "flite":
        return FliteVoice(which)
    return PicoVoice(which) if kind == "pico" else HibariVoice()


def _bend(f0: Samples, speaker: Speaker) -> Samples:
    """The pitch curve (F,) in Hz of another speaker; below 40 Hz it means unvoiced."""
    voiced = f0 > 40
    if not voiced.any():
        return f0
    bent = f0.copy()
    mean = np.exp(np.log(f0[voiced]).mean())
    bent[voiced] = mean * (f0[voiced] / mean) ** speaker.intonation * (speaker.pitch / speaker.formants)
    bent[voiced] = bent[voiced].clip(45, 600)
    return bent


def punctuate(sentence: str, pauses: float, rng: np.random.Generator) -> str:
    """`A-Z'` -> what a voice expects: lower case, a full stop, and commas before that share of the conjunctions."""
    text = re.sub(r"\bi\b", "I", sentence.lower())
    return _PAUSE_BEFORE.sub(lambda _: ", " if rng.random() < pauses else " ", text) + "."


def draw_speaker(ranges: SpeakerRanges, seed: int, number: int) -> Speaker:
    """The properties of a pseudo-speaker, the same whenever they are drawn."""
    rng = np.random.default_rng([seed, 0, number])
    drawn = {name: float(rng.uniform(*limits)) for name, limits in vars(ranges).items()}
    # Between men and women the fundamental frequency differs by 1.7, the formants by 1.17 (Peterson and Barney 1952).
    typical = drawn["formants"] ** (math.log(1.7) / math.log(1.17)) * rng.lognormal(0, 0.12)
    return Speaker(**{**drawn, "pitch": float(np.clip(typical, *ranges.pitch))})


def synthesize(
    text: str | Path,
    output: str | Path,
    hours: float,
    config: SyntheticConfig | None = None,
    *,
    subset: str = "synthetic",
    processes: int = 1,
    make_voice: Callable[[str], Voice] = make_voice,
) -> Path:
    """Write `output/LibriSpeech/<subset>/<speaker>/<chapter>/*.flac` and transcripts; returns the folder of the subset.

    text: a folder that recipes/language_model/prepare.py made; what it holds out is not read
    hours: of speech; chapters that are there already count

    Raises:
        ConfigError: a setting cannot work, the folder was made with others, or the disk is too full.
        CorpusError: the text is missing or too short.
    """
    config = config or SyntheticConfig()
    folder = Path(output) / "LibriSpeech" / subset
    check_kinds({"hours": hours, "processes": processes}, {"hours": float, "processes": int})
    if hours <= 0 or processes < 1:
        raise ConfigError(f"hours must be above 0 and processes 1 or more; got {hours:g} and {processes}")
    count = math.ceil(hours * 60 / config.chapter_minutes)
    reader = _Reader(Path(text), folder, config, make_voice)
    if count > reader.available:
        most = reader.available * config.chapter_minutes / 60
        raise CorpusError(f"{text}: long enough for {most:.2f} hours, not {hours:g}; add text or lower hours")
    claim_folder(folder, {"text": str(text), "digest": reader.text.digest, **to_mapping(config)})
    missing = [chapter for chapter in range(count) if not reader.transcript(chapter).is_file()]
    seconds = len(missing) * config.chapter_minutes * 60
    write_chapters("read chapters aloud", folder, missing, count - len(missing), seconds, reader.read, processes)
    files = (file for chapter in range(count) for file in reader.transcript(chapter).parent.glob("*.flac"))
    spoken = sum(soundfile.info(file).duration for file in files) / 3600
    if spoken < 0.9 * hours:
        log.warning("%s: only %.2f of %g hours, for the sentences are short; raise hours", folder, spoken, hours)
    return folder


class _Reader:
    """Reads chapters of one text aloud; goes to other processes without its voices and text, which they load anew."""

    def __init__(self, text: Path, folder: Path, config: SyntheticConfig, make_voice: Callable[[str], Voice]) -> None:
        self.text_folder, self.folder, self.config, self.make_voice = text, folder, config, make_voice
        self.tokenizer = CharTokenizer()
        self.text = PreparedText(text, "train", self.tokenizer)
        self.voices: dict[str, Voice] = {}

    def __getstate__(self) -> tuple[Path, Path, SyntheticConfig, Callable[[str], Voice]]:
        return self.text_folder, self.folder, self.config, self.make_voice

    def __setstate__(self, state: tuple[Path, Path, SyntheticConfig, Callable[[str], Voice]]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @property
    def block(self) -> int:
        """Sentences set apart for a chapter."""
        return math.ceil(self.config.chapter_minutes * SENTENCES_PER_MINUTE)

    @property
    def available(self) -> int:
        """Chapters that the text is long enough for."""
        return len(self.text) // self.block

    def name(self, chapter: int) -> str:
        return f"{self.config.prefix}{chapter % self.config.speakers:04d}-{chapter:05d}"

    def transcript(self, chapter: int) -> Path:
        """Written last: a chapter with a transcript is complete."""
        speaker, number = self.name(chapter).split("-")
        return self.folder / speaker / number / f"{self.name(chapter)}.trans.txt"

    def read(self, chapter: int) -> None:
        """Write one chapter."""
        write_chapter(self.transcript(chapter), self._utterances(chapter))

    def _utterances(self, chapter: int) -> Iterator[tuple[str, str, Samples]]:
        """Id, text and samples, until the chapter is long enough."""
        config = self.config
        rng = np.random.default_rng([config.seed, 1, chapter])
        who = chapter % config.speakers
        speaker, voice = draw_speaker(config.ranges, config.seed, who), self._voice(who)
        number, seconds = 0, 0.0
        for sentences in self._texts(chapter, speaker.pace, rng):
            samples = self._record(sentences, voice, speaker, rng)
            duration = len(samples) / SAMPLE_RATE
            if config.min_seconds <= duration <= config.max_seconds:
                yield f"{self.name(chapter)}-{number:04d}", " ".join(sentences), samples
                number, seconds = number + 1, seconds + duration
                if seconds >= config.chapter_minutes * 60:
                    return
        if not number:
            raise CorpusError(
                f"{self.text_folder}: no sentence read aloud lasts from {config.min_seconds:g} to "
                f"{config.max_seconds:g} s; widen min_seconds, max_seconds or max_words"
            )

    def _texts(self, chapter: int, pace: float, rng: np.random.Generator) -> Iterator[list[str]]:
        """Sentences to be read in one go: joined until they are about as long as was drawn."""
        config = self.config
        start = np.random.default_rng([config.seed, 2]).permutation(self.available)[chapter] * self.block
        per_second = 16.0 * pace  # characters, about
        joined: list[str] = []
        wanted = 0.0
        for index in range(start, start + self.block):
            sentence = self.tokenizer.decode(self.text[index].tolist())
            if len(sentence.split()) > config.max_words:
                continue
            if joined and len(" ".join([*joined, sentence])) > config.max_seconds * per_second:
                yield joined
                joined = []
            if not joined:
                wanted = per_second * rng.uniform(config.min_seconds, config.max_seconds)
            joined.append(sentence)
            if len(" ".join(joined)) >= wanted:
                yield joined
                joined = []
        if joined:
            yield joined

    def _voice(self, who: int) -> Voice:
        """Of a pseudo-speaker."""
        name = self.config.voices[who % len(self.config.voices)]
        if name not in self.voices:
            self.voices[name] = self.make_voice(name)
        return self.voices[name]

    def _record(self, sentences: list[str], voice: Voice, speaker: Speaker, rng: np.random.Generator) -> Samples:
        """The sentences, read one after the other, at a level near the speaker's and above a hiss."""
        parts: list[Samples] = []
        for sentence in sentences:
            parts += [voice(sentence, speaker, rng), np.zeros(int(rng.uniform(0, 0.3) * SAMPLE_RATE), np.float32)]
        samples = np.concatenate(parts[:-1])
        if not samples.any():
            return samples[:0]
        level = 10 ** ((speaker.level + rng.normal(0, 1.5)) / 20)
        samples *= level / np.sqrt(np.mean(samples**2))
        samples += hiss(len(samples), speaker.hiss_slope, rng) * level * 10 ** (-speaker.snr / 20)
        peak = float(np.abs(samples).max())
        return samples * (0.99 / peak) if peak > 0.99 else samples


def hiss(count: int, slope: float, rng: np.random.Generator) -> Samples:
    """Noise (count,) of root mean square 1 that falls by `slope` dB an octave above 50 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(count, np.float32))
    frequency = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    spectrum *= np.maximum(frequency / 50, 1) ** (-slope / (20 * math.log10(2)))
    noise = np.fft.irfft(spectrum, count).astype(np.float32)
    return noise / np.sqrt(np.mean(noise**2))
