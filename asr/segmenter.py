"""Where speech is: audio as it comes in -> stretches of speech that are cut at pauses, in memory that does not grow.

segmenter = Segmenter(SileroVad(), 16_000)
for block in audio.stream("lecture.mp3"):
    for stretch in segmenter.feed(block): ...
for stretch in segmenter.finish(): ...
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
import torch

from asr.audio import Samples

__all__ = ["Loudness", "Segmenter", "SegmenterConfig", "SileroVad", "SpeechDetector", "Stretch"]

SILENCE = 1e-3  # RMS (-60 dB of full scale)


@dataclass(frozen=True)
class SegmenterConfig:
    """When a stretch of speech begins and ends; seconds unless said otherwise."""

    threshold: float = 0.5  # speech begins at this probability ..
    lower_threshold: float = 0.35  # .. and pauses below this one
    min_silence: float = 0.5  # a shorter pause does not end a stretch
    min_speech: float = 0.25  # a shorter stretch is a click or a cough
    padding: float = 0.2  # audio kept before and after the speech
    max_duration: float = 20.0  # a longer stretch is cut at the quietest moment of its last half

    def __post_init__(self) -> None:
        if not 0 < self.lower_threshold <= self.threshold <= 1:
            raise ValueError(f"0 < lower_threshold <= threshold <= 1, got {self.lower_threshold}, {self.threshold}")
        if not 0 <= 2 * self.padding <= self.min_silence < math.inf:
            raise ValueError(f"padding must be 0 .. half of min_silence ({self.min_silence}), got {self.padding}")
        if not 0 <= self.min_speech < math.inf:
            raise ValueError(f"min_speech must be at least 0 s and finite, got {self.min_speech}")
        if not 1 <= self.max_duration < math.inf:
            raise ValueError(f"max_duration must be at least 1 s and finite, got {self.max_duration}")


class SpeechDetector(Protocol):
    """Tells how likely somebody speaks in each frame of one audio, heard from its start to its end."""

    frame: int  # samples

    def reset(self) -> None:
        """The next samples are the first ones of another audio."""

    def probabilities(self, samples: Samples) -> np.ndarray:
        """(F * frame,) samples that follow the ones before -> (F,) probabilities."""


class SileroVad:
    """Silero's voice activity detector (https://github.com/snakers4/silero-vad) at 16 kHz, many frames a call."""

    sample_rate = 16_000

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        from silero_vad import load_silero_vad
        from silero_vad.sequence_vad import RATE_CONFIG

        torch.set_num_threads(threads)  # importing silero_vad sets one
        self.frame, self.context = RATE_CONFIG[self.sample_rate]
        self.session = load_silero_vad(sequence=True).session
        self.reset()

    def reset(self) -> None:
        self.state = np.zeros((2, 1, 1, 128), np.float32)
        self.before = np.zeros(self.context, np.float32)  # each frame is heard with the end of the one before it

    def probabilities(self, samples: Samples) -> np.ndarray:
        if not len(samples):
            return np.zeros(0, np.float32)
        heard = np.concatenate([self.before, samples])
        self.before = heard[-self.context :]
        frames = np.lib.stride_tricks.sliding_window_view(heard, self.context + self.frame)[:: self.frame]
        inputs = {"input": np.ascontiguousarray(frames), "h": self.state[0], "c": self.state[1]}
        found, *self.state = self.session.run(["speech_probs", "hn", "cn"], inputs)
        return found.reshape(-1)


class Loudness:
    """Takes for speech whatever is not silence; at any sample rate."""

    def __init__(self, sample_rate: int) -> None:
        self.frame = sample_rate // 32

    def reset(self) -> None:
        pass

    def probabilities(self, samples: Samples) -> np.ndarray:
        return (_levels(samples, self.frame) > SILENCE**2).astype(np.float32)


@dataclass(frozen=True)
class Stretch:
    """A piece of audio in which somebody speaks."""

    start: int  # samples from the start of the audio
    samples: Samples  # (T,)

    @property
    def end(self) -> int:
        return self.start + len(self.samples)


class Segmenter:
    """Cuts one audio into stretches of speech: `feed` it block by block, then `finish`.

    A stretch goes from where the probability of speech rises over a threshold to where it has stayed below a lower one
    for `min_silence`. What is kept in memory is at most a stretch and a block.
    """

    def __init__(self, detector: SpeechDetector, sample_rate: int, config: SegmenterConfig | None = None) -> None:
        self.detector, self.sample_rate, self.config = detector, sample_rate, config or SegmenterConfig()
        detector.reset()
        self.kept: Samples = np.zeros(0, np.float32)  # samples from `kept_from` on
        self.kept_from = 0
        self.judged = 0  # samples whose frames have been looked at
        self.speech_from: int | None = None  # where the open stretch begins
        self.pause_from: int | None = None  # where the pause begins that it is in
        self.done_until = 0  # end of the last stretch

    def feed(self, samples: Samples) -> list[Stretch]:
        """(T,) samples that follow the ones before -> stretches that have ended."""
        self.kept = np.concatenate([self.kept, samples])
        frame = self.detector.frame
        new = self.kept[self.judged - self.kept_from :]
        probabilities = self.detector.probabilities(new[: len(new) // frame * frame])
        return self._judge(probabilities)

    def finish(self) -> list[Stretch]:
        """The stretches that are left at the end of the audio."""
        frame, end = self.detector.frame, self.kept_from + len(self.kept)
        rest = self.kept[self.judged - self.kept_from :]
        last = self.detector.probabilities(np.pad(rest, (0, -len(rest) % frame)))
        stretches = self._judge(last)
        if self.speech_from is not None:
            stretches += self._ended(end if self.pause_from is None else self.pause_from)
        return stretches

    def _judge(self, probabilities: np.ndarray) -> list[Stretch]:
        c, frame = self.config, self.detector.frame
        pause, longest = int(c.min_silence * self.sample_rate), int(c.max_duration * self.sample_rate)
        found: list[Iterator[Stretch] | list[Stretch]] = []
        for probability in probabilities.tolist():
            here, self.judged = self.judged, self.judged + frame
            if probability >= c.threshold:
                self.pause_from = None
                if self.speech_from is None:
                    self.speech_from = here
            elif probability < c.lower_threshold and self.speech_from is not None:
                if self.pause_from is None:
                    self.pause_from = here
                if self.judged - self.pause_from >= pause:
                    found.append(self._ended(self.pause_from))
            if self.speech_from is not None and self.judged - self._padded_start() > longest:
                found.append([self._cut(longest)])
        self._forget()
        return list(chain.from_iterable(found))

    def _padded_start(self) -> int:
        assert self.speech_from is not None
        return max(self.speech_from - int(self.config.padding * self.sample_rate), self.done_until)

    def _ended(self, end: int) -> list[Stretch]:
        """The open stretch, whose speech ends at sample `end`."""
        c, rate, begin = self.config, self.sample_rate, self.speech_from
        assert begin is not None
        start = self._padded_start()
        self.speech_from = self.pause_from = None
        rest_of_cut = 0 < begin == self.done_until and end > begin  # counts, however short
        if end - begin < c.min_speech * rate and not rest_of_cut:
            return []
        return [self._take(start, end + int(c.padding * rate))]

    def _cut(self, longest: int) -> Stretch:
        """The open stretch up to the quietest 0.2 s of its last half; it goes on from there."""
        start, step = self._padded_start(), self.sample_rate // 100
        first = start + longest // 2
        half = self.kept[first - self.kept_from : start + longest - self.kept_from]
        level = np.convolve(_levels(half, step), np.ones(20), "valid")
        stretch = self._take(start, first + (int(level.argmin()) + 10) * step)
        self.speech_from = self.done_until
        if self.pause_from is not None:
            self.pause_from = max(self.pause_from, self.done_until)
        return stretch

    def _take(self, start: int, end: int) -> Stretch:
        stretch = Stretch(start, self.kept[start - self.kept_from : end - self.kept_from])
        self.done_until = stretch.end
        return stretch

    def _forget(self) -> None:
        """Drop samples that no stretch can begin in any more."""
        margin = int(self.config.padding * self.sample_rate)
        first = self._padded_start() if self.speech_from is not None else self.judged - margin
        first = max(first, self.kept_from, 0)
        self.kept, self.kept_from = self.kept[first - self.kept_from :].copy(), first


def _levels(samples: Samples, width: int) -> np.ndarray:
    """Mean power of each `width` samples of (T,); the rest at the end, if any, makes one more."""
    power = np.square(samples, dtype=np.float64)
    return np.add.reduceat(power, np.arange(0, len(power), width)) / width if len(power) else power
