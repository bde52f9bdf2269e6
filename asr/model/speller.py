"""Spell: the character decoder, with the four ways an utterance can reach it.

    attention                a_t from attention over h_1 .. h_N; output [a_t ; s_t]
    attention, input feeding the same, and the step's input is [embedded character ; a_{t-1}]
    fixed                    C = h_N is the decoder's first state; output s_t; nothing else crosses over
    cho                      C = h_N is also given at every step, and to the output: [C ; s_t] (Cho et al. 2014)

Every LSTM of the decoder but the first reads [a_t ; s_t] of the one below and attends again ("hops"): the second
hop knows from a_t how far the listening has got, which the characters alone do not tell, and training still needs
no loop over t.

With a reader, a character LSTM that has learned from text what is written and then stays as it is, r_t of its state
joins in: the first hop's s_t becomes s_t + W r_t, and the output gets V r_t. At first V is a share of the language
model's own output, so that the speller begins as one that a language model is mixed into (Shan et al. 2019, "Component
fusion").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from asr.model.attention import ATTENTIONS, DotProductAttention
from asr.model.dropout import ByteDropout
from asr.model.encoder import length_mask
from asr.model.int8 import are_int8
from asr.model.language_model import CharLanguageModel, LanguageModelConfig
from asr.model.lstm import PackedCell
from asr.model.lstm import lstm as run_lstm

__all__ = ["Beams", "Memory", "Speller", "SpellerConfig", "SpellerState"]

CONTEXTS = ("attention", "fixed", "cho")
READER_SHARE = 0.3  # of the language model's logits in the speller's, to begin with; what fusion without a beam bears
WAVELENGTHS = (8, 256)  # encoder states, 0.3 to 10 s: utterances longer than those of training have no new angles


@dataclass(frozen=True)
class SpellerConfig:
    vocabulary: int = 32  # characters and special symbols; see CharTokenizer
    d: int = 512  # size of s; the encoder's d
    embedding: int = 128
    context: str = "attention"  # attention | fixed | cho
    attention: str = "dot"  # dot | scaled | general | additive | location
    input_feeding: bool = False
    hops: int = 2  # decoder LSTMs, each attending; 1 is the plain form of the equations
    positions: int = 0  # sines and cosines of its place that are added to each h_i, by a matrix that begins at 0
    reader: int = 0  # size of the state of an LSTM that has learned from text beforehand; 0: none
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.context not in CONTEXTS:
            raise ValueError(f"context must be one of {', '.join(CONTEXTS)}; got {self.context!r}")
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}; got {self.attention!r}")
        if self.positions < 0 or self.positions % 2:
            raise ValueError(f"positions counts sines and cosines, an even number; got {self.positions}")
        if self.input_feeding and self.context != "attention":
            raise ValueError("input_feeding feeds a_{t-1} back: it needs context=attention")


@dataclass(frozen=True)
class Beams:
    """Whose hypotheses are whose: each of B utterances has 1 to K of R rows, one after another.

    Attributes:
        slots: (R,) where each row stands in a table (B, K), flattened.
        rows: (B, K) which row stands where; an utterance's first one also where none does.
    """

    slots: Tensor
    rows: Tensor

    @classmethod
    def of(cls, places: Tensor) -> Beams:
        """Those where a table (B, K) is True, which it is at least once for every utterance."""
        places = places[:, : int(places.any(0).nonzero().max()) + 1]
        counts = places.sum(1, keepdim=True)
        numbers = places.flatten().cumsum(0).view_as(places) - 1
        return cls(places.flatten().nonzero().flatten(), numbers.where(places, counts.cumsum(0) - counts))

    @classmethod
    def single(cls, batch: int, device: torch.device) -> Beams:
        """One row an utterance."""
        return cls.of(torch.ones(batch, 1, dtype=torch.bool, device=device))

    @property
    def full(self) -> bool:
        """Whether every utterance has K rows."""
        return len(self.slots) == self.rows.numel()

    @cached_property
    def owners(self) -> Tensor:
        """(R,) which utterance each row belongs to."""
        return self.slots // self.rows.shape[1]

    def spread(self, values: Tensor) -> Tensor:
        """Of rows (R, ...) -> (B, K, ...), the first of each utterance once more wherever it has no row."""
        return values.view(*self.rows.shape, *values.shape[1:]) if self.full else values[self.rows]

    def gather(self, table: Tensor) -> Tensor:
        """(B, K, ...) -> of the rows (R, ...)."""
        table = table.flatten(0, 1)
        return table if self.full else table.index_select(0, self.slots)

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Rows (R, ...) -> those of each utterance."""
        return values.split(self.counts)

    @cached_property
    def counts(self) -> list[int]:
        """How many rows each utterance has."""
        return self.owners.bincount().tolist()

    def matmul(self, values: Tensor, tables: Tensor) -> Tensor:
        """Rows (R, n), each times the matrix of its utterance (B, n, m): (R, m)."""
        if self.full or values.is_cuda:
            return self.gather(self.spread(values) @ tables)
        return torch.cat([rows @ table for rows, table in zip(self.split(values), tables, strict=True)])


@dataclass(frozen=True)
class Memory:
    """What the speller needs of an encoded batch, computed once.

    h (B, N, d), mask (B, N), C (B, d), and for each hop its keys and the values (B, N, .) that attention sums up.
    """

    h: Tensor
    mask: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    last: Tensor

    def select(self, rows: Tensor) -> Memory:
        """The rows (K,) of the batch, in that order and possibly repeated."""
        chosen = {id(x): x[rows] for x in (self.h, *self.keys, *self.values)}  # what is one tensor stays one
        keys, values = (tuple(chosen[id(x)] for x in several) for several in (self.keys, self.values))
        return Memory(chosen[id(self.h)], self.mask[rows], keys, values, self.last[rows])

    @cached_property
    def lengths(self) -> list[int]:
        """How many encoder states each utterance has."""
        return self.mask.sum(1).tolist()


@dataclass(frozen=True)
class SpellerState:
    """Between two steps: hidden and cell of each LSTM, a_{t-1}, weights of the last hop (B, 1, N).

    Hidden and cell are (B, d) of each hop and, if there is one, (B, reader) of the reader, which comes last. The
    weights are those of all hops (B, hops, N) where attention looks at its last ones. a_{t-1} is (B, d) with input
    feeding, and otherwise (B, 0). With `rows` (B,), the hidden states of row i are hidden[.][rows[i]]: hypotheses that
    differ in their last character alone share them, and their product. After a step `alone` is what it had of the
    characters alone, see `Speller.alone`.
    """

    hidden: tuple[Tensor, ...]
    cell: tuple[Tensor, ...]
    context: Tensor
    weights: Tensor
    rows: Tensor | None = None
    alone: tuple[Tensor, Tensor] | None = None

    def select(self, rows: Tensor) -> SpellerState:
        *cell, context, weights = (x.index_select(0, rows) for x in (*self.cell, self.context, self.weights))
        rows = rows if self.rows is None else self.rows[rows]
        return SpellerState(self.hidden, tuple(cell), context, weights, rows)

    def folded(self) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Hidden states (U, .), each once and only if it goes on; and which of them each row (B,) has."""
        if self.rows is None:
            return self.hidden, None
        used, rows = self.rows.unique(return_inverse=True)
        return tuple(x.index_select(0, used) for x in self.hidden), rows

    def unfolded(self) -> tuple[Tensor, ...]:
        """Hidden states of each row (B, .)."""
        return self.hidden if self.rows is None else tuple(x.index_select(0, self.rows) for x in self.hidden)


def sinusoids(size: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """(size, count): sines, then cosines of 0 .. size - 1, their wavelengths from one of WAVELENGTHS to the other."""
    shortest, longest = WAVELENGTHS
    exponents = torch.linspace(0, 1, count // 2, device=device)
    angles = 2 * math.pi * torch.arange(size, device=device)[:, None] / (shortest * (longest / shortest) ** exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Speller(nn.Module):
    def __init__(self, config: SpellerConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.embedding = nn.Embedding(c.vocabulary, c.embedding)
        extra = c.d if c.input_feeding or c.context == "cho" else 0
        above = {"attention": 2 * c.d, "fixed": c.d, "cho": 2 * c.d}[c.context]  # [a ; s], s or [C ; s]
        self.lstms = nn.ModuleList(
            nn.LSTM(c.embedding + extra if hop == 0 else above, c.d, batch_first=True) for hop in range(c.hops)
        )
        attends = c.context == "attention"
        self.attentions: Sequence[DotProductAttention] = nn.ModuleList(
            ATTENTIONS[c.attention](c.d) for _ in range(c.hops if attends else 0)
        )  # type: ignore[assignment]
        self.position: nn.Linear | None = None
        if c.positions:
            self.position = nn.Linear(c.positions, c.d, bias=False)
            nn.init.zeros_(self.position.weight)  # a trained speller can be given them and at first does what it did
        self.reader: CharLanguageModel | None = None
        if c.reader:
            self.reader = CharLanguageModel(LanguageModelConfig(vocabulary=c.vocabulary, d=c.reader))
            self.reader.requires_grad_(False).output.requires_grad_()
            self.read = nn.Linear(c.reader, c.d, bias=False)
            nn.init.zeros_(self.read.weight)
        self.dropout = ByteDropout(c.dropout)
        self.output = nn.Linear(above, c.vocabulary)
        self._packed: list[PackedCell] = []  # of the LSTMs; see `pack`
        self.unheard: list[PackedCell] = []  # of those above the first where a_t = 0: they are given s_t alone

    def pack(self) -> Speller:
        """Make single steps on the CPU quicker, with `PackedLinear`'s products; training mode undoes it."""
        self.eval()
        if PackedCell.available():
            matrices = [p for name, p in self.named_parameters() if "weight_" in name]
            int8 = self.config.context == "attention" and are_int8(matrices)
            first, *others = self.lstms
            inputs = self.embedding.weight if first.input_size == self.config.embedding else None
            self._packed = [PackedCell(first, inputs, int8)]  # type: ignore[arg-type]
            self._packed += [PackedCell(lstm, int8=int8) for lstm in others]  # type: ignore[arg-type]
            if self.config.context == "attention":
                self.unheard = [PackedCell(lstm, int8=int8, skip=self.config.d) for lstm in others]  # type: ignore[arg-type]
            if self.reader is not None:
                self._packed.append(PackedCell(self.reader.lstm, self.reader.embedding.weight, int8))
        return self

    @torch.no_grad()
    def take_reader(self, model: CharLanguageModel) -> None:
        """Read as this language model does, and let it count READER_SHARE times in the output.

        Raises:
            ValueError: it is of another shape.
        """
        if self.reader is None:
            raise ValueError("this speller has no reader")
        if replace(model.config, dropout=0.0) != self.reader.config:
            raise ValueError(f"wanted is {self.reader.config}, this is {model.config}")
        self.reader.load_state_dict(model.state_dict())
        for parameter in self.reader.output.parameters():
            parameter.mul_(READER_SHARE)

    def train(self, mode: bool = True) -> Speller:
        if mode:
            self._packed, self.unheard = [], []  # the weights are about to change
        return super().train(mode)

    @property
    def sequential(self) -> bool:
        """Whether step t needs the context or weights of step t-1, so that training must loop over t."""
        return self.config.input_feeding or any(a.sequential for a in self.attentions)

    def memory(self, h: Tensor, lengths: Tensor) -> Memory:
        """Encoder states (B, N, d) with lengths (B,) >= 1 -> what every step needs.

        With `positions`, h_i + W p_i takes the place of h_i: an LSTM counts poorly, and a speller that finds the place
        where it just was in what it last heard can look on from there (sinusoids as in Vaswani et al. 2017, 3.5).
        """
        if self.position is not None:
            h = h + self.position(sinusoids(h.shape[1], self.config.positions, h.device))
        return self._memory(h, lengths)

    def _memory(self, h: Tensor, lengths: Tensor) -> Memory:
        last = h[torch.arange(h.shape[0], device=h.device), lengths - 1]
        keys = tuple(a.keys(h) for a in self.attentions)
        values = [h for _ in keys]
        if keys and not self.config.input_feeding:
            # The last a_t goes to the output alone, W [a_t ; s_t], and W_a a_t = sum_i alpha_i W_a h_i has V numbers.
            values[-1] = nn.functional.linear(h, self.output.weight[:, : self.config.d])
        return Memory(h, length_mask(lengths, h.shape[1]), keys, tuple(values), last)

    def start(self, memory: Memory) -> SpellerState:
        """The state before the first character: zeros, or C where the context is fixed or Cho's."""
        batch, frames, d = memory.h.shape
        zeros = memory.h.new_zeros(batch, d)
        cell = [zeros] * self.config.hops
        hidden = cell if self.config.context == "attention" else [memory.last] * self.config.hops
        reader = [memory.h.new_zeros(batch, self.config.reader)] if self.reader is not None else []
        context = zeros[:, : d if self.config.input_feeding else 0]
        looks_back = any(a.sequential for a in self.attentions)
        weights = memory.h.new_zeros(batch, self.config.hops if looks_back else 1, frames)
        return SpellerState((*hidden, *reader), (*cell, *reader), context, weights)

    def step(
        self, characters: Tensor, memory: Memory, state: SpellerState, beams: Beams | None = None
    ) -> tuple[Tensor, SpellerState]:
        """Characters (B,) just written -> logits (B, V) of the next one, and the new state.

        With `beams` characters and state have its R rows, and `memory` one row for each of its utterances.
        """
        logits, _, state = self._run(characters[:, None], memory, state, beams)
        return logits[:, 0], state

    def forward(self, characters: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """Characters (B, U) beginning with BOS -> logits (B, U, V), last hop's weights (B, U, N) or None.

        Without input feeding and location-aware attention the whole sequence is one LSTM call and one batched
        matrix product a hop; otherwise it is a loop over `step`.
        """
        state = self.start(memory)
        if not self.sequential:
            logits, weights, _ = self._run(characters, memory, state)
            return logits, weights
        steps, weight_steps = [], []
        for t in range(characters.shape[1]):
            logits, weights, state = self._run(characters[:, t : t + 1], memory, state)
            steps.append(logits)
            weight_steps.append(weights)
        return torch.cat(steps, dim=1), torch.cat(weight_steps, dim=1)  # type: ignore[arg-type]

    def without_speech(self, characters: Tensor) -> Tensor:
        """Characters (B, U) beginning with BOS -> logits (B, U, V) where nothing was heard: h = 0, so a_t = C = 0.

        What is left is the language model inside the speller, which can learn from text alone (Wang et al. 2021,
        "Multitask training with text data for end-to-end speech recognition").
        """
        return self(characters, self.nothing_heard(len(characters)))[0]

    def nothing_heard(self, batch: int) -> Memory:
        """A memory of one state of zeros for each row of a batch."""
        weight = self.output.weight
        lengths = torch.ones(batch, dtype=torch.long, device=weight.device)
        return self._memory(weight.new_zeros(batch, 1, self.config.d), lengths)

    def alone(self, state: SpellerState) -> tuple[Tensor, Tensor | float]:
        """What a step had of the characters alone: s_t of the first hop (B, d), and the reader's logits (B, V) or 0."""
        if state.alone is not None:  # the step has computed it
            return state.alone
        hidden = state.unfolded()
        s, r = hidden[0], hidden[-1]
        return (s, 0.0) if self.reader is None else (s + self.read(r), self.reader.output(r))

    @staticmethod
    def _lstm(layer: nn.LSTM, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (B, U, .) of one LSTM, states (B, d) -> outputs (B, U, d) and the states after the last."""
        if x.shape[1] == 1:  # a third of the time that one step of nn.LSTM takes on CPU
            h, c = torch.lstm_cell(x[:, 0], (h, c), *layer.all_weights[0])
            return h[:, None], h, c
        s, (h, c) = run_lstm(layer, x, (h[None].contiguous(), c[None].contiguous()))
        return s, h[0], c[0]

    def _attend_rows(
        self, hop: int, s: Tensor, memory: Memory, beams: Beams, weighs: bool
    ) -> tuple[Tensor, Tensor | None]:
        """States (R, d) -> contexts (R, 1, .) and, if it `weighs`, weights (R, 1, N).

        The hypotheses of an utterance are queries of its one memory, which is not copied. Where some have many more
        rows than others, one after another is quicker on a CPU than all in one padded product.
        """
        attention = self.attentions[hop]

        def attend(queries: Tensor, which: slice, frames: int | None) -> tuple[Tensor, Tensor | None]:
            """(B', K, d), for these utterances -> (B', K, .), (B', K, N')."""
            keys, values = memory.keys[hop][which, :frames], memory.values[hop][which, :frames]
            mask = memory.mask[which, :frames]
            if weighs:
                return attention(queries, values, mask, keys)
            return attention.contexts(queries, values, mask, keys), None

        if beams.full or s.is_cuda:
            a, alpha = attend(beams.spread(s), slice(None), None)
            return beams.gather(a)[:, None], None if alpha is None else beams.gather(alpha)[:, None]
        parts = [
            attend(queries[None], slice(i, i + 1), frames)
            for i, (queries, frames) in enumerate(zip(beams.split(s), memory.lengths, strict=True))
        ]
        size = memory.h.shape[1]
        weights = [nn.functional.pad(alpha, (0, size - alpha.shape[2])) for _, alpha in parts if alpha is not None]
        contexts = torch.cat([a for a, _ in parts], 1)[0, :, None]
        return contexts, torch.cat(weights, 1)[0, :, None] if weights else None

    def _run(
        self, characters: Tensor, memory: Memory, state: SpellerState, beams: Beams | None = None
    ) -> tuple[Tensor, Tensor | None, SpellerState]:
        """Any number of steps U from `state` on; more than one only where no step needs the one before."""
        c = self.config
        steps, d = characters.shape[1], c.d
        x = self.dropout(self.embedding(characters))  # (B, U, E)
        c_vector = x  # only Cho's context is given at every step
        if c.input_feeding:
            x = torch.cat([x, state.context[:, None].to(x.dtype)], dim=-1)
        elif c.context == "cho":
            last = memory.last if beams is None else memory.last[beams.owners]
            c_vector = last[:, None].expand(-1, steps, -1)
            x = torch.cat([x, c_vector.to(x.dtype)], dim=-1)
        packed = self._packed if steps == 1 and x.dtype == torch.float32 and not x.is_cuda else []
        if memory.h.requires_grad:  # the encoder adapts, and packed products have no gradient
            packed = []
        old, repeats = state.folded() if packed else (state.unfolded(), None)
        lstms: list[nn.LSTM] = [*self.lstms, *([self.reader.lstm] if self.reader else [])]
        hidden, cell = list(old), list(state.cell)

        def run(lstm: int, x: Tensor) -> Tensor:
            """Inputs (B, U, .) of an LSTM -> outputs (B, U, .); its state goes on."""
            if packed:
                inputs = x if packed[lstm].products is None else characters
                hidden[lstm], cell[lstm] = packed[lstm](inputs[:, 0], old[lstm], state.cell[lstm], repeats)
                return hidden[lstm][:, None]
            out, hidden[lstm], cell[lstm] = self._lstm(lstms[lstm], x, old[lstm], state.cell[lstm])
            return out

        weights, alpha, r, first = [], None, x, x
        for hop in range(c.hops):
            s = run(hop, x)
            if hop == 0 and self.reader is not None:
                r = run(-1, self.reader.embedding(characters))
                first = s = s + self.read(r)
            s = self.dropout(s)
            if c.context == "attention":
                attention, values, keys = self.attentions[hop], memory.values[hop], memory.keys[hop]
                previous = state.weights[:, hop] if attention.sequential else None
                weighs = attention.sequential or hop + 1 == c.hops  # whether its weights are of use to anyone
                if beams is not None:
                    a, now = self._attend_rows(hop, s[:, 0], memory, beams, weighs)
                elif packed and not weighs:
                    a, now = attention.contexts(s, values, memory.mask, keys), None
                else:
                    a, now = attention(s, values, memory.mask, keys, previous)
                if now is not None:
                    alpha = now
                    weights += [now[:, -1]] if weighs else []
                if values is memory.h:
                    x = torch.cat([a, s], dim=-1)  # [a_t ; s_t]
            else:
                x = torch.cat([c_vector.to(s.dtype), s], dim=-1) if c.context == "cho" else s
        state = replace(
            state,
            hidden=tuple(hidden),
            cell=tuple(cell),
            context=a[:, -1] if c.input_feeding else state.context,
            weights=torch.stack(weights, 1) if weights else state.weights,
            rows=None,
            alone=None,
        )
        if weights and not c.input_feeding:
            logits = a + nn.functional.linear(s, self.output.weight[:, d:], self.output.bias)
        else:
            logits = self.output(x)
        if self.reader is not None:
            read = self.reader.output(r)
            logits = logits + read
            state = replace(state, alone=(first[:, -1], read[:, -1]))
        return logits, alpha, state
