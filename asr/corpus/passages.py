"""Passages of prepared text, drawn at random and laid side by side in batches of nearly one length.

Each begins with BOS, exactly as a search does, and holds one sentence or, as an utterance may, several with spaces
between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.corpus.text import PreparedText
from asr.tokenizer import CharTokenizer

__all__ = ["MULTIPLE", "PassageBatch", "PassageSource", "Passages", "plan_batches", "read_batch"]

MOST_JOINED = 4  # sentences in a passage
MULTIPLE = 8  # rows of a batch: what matrix units like


@dataclass(frozen=True)
class Passages:
    """P passages of a text, each some sentences in a row of `order`.

    Attributes:
        order: (S,) sentences.
        first: (P,) where in `order` each passage begins.
        count: (P,) sentences of each.
        steps: (P,) characters that a model is asked for: all, the spaces between sentences, and EOS.
    """

    order: NDArray[np.int64]
    first: NDArray[np.int64]
    count: NDArray[np.int64]
    steps: NDArray[np.int64]

    @classmethod
    def draw(cls, lengths: NDArray[np.int64], join: float, seed: tuple[int, int] | None) -> Passages:
        """Sentences of these lengths, in an order that depends on the seed alone; None: as they are."""
        rng = np.random.default_rng(seed)
        order = np.arange(len(lengths)) if seed is None else rng.permutation(len(lengths))
        begins = rng.random(len(lengths)) >= join
        begins[::MOST_JOINED] = True
        first = np.flatnonzero(begins)
        count = np.diff(first, append=len(lengths))
        return cls(order, first, count, np.add.reduceat(lengths[order] + 1, first))


class PassageBatch(NamedTuple):
    passages: NDArray[np.int64]  # (R,)
    windows: int
    width: int  # steps of a window; windows * width is enough for the longest passage


def _shape(longest: int, window: int) -> tuple[int, int]:
    """Steps of the longest passage of a batch -> how many windows, and their width."""
    windows = math.ceil(longest / window)
    width = math.ceil(math.ceil(longest / windows) / MULTIPLE) * MULTIPLE  # few shapes: less set-up
    return windows, min(window, width)


def plan_batches(
    steps: NDArray[np.int64], batch_characters: int, window: int, multiple: int = 1, seed: tuple[int, int] | None = None
) -> list[PassageBatch]:
    """Passages -> batches of nearly one length, in an order that depends on the seed alone; None: short ones first.

    A window holds at most `batch_characters`, padding included, unless one passage is longer. The number of rows is a
    multiple of `multiple`, for which some of the last passages may be left out.
    """
    by_length = np.argsort(steps, kind="stable")
    sorted_steps = steps[by_length]
    plan, position = [], 0
    while position < len(steps):
        most = (len(steps) - position) // multiple
        if not most:
            break
        fitting = 1  # times `multiple`; more rows mean a longer longest passage
        too_many = min(most, batch_characters // multiple) + 1
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            rows = middle * multiple
            if rows * _shape(int(sorted_steps[position + rows - 1]), window)[1] <= batch_characters:
                fitting = middle
            else:
                too_many = middle
        rows = fitting * multiple
        windows, width = _shape(int(sorted_steps[position + rows - 1]), window)
        plan.append(PassageBatch(by_length[position : position + rows], windows, width))
        position += rows
    if seed is not None:
        np.random.default_rng(seed).shuffle(plan)
    return plan


def read_batch(text: PreparedText, passages: Passages, batch: PassageBatch, tokenizer: CharTokenizer) -> Tensor:
    """BOS, sentences with spaces between them, EOS, then padding: (R, windows * width + 1); what is longer is cut."""
    ids = np.full((len(batch.passages), batch.windows * batch.width + 1), tokenizer.pad_id, dtype=np.int64)
    ids[:, 0] = tokenizer.bos_id
    for kept, passage in zip(ids, batch.passages, strict=True):
        first, steps = passages.first[passage], passages.steps[passage]
        row = kept if steps < len(kept) else np.empty(steps + 1, np.int64)
        position = 1
        for sentence in passages.order[first : first + passages.count[passage]]:
            characters = text[sentence]
            row[position : position + len(characters)] = characters
            position += len(characters) + 1
            row[position - 1] = tokenizer.space_id
        row[position - 1] = tokenizer.eos_id
        kept[1:] = row[1 : len(kept)]
    return torch.from_numpy(ids)


class PassageSource:
    """Batches of passages without end, for the speller to learn from beside speech.

    Which passages a number stands for depends on the text, the seed and the number alone: a resumed run reads what the
    uninterrupted one would have read. The text begins again when all of it has been read.
    """

    def __init__(
        self,
        text: PreparedText,
        tokenizer: CharTokenizer,
        batch_characters: int,
        *,
        join: float = 0.5,
        longest: int = 400,
        seed: int = 1,
    ) -> None:
        """
        Args:
            text: prepared by `prepare_text`.
            tokenizer: the speller's.
            batch_characters: of a batch, padding included.
            join: chance that a passage goes on after a sentence, up to four of them: so many an utterance holds.
            longest: characters of a passage; what is beyond is left out, as an utterance has an end.
            seed: of the drawing.
        """
        self.text, self.tokenizer = text, tokenizer
        self.passages = Passages.draw(text.lengths, join, (seed, 0))
        steps = np.minimum(self.passages.steps, longest)
        self.plan = plan_batches(steps, batch_characters, longest, seed=(seed, 0))

    def __deepcopy__(self, memo: object) -> PassageSource:
        return self  # nothing changes it, and the text, mapped into memory, would become a copy of its own

    def __getitem__(self, number: int) -> Tensor:
        """Batch `number`, from 0 on: (R, T + 1) ids beginning with BOS, padded with 0."""
        batch = self.plan[number % len(self.plan)]
        return read_batch(self.text, self.passages, batch, self.tokenizer)
