"""Helpers: tiny models with random weights, and a scripted one whose speller and CTC head say what a test wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from asr.model import EncoderConfig, ListenAttendSpell, ModelConfig, SpellerConfig
from asr.model.speller import Beams
from asr.tokenizer import CharTokenizer

__all__ = ["Bigrams", "ScriptedSpeller", "ctc_says", "make_model", "random_states", "scripted"]

D = 12


def make_model(characters: int = 28, scale: float = 4.0, seed: int = 0, **speller: Any) -> ListenAttendSpell:
    """Random weights, some times larger than usual, so that the probabilities are far from uniform."""
    torch.manual_seed(seed)
    config = SpellerConfig(vocabulary=4 + characters, d=D, embedding=6, **speller)
    model = ListenAttendSpell(ModelConfig(EncoderConfig(n_mels=8, d=D, layers=2), config)).eval()
    with torch.no_grad():
        if model.speller.reader is not None:
            torch.nn.init.normal_(model.speller.read.weight, std=0.1)  # it begins at 0
        for parameter in [*model.speller.parameters(), *model.ctc.parameters()]:
            parameter.mul_(scale)
        model.speller.output.bias[CharTokenizer.unk_id] = -1e4  # the plain greedy loop would write it
    return model


def random_states(lengths: Sequence[int], seed: int = 1, d: int = D) -> tuple[Tensor, Tensor]:
    """h (B, N, d) and lengths (B,); a row's states do not depend on the other rows."""
    h = torch.zeros(len(lengths), max(lengths), d)
    for i, length in enumerate(lengths):
        h[i, :length] = torch.randn(length, d, generator=torch.Generator().manual_seed(seed + i))
    return h, torch.tensor(lengths)


@dataclass(frozen=True)
class ScriptState:
    position: int
    weights: Tensor  # (R, 1, N)

    @property
    def hidden(self) -> Tensor:
        return self.weights

    def select(self, rows: Tensor) -> ScriptState:
        return ScriptState(self.position, self.weights[rows])


class ScriptedSpeller:
    """Says at every position what `script(position)` gives: {character or "EOS": probability}, whatever came before.

    Its attention moves on by one encoder state a character. `rows` are the rows of each step taken.
    """

    def __init__(self, script: Callable[[int], dict[str, float]], tokenizer: CharTokenizer) -> None:
        self.script, self.tokenizer = script, tokenizer
        self.config = SpellerConfig(vocabulary=len(tokenizer))
        self.attentions = ()
        self.rows: list[int] = []

    def memory(self, h: Tensor, lengths: Tensor) -> Any:
        class Memory(SimpleNamespace):
            def select(self, rows: Tensor) -> Memory:
                return Memory(h=self.h[rows])

        return Memory(h=h)

    def start(self, memory: Any) -> ScriptState:
        return ScriptState(0, memory.h.new_zeros(len(memory.h), 1, memory.h.shape[1]))

    def step(
        self, characters: Tensor, memory: Any, state: ScriptState, beams: Beams | None = None
    ) -> tuple[Tensor, ScriptState]:
        assert len(characters) == len(state.weights)
        assert beams is None or (len(characters), len(memory.h)) == (len(beams.slots), len(beams.rows))
        self.rows.append(len(characters))
        probabilities = torch.full((len(self.tokenizer),), 1e-6)
        for character, probability in self.script(state.position).items():
            i = CharTokenizer.eos_id if character == "EOS" else self.tokenizer.encode(character)[0]
            probabilities[i] = probability
        weights = torch.zeros_like(state.weights)
        weights[..., min(state.position, weights.shape[-1] - 1)] = 1.0
        logits = probabilities.log().expand(len(characters), -1).clone()
        return logits, ScriptState(state.position + 1, weights)


def ctc_says(text: str, frames: int, tokenizer: CharTokenizer, certainty: float = 8.0) -> Tensor:
    """(1, frames, V) logits whose best path spells the text: each character once, followed by a blank."""
    logits = torch.zeros(1, frames, len(tokenizer))
    ids = [i for character in tokenizer.encode(text) for i in (character, tokenizer.blank_id)]
    assert len(ids) <= frames
    ids += [tokenizer.blank_id] * (frames - len(ids))
    logits[0, range(frames), ids] = certainty
    return logits


def scripted(script: Callable[[int], dict[str, float]], tokenizer: CharTokenizer) -> Any:
    """A model for `beam_search` whose encoder states are the logits of its CTC head."""
    speller = ScriptedSpeller(script, tokenizer)
    return SimpleNamespace(speller=speller, ctc=nn.Identity(), config=SimpleNamespace(speller=speller.config))


class Bigrams:
    """A language model: logits of the next character by the last one."""

    def __init__(self, vocabulary: int, seed: int = 3) -> None:
        self.table = 2 * torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed))

    def start(self, batch: int) -> Tensor:
        return torch.zeros(batch)

    def step(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        assert len(tokens) == len(state)
        return self.table[tokens], state + 1

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        return state[rows]
