"""Spell: the character decoder, with the four ways an utterance can reach it.

    attention                a_t from attention over h_1 .. h_N; output [a_t ; s_t]
    attention, input feeding the same, and the step's input is [embedded character ; a_{t-1}]
    fixed                    C = h_N is the decoder's first state; output s_t; nothing else crosses over
    cho                      C = h_N is also given at every step, and to the output: [C ; s_t] (Cho et al. 2014)

Every LSTM of the decoder but the first reads [a_t ; s_t] of the one below and attends again ("hops"): the second
hop knows from a_t how far the listening has got, which the characters alone do not tell, and training still needs
no loop over t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from asr.model.attention import ATTENTIONS, DotProductAttention
from asr.model.dropout import ByteDropout
from asr.model.encoder import length_mask
from asr.model.lstm import PackedCell
from asr.model.lstm import lstm as run_lstm

__all__ = ["Memory", "Speller", "SpellerConfig", "SpellerState"]

CONTEXTS = ("attention", "fixed", "cho")


@dataclass(frozen=True)
class SpellerConfig:
    vocabulary: int = 32  # characters and special symbols; see CharTokenizer
    d: int = 512  # size of s; the encoder's d
    embedding: int = 128
    context: str = "attention"  # attention | fixed | cho
    attention: str = "dot"  # dot | scaled | general | additive | location
    input_feeding: bool = False
    hops: int = 2  # decoder LSTMs, each attending; 1 is the plain form of the equations
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.context not in CONTEXTS:
            raise ValueError(f"context must be one of {', '.join(CONTEXTS)}; got {self.context!r}")
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}; got {self.attention!r}")
        if self.input_feeding and self.context != "attention":
            raise ValueError("input_feeding feeds a_{t-1} back: it needs context=attention")


@dataclass(frozen=True)
class Memory:
    """What the speller needs of an encoded batch, computed once: h (B, N, d), mask (B, N), keys a hop, C (B, d)."""

    h: Tensor
    mask: Tensor
    keys: tuple[Tensor, ...]
    last: Tensor

    def select(self, rows: Tensor) -> Memory:
        """The rows (K,) of the batch, in that order and possibly repeated."""
        return Memory(self.h[rows], self.mask[rows], tuple(k[rows] for k in self.keys), self.last[rows])


@dataclass(frozen=True)
class SpellerState:
    """Between two steps: hidden and cell of each hop (B, hops, d), a_{t-1} (B, d), weights of each hop (B, hops, N)."""

    hidden: Tensor
    cell: Tensor
    context: Tensor
    weights: Tensor

    def select(self, rows: Tensor) -> SpellerState:
        return SpellerState(self.hidden[rows], self.cell[rows], self.context[rows], self.weights[rows])


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
        self.dropout = ByteDropout(c.dropout)
        self.output = nn.Linear(above, c.vocabulary)
        self._packed: list[PackedCell] = []  # of the LSTMs; see `pack`

    def pack(self) -> Speller:
        """Make single steps on the CPU quicker, with weights rounded to fp16; training mode undoes it."""
        self.eval()
        if PackedCell.available():
            self._packed = [PackedCell(lstm) for lstm in self.lstms]  # type: ignore[arg-type]
        return self

    def train(self, mode: bool = True) -> Speller:
        if mode:
            self._packed = []  # the weights are about to change
        return super().train(mode)

    @property
    def sequential(self) -> bool:
        """Whether step t needs the context or weights of step t-1, so that training must loop over t."""
        return self.config.input_feeding or any(a.sequential for a in self.attentions)

    def memory(self, h: Tensor, lengths: Tensor) -> Memory:
        """Encoder states (B, N, d) with lengths (B,) >= 1 -> what every step needs."""
        last = h[torch.arange(h.shape[0], device=h.device), lengths - 1]
        return Memory(h, length_mask(lengths, h.shape[1]), tuple(a.keys(h) for a in self.attentions), last)

    def start(self, memory: Memory) -> SpellerState:
        """The state before the first character: zeros, or C where the context is fixed or Cho's."""
        batch, frames, d = memory.h.shape
        zeros = memory.h.new_zeros(batch, self.config.hops, d)
        hidden = zeros if self.config.context == "attention" else memory.last[:, None].expand_as(zeros)
        return SpellerState(hidden, zeros, zeros[:, 0], memory.h.new_zeros(batch, self.config.hops, frames))

    def step(self, characters: Tensor, memory: Memory, state: SpellerState) -> tuple[Tensor, SpellerState]:
        """Characters (B,) just written -> logits (B, V) of the next one, and the new state.

        Characters and state may have K rows for each row of `memory`, one after another: hypotheses of a beam.
        """
        logits, _, state = self._run(characters[:, None], memory, state)
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

    def _run(
        self, characters: Tensor, memory: Memory, state: SpellerState
    ) -> tuple[Tensor, Tensor | None, SpellerState]:
        """Any number of steps U from `state` on; more than one only where no step needs the one before."""
        c = self.config
        rows, steps = characters.shape
        batch, frames, d = memory.h.shape
        x = self.dropout(self.embedding(characters))  # (B, U, E)
        last = memory.last if rows == batch else memory.last.repeat_interleave(rows // batch, dim=0)
        c_vector = last[:, None].expand(-1, steps, -1)
        if c.input_feeding:
            x = torch.cat([x, state.context[:, None].to(x.dtype)], dim=-1)
        elif c.context == "cho":
            x = torch.cat([x, c_vector.to(x.dtype)], dim=-1)
        hidden, cell, weights, alpha = [], [], [], None
        context = state.context
        for hop, lstm in enumerate(self.lstms):
            if steps == 1:  # a third of the time that one step of nn.LSTM takes on CPU
                before = (state.hidden[:, hop], state.cell[:, hop])
                if self._packed and x.dtype == torch.float32 and not x.is_cuda:
                    h_n, c_n = self._packed[hop](x[:, 0], *before)
                else:
                    h_n, c_n = torch.lstm_cell(x[:, 0], before, *lstm.all_weights[0])  # type: ignore[index]
                s = h_n[:, None]
            else:
                initial = (state.hidden[:, hop].unsqueeze(0).contiguous(), state.cell[:, hop].unsqueeze(0).contiguous())
                s, (h_n, c_n) = run_lstm(lstm, x, initial)  # type: ignore[arg-type]  # (B, U, d)
                h_n, c_n = h_n[0], c_n[0]
            hidden.append(h_n)
            cell.append(c_n)
            s = self.dropout(s)
            if c.context == "attention":
                previous = state.weights[:, hop]
                # The K hypotheses of an utterance are K queries of its one memory, which is not copied.
                queries = s.reshape(batch, -1, d)
                a, alpha = self.attentions[hop](queries, memory.h, memory.mask, memory.keys[hop], previous)
                a, alpha = a.reshape(rows, steps, d), alpha.reshape(rows, steps, frames)
                weights.append(alpha[:, -1])
                context = a[:, -1]
                x = torch.cat([a, s], dim=-1)  # [a_t ; s_t]
            else:
                x = torch.cat([c_vector.to(s.dtype), s], dim=-1) if c.context == "cho" else s
        state = replace(
            state,
            hidden=torch.stack(hidden, 1),
            cell=torch.stack(cell, 1),
            context=context,
            weights=torch.stack(weights, 1) if weights else state.weights,
        )
        return self.output(x), alpha, state
