"""Words that nobody said, made of two that a speaker did.

    blends = Blends(spoken)
    spoken = blends.change(spoken[7], rng)      # NATIONAL, say, of NATIVE and RATIONAL

A recogniser that has heard few words learns those words rather than how their parts sound
(recipes/synthetic/README.md). Here the beginning of one word goes on as the end of another, from inside some letters
that both have there, so that the sounds around the seam are most likely the same in both; where exactly is where they
sound most alike, as in concatenative synthesis (Hunt and Black 1996, "Unit selection in a concatenative speech
synthesis system using a large speech database").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asr.corpus.chapters import SAMPLE_RATE, Samples

__all__ = ["Blends", "Spoken"]

LETTERS = 3  # that both words have around the seam, which is after the first or the second of them
HOP = 0.01  # s; from frame to frame
REACH = 0.03  # s; a seam is between the spikes of the letters beside it, or so much beyond
SLIP = 0.02  # s; two places that are so far apart in time cost as much as frames that differ by 1 in every band
CONTEXT = 1  # frames on each side of a seam that are compared too
FADE = 0.01  # s; the one word fades out while the other fades in
PARTNERS = 12  # so many are compared


@dataclass(frozen=True)
class Spoken:
    """A word as it was said.

    Attributes:
        word: its letters.
        samples: (T,) at 16 kHz.
        letters: (len(word),) when each letter fires, in seconds from the beginning of the samples.
        frames: (T', n_mels) log-mel, `HOP` apart.
    """

    word: str
    samples: Samples
    letters: np.ndarray
    frames: np.ndarray


class Blends:
    """What can be made of a speaker's words."""

    def __init__(self, spoken: Sequence[Spoken]) -> None:
        self.spoken = spoken
        # By where the seam is in which letters: word, letters before the seam.
        self.places: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
        for number, said in enumerate(spoken):
            for i, around in seams(said.word) if len(said.frames) else ():
                self.places[around].append((number, i))

    def change(self, said: Spoken, rng: np.random.Generator) -> tuple[str, Samples] | None:
        """A word that begins or ends as `said` does, and how it sounds; None where there is none.

        It is neither `said` nor the word that lends it the other part.
        """
        places = [(i, around) for i, around in seams(said.word) if len(self.places.get(around, ())) > 1]
        if not places or not len(said.frames):
            return None
        i, around = places[int(rng.integers(len(places)))]
        partners = self.places[around]
        begins = rng.random() < 0.5
        best: tuple[float, str, Samples] | None = None
        for k in rng.permutation(len(partners))[:PARTNERS]:
            number, j = partners[k]
            other = self.spoken[number]
            (first, a), (second, b) = ((said, i), (other, j)) if begins else ((other, j), (said, i))
            word = first.word[:a] + second.word[b:]
            if word in (said.word, other.word):
                continue
            cost, left, right = seam(first, a, second, b)
            if best is None or cost < best[0]:
                best = cost, word, crossfade(first.samples, left, second.samples, right)
        return None if best is None else best[1:]


def seams(word: str) -> list[tuple[int, tuple[int, str]]]:
    """Letters that may stand before a seam; which of the letters around it is the last before it, and these letters."""
    return [
        (i, (before, word[i - before : i - before + LETTERS]))
        for before in range(1, LETTERS)
        for i in range(before, len(word) - LETTERS + before + 1)
    ]


def seam(first: Spoken, i: int, second: Spoken, j: int) -> tuple[float, int, int]:
    """What it costs to go from before letter i of the one to letter j of the other, and from and to which sample."""
    left, right = _stretch(first, i), _stretch(second, j)
    apart = np.zeros((len(left), len(right)))
    for shift in range(-CONTEXT, CONTEXT + 1):
        a = first.frames[np.clip(left + shift, 0, len(first.frames) - 1)]
        b = second.frames[np.clip(right + shift, 0, len(second.frames) - 1)]
        apart += np.abs(a[:, None] - b[None]).mean(-1) / (2 * CONTEXT + 1)
    slip = (left * HOP - _middle(first, i))[:, None] - (right * HOP - _middle(second, j))[None]
    apart += np.abs(slip) / SLIP
    a, b = np.unravel_index(int(apart.argmin()), apart.shape)
    step = round(HOP * SAMPLE_RATE)
    return float(apart[a, b]), int(left[a]) * step, int(right[b]) * step


def _middle(said: Spoken, i: int) -> float:
    return float(said.letters[i - 1] + said.letters[i]) / 2


def _stretch(said: Spoken, i: int) -> np.ndarray:
    """Frames where a seam before letter i may be; at least one, as a spike may be beyond where the word was cut."""
    last = len(said.frames) - 1
    low, high = (said.letters[i - 1] - REACH) / HOP, (said.letters[i] + REACH) / HOP
    return np.arange(min(max(0, round(low)), last), max(0, min(last, round(high))) + 1)


def crossfade(first: Samples, left: int, second: Samples, right: int) -> Samples:
    """The one up to a sample and the other from a sample on, over `FADE` both."""
    half = min(round(FADE / 2 * SAMPLE_RATE), left, right, len(first) - left, len(second) - right)
    half = max(half, 0)
    ramp = np.linspace(0, 1, 2 * half, dtype=np.float32)
    both = first[left - half : left + half] * (1 - ramp) + second[right - half : right + half] * ramp
    return np.concatenate([first[: left - half], both, second[right + half :]])
