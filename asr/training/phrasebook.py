"""Sentences of a text that can be put together of one speaker's recorded words.

    book = Phrasebook(utterances, sentences, words=2000)
    text, samples = book.compose(12, rng)

Unit selection, as in concatenative synthesis (Hunt and Black 1996, "Unit selection in a concatenative speech synthesis
system using a large speech database"): a sentence is covered with the longest runs of words that the speaker said in a
row; of the places where a run was said one is taken that is quiet at both ends and whose neighbours sound like those it
gets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from asr.corpus.chapters import Samples

__all__ = ["Phrasebook", "Piece", "faded", "loudness"]

Piece = tuple[str, Samples]  # a word and how it sounds
Place = tuple[int, int]  # utterance and word

SAMPLE_RATE = 16_000
QUIET = 0.02  # s; over so much the level of a border is measured
FADE = 0.005  # s; out of one run, and into the next
LONGEST = 8  # words of a run
SHORTEST = 4  # words of a sentence
PLACES = 16  # of a run, so many are compared
SEAM = 6.0  # dB louder, a border costs as much as a neighbour that ends or begins with another letter
WHIM = 3.0  # dB, deviation of what else decides, so that a sentence is not put together the same way each time
CHOICE = 2.0  # times the words needed; so many stand in the book


def faded(samples: Samples, start: bool = True, end: bool = True) -> Samples:
    """A copy that fades in at its start and out at its end, over `FADE`."""
    ramp = np.linspace(0, 1, min(round(FADE * SAMPLE_RATE), len(samples)), dtype=np.float32)
    copy = samples.copy()
    if start:
        copy[: len(ramp)] *= ramp
    if end:
        copy[len(copy) - len(ramp) :] *= ramp[::-1]
    return copy


def loudness(pieces: Sequence[Piece], i: int) -> float:
    """Mean square over `QUIET` around the border before piece i; the ends of an utterance are quiet."""
    if not 0 < i < len(pieces):
        return 0.0
    half = round(QUIET / 2 * SAMPLE_RATE)
    around = np.concatenate([pieces[i - 1][1][-half:], pieces[i][1][:half]])
    return float(np.square(around, dtype=np.float64).mean()) if len(around) else 0.0


class Phrasebook:
    """What a speaker can say of a text.

    Attributes:
        sentences: those that are put together of the fewest, longest runs, each as its words.
    """

    def __init__(self, utterances: Sequence[Sequence[Piece]], sentences: Sequence[str], words: int) -> None:
        """Choose sentences of `SHORTEST` words or more, about `CHOICE` times so many `words` in all, if there are.

        Sentences that were said in one go are left out.

        utterances: all that the speaker has recorded, each as its pieces
        """
        self.utterances = utterances
        self.words = [[word for word, _ in pieces] for pieces in utterances]
        self.places: dict[tuple[str, ...], list[Place]] = defaultdict(list)
        for u, said in enumerate(self.words):
            for i in range(len(said)):
                for n in range(1, min(LONGEST, len(said) - i) + 1):
                    self.places[tuple(said[i : i + n])].append((u, i))
        self.levels = [
            [10 * np.log10(loudness(pieces, i) + 1e-10) for i in range(len(pieces) + 1)] for pieces in utterances
        ]
        known = {word for said in self.words for word in said}
        found = []
        for sentence in sentences:
            split = sentence.split()
            if len(split) >= SHORTEST and known.issuperset(split) and (runs := len(self.runs(split))) > 1:
                found.append(((runs + 1) / len(split), split))  # where a sentence ends is a seam, too
        found.sort()
        self.sentences: list[list[str]] = []
        wanted = CHOICE * words
        for _, split in found:
            if wanted <= 0:
                break
            self.sentences.append(split)
            wanted -= len(split)

    def runs(self, sentence: Sequence[str]) -> list[tuple[str, ...]]:
        """A sentence of known words as runs that were said, from its start each as long as can be."""
        runs, i = [], 0
        while i < len(sentence):
            longest = min(LONGEST, len(sentence) - i)
            n = next(n for n in range(longest, 0, -1) if tuple(sentence[i : i + n]) in self.places)
            runs.append(tuple(sentence[i : i + n]))
            i += n
        return runs

    def compose(self, words: int, rng: np.random.Generator) -> tuple[str, Samples]:
        """Text and samples of at least so many words: sentences of the book, any, one after the other."""
        text: list[str] = []
        parts: list[Samples] = []
        while len(text) < words:
            sentence = self.sentences[int(rng.integers(len(self.sentences)))]
            parts += self._say(sentence, rng)
            text += sentence
        return " ".join(text), np.concatenate(parts)

    def _say(self, sentence: Sequence[str], rng: np.random.Generator) -> list[Samples]:
        parts, i = [], 0
        for run in self.runs(sentence):
            before = sentence[i - 1] if i else ""
            i += len(run)
            after = sentence[i] if i < len(sentence) else ""
            places = self.places[run]
            some = rng.permutation(len(places))[:PLACES]
            costs = [self._cost(places[j], len(run), before, after) + WHIM * rng.standard_normal() for j in some]
            u, start = places[some[int(np.argmin(costs))]]
            said = [samples for _, samples in self.utterances[u][start : start + len(run)]]
            parts.append(faded(np.concatenate(said)))
        return parts

    def _cost(self, place: Place, n: int, before: str, after: str) -> float:
        """dB; see `SEAM`. What stands before a sentence, or after it, is as if an utterance began, or ended, there."""
        u, start = place
        end = start + n
        said = self.words[u]
        left = said[start - 1] if start else ""
        right = said[end] if end < len(said) else ""
        seams = (left[-1:] != before[-1:]) + (right[:1] != after[:1])
        return self.levels[u][start] + self.levels[u][end] + SEAM * seams
