"""Sentences in which words are said that the recordings do not have, to be read aloud by synthetic voices."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from asr.corpus.librispeech import progress_bar
from asr.errors import ConfigError, CorpusError

__all__ = ["ChooseConfig", "choose_sentences", "wanted_words", "word_counts"]

# Of these many words wanted a word, on average, is a sentence taken in the first, second ... pass
_PASSES = (0.45, 0.4, 0.36, 0.33, 0.3, 0.27, 0.24, 0.21, 0.18)


@dataclass(frozen=True)
class ChooseConfig:
    """Which words are wanted, how often, and how much is taken (conf/choose.yaml).

    Attributes:
        words: of all sentences taken; synthetic voices say some 8,400 an hour.
        in_text: words that the text has less often are not wanted: many are misspelt or not English.
        in_recordings: nor are words that the recordings have more often.
        factor: a word that the text has n times and the recordings r times is wanted factor * sqrt(n) / (1 + r) times;
        at_most: but where it was never recorded not more often than this.
        shortest: words a sentence.
        longest: words a sentence.
        seed: of the order.
    """

    words: int = 400_000
    in_text: int = 12
    in_recordings: int = 8
    factor: float = 1.8
    at_most: float = 80.0
    shortest: int = 4
    longest: int = 30
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("words", "in_text", "shortest"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more; got {getattr(self, name)}")
        if self.in_recordings < 0:
            raise ConfigError(f"in_recordings must be 0 or more; got {self.in_recordings}")
        if not (self.factor > 0 and self.at_most > 0):
            raise ConfigError("factor and at_most must be above 0")
        if self.longest < self.shortest:
            raise ConfigError(f"longest must be {self.shortest} (shortest) or more; got {self.longest}")


def word_counts(sentences: Iterable[str]) -> Counter[str]:
    """How often each word is in normalised sentences."""
    counts: Counter[str] = Counter()
    for sentence in sentences:
        counts.update(sentence.split())
    return counts


def wanted_words(text: Mapping[str, int], recorded: Mapping[str, int], config: ChooseConfig) -> dict[str, float]:
    """How often each rare word should be said: more often if the text has it more often, less if it was recorded.

    Args:
        text: how often the text has each word.
        recorded: how often the recordings have each word.
        config: what is rare.

    Raises:
        CorpusError: no word is wanted.
    """
    wanted = {
        word: min(config.at_most, config.factor * math.sqrt(count)) / (1 + recorded.get(word, 0))
        for word, count in text.items()
        if count >= config.in_text and recorded.get(word, 0) <= config.in_recordings
    }
    if not wanted:
        raise CorpusError(
            f"the text has no word {config.in_text} times that the recordings have {config.in_recordings} times "
            "or less; give more text or lower in_text"
        )
    return wanted


def choose_sentences(sentences: Sequence[str], wanted: Mapping[str, float], config: ChooseConfig) -> list[str]:
    """Those of the sentences that are dense with wanted words.

    A word counts as much as it still lacks of what is wanted of it, 1 before it is said and 0 when it is said often
    enough. Sentences that come to 0.45 a word are taken first, then those that come to less, in random order, until
    there are `config.words` words. (A fast stand-in for greedy set cover: a sentence counts for what it brings beyond
    those taken before it.)

    Args:
        sentences: normalised; each is taken at most once.
        wanted: how often each word should be said (`wanted_words`).
        config: how much is taken.

    Returns:
        The sentences taken, in random order.

    Raises:
        CorpusError: no sentence has enough wanted words.
    """
    rng = random.Random(config.seed)
    order = list(range(len(sentences)))
    rng.shuffle(order)
    chosen: list[str] = []
    total = 0
    with progress_bar() as progress:
        task = progress.add_task("choose sentences", total=config.words)
        for sentence, length in _dense_sentences(sentences, wanted, order, config):
            chosen.append(sentence)
            total += length
            progress.update(task, completed=total)
            if total >= config.words:
                break
    if not chosen:
        raise CorpusError("no sentence of the text has enough rare words; give more text or lower in_text")
    rng.shuffle(chosen)
    return chosen


def _dense_sentences(
    sentences: Sequence[str], wanted: Mapping[str, float], order: Sequence[int], config: ChooseConfig
) -> Iterator[tuple[str, int]]:
    """Sentences and their words, the densest first, as if those that came before had been said."""
    said: Counter[str] = Counter()
    taken = bytearray(len(sentences))
    for enough in _PASSES:
        for index in order:
            if taken[index]:
                continue
            words = sentences[index].split()
            if not config.shortest <= len(words) <= config.longest:
                continue
            gain = 0.0
            for word in dict.fromkeys(words):
                if (want := wanted.get(word)) and said[word] < want:
                    gain += 1 - said[word] / want
            if gain >= enough * len(words):
                taken[index] = True
                said.update(words)
                yield sentences[index], len(words)
