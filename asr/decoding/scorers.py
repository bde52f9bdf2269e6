"""What a hypothesis is worth: one small protocol, and the speller, CTC, language models, length and coverage in it.

A search over B utterances with K hypotheses each has R = B K rows, the K of an utterance one after another. At every
step each scorer tells, for every row and every character that may follow, what the row's score gains by it; the search
adds these up with the scorers' weights. Another scorer is another class here, or anywhere else, with these methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from asr.model.encoder import length_mask
from asr.model.lstm import PackedCell
from asr.model.speller import Memory, Speller, SpellerState
from asr.tokenizer import CharTokenizer

__all__ = [
    "CoverageScorer",
    "CtcPrefixScorer",
    "InternalLmScorer",
    "LanguageModel",
    "LengthBonus",
    "LmScorer",
    "RepetitionGuard",
    "Scorer",
    "SpellerScorer",
    "Step",
    "WordBonus",
]

BLANK, BOS, EOS = CharTokenizer.blank_id, CharTokenizer.bos_id, CharTokenizer.eos_id


@dataclass
class Step:
    """One step of the search, handed from scorer to scorer; the speller comes first and leaves what it saw."""

    position: int  # characters already written
    tokens: Tensor  # (R,) last character of each row; BOS at first
    attention: Tensor | None = None  # (R, N) of the speller's last hop at this step
    first_hidden: Tensor | None = None  # (R, d) s_t of the speller's first hop at this step


class Scorer(Protocol):
    """A part of the score. Its state is its own; it need not be a tensor."""

    weight: float

    def start(self, h: Tensor, lengths: Tensor, beam: int) -> Any:
        """Encoder states (B, N, d) with lengths (B,) -> the state of R = B beam empty hypotheses."""

    def score(self, state: Any, step: Step) -> tuple[Tensor, Any]:
        """What each next character adds to each row: (R, V), or something that broadcasts to it; and the state."""

    def select(self, state: Any, rows: Tensor, tokens: Tensor) -> Any:
        """The state of new rows (R,): row i is the old row rows[i], of the same utterance, followed by tokens[i]."""

    def keep(self, state: Any, utterances: Tensor) -> Any:
        """Between `score` and `select`: only these utterances go on; the others are finished."""

    def most(self, state: Any, remaining: Tensor) -> Tensor | float:
        """The most that `score` can still add to a row, (B, 1) or (B, K), in `remaining` (B, 1) more characters.

        0.0 for log-probabilities, which add nothing. The search stops when no open row can overtake a finished one.
        """


def _rows(utterances: Tensor, beam: int) -> Tensor:
    """Rows of these utterances: (B',) -> (B' beam,)."""
    return (utterances[:, None] * beam + torch.arange(beam, device=utterances.device)).flatten()


# ---------------------------------------------------------------------------------------------------------- speller


@dataclass(frozen=True)
class _SpellerRows:
    memory: Memory
    state: SpellerState
    beam: int


class SpellerScorer:
    """log p(character | characters so far, h) of the attention decoder; leaves its attention for the others."""

    def __init__(self, speller: Speller, weight: float = 1.0, temperature: float = 1.0) -> None:
        self.speller = speller
        self.weight = weight
        self.temperature = temperature
        self.attends = speller.config.context == "attention"
        # Location-aware scores look at each row's own last weights, so every row needs its own memory.
        self.own_memory = any(attention.sequential for attention in speller.attentions)

    def start(self, h: Tensor, lengths: Tensor, beam: int) -> _SpellerRows:
        memory = self.speller.memory(h, lengths)
        rows = torch.arange(h.shape[0], device=h.device).repeat_interleave(beam)
        state = self.speller.start(memory).select(rows)
        return _SpellerRows(memory.select(rows) if self.own_memory else memory, state, beam)

    def score(self, state: _SpellerRows, step: Step) -> tuple[Tensor, _SpellerRows]:
        logits, after = self.speller.step(step.tokens, state.memory, state.state)
        logits = logits.float()
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.attends:
            step.attention = after.weights[:, -1]
        step.first_hidden = after.hidden[:, 0]
        return logits.log_softmax(-1), replace(state, state=after)

    def select(self, state: _SpellerRows, rows: Tensor, tokens: Tensor) -> _SpellerRows:
        return replace(state, state=state.state.select(rows))

    def keep(self, state: _SpellerRows, utterances: Tensor) -> _SpellerRows:
        rows = _rows(utterances, state.beam)
        memory = state.memory.select(rows if self.own_memory else utterances)
        return _SpellerRows(memory, state.state.select(rows), state.beam)

    def most(self, state: _SpellerRows, remaining: Tensor) -> float:
        return 0.0


# -------------------------------------------------------------------------------------------------------------- CTC

LOG_ZERO = -1e10  # finite, so that sums and differences of impossible things are numbers
_FLOOR = -1e3  # log-probability of a character in one frame: exp of it is 0 and sums over frames stay exact enough


@dataclass(frozen=True)
class _CtcRows:
    """Float64: cumulated log-probabilities run to some thousands, and what is left of them when they cancel counts.

    With t = 0 .. N and x(c, t) the log-probability of c in frame t:
        cumulated  (B, V, N + 1)  x(c, 1) + .. + x(c, t)
        probs      (B, N, V)      exp x(c, t)
        blank      (R, N + 1)     log-probability that t frames spell the prefix and end in blank
        total      (R, N + 1)     .. and end in blank or in its last character
        psi        (R, V)         log-probability that all frames spell something that begins with prefix + c;
                                  at EOS: that they spell the prefix
        prefix     (R,)           .. that begins with the prefix
        length     characters of the prefix; fewer frames cannot spell it, so blank and total are 0 before t = length
    """

    cumulated: Tensor
    probs: Tensor
    blank: Tensor
    total: Tensor
    last: Tensor
    prefix: Tensor
    psi: Tensor
    length: int
    beam: int


class CtcPrefixScorer:
    """log p_ctc(prefix + character ...) - log p_ctc(prefix ...) (Watanabe et al. 2017, algorithm 2).

    Where that algorithm (as in ESPnet's CTCPrefixScoreTH) runs a recursion over the frames for every candidate,
    here no candidate needs one: psi(prefix + c) = log sum_t exp(total(t - 1) + x(c, t)) needs the forward variables of
    the prefix alone, so all characters of all hypotheses are one matrix product and no pre-beam has to choose some.
    The recursion r(t) = logaddexp(r(t - 1), phi(t - 1)) + x(t) is left for the rows that the search keeps, and there
    it is r(t) = X(t) + logcumsumexp(phi(t - 1) - X(t - 1)) with X the cumulated x: no loop over frames either.

    Padding is made of certain blanks, so that the last of the N frames speaks for every length.
    """

    def __init__(self, ctc: torch.nn.Module, weight: float) -> None:
        self.ctc = ctc
        self.weight = weight

    def start(self, h: Tensor, lengths: Tensor, beam: int) -> _CtcRows:
        x = self.ctc(h).double().log_softmax(-1).clamp(min=_FLOOR)  # (B, N, V)
        batch, frames, vocabulary = x.shape
        certain = x.new_full((vocabulary,), _FLOOR)
        certain[BLANK] = 0.0
        x = torch.where(length_mask(lengths, frames)[..., None], x, certain)
        cumulated = x.new_zeros(batch, vocabulary, frames + 1)
        torch.cumsum(x.transpose(1, 2), dim=2, out=cumulated[..., 1:])
        blank = cumulated[:, BLANK].repeat_interleave(beam, dim=0)
        return _CtcRows(
            cumulated,
            x.exp(),
            blank,
            total=blank,
            last=torch.full((batch * beam,), BOS, device=h.device),
            prefix=blank.new_zeros(batch * beam),
            psi=blank.new_zeros(batch * beam, vocabulary),
            length=0,
            beam=beam,
        )

    def score(self, state: _CtcRows, step: Step) -> tuple[Tensor, _CtcRows]:
        batch, frames, vocabulary = state.probs.shape
        first = min(state.length, frames - 1)
        frames, probs = frames - first, state.probs[:, first:]
        top = state.total.amax(1, keepdim=True)  # what is e^700 times less likely than the best frame is lost
        total = (state.total[:, first:-1] - top).exp().view(batch, state.beam, frames)
        psi = (total @ probs).view(-1, vocabulary)  # (R, V)
        # A character can follow itself only across a blank.
        blank = (state.blank[:, first:-1] - top).exp().view(batch, state.beam, frames)
        last = state.last.view(batch, 1, state.beam).expand(batch, frames, state.beam)
        again = (blank * probs.gather(2, last).transpose(1, 2)).sum(-1)
        psi = psi.scatter(1, state.last[:, None], again.view(-1, 1)).log() + top
        psi[:, EOS] = state.total[:, -1]
        psi = psi.clamp(min=LOG_ZERO)
        impossible = psi < LOG_ZERO / 2  # more characters than frames, say
        return (psi - state.prefix[:, None]).float().masked_fill(impossible, -math.inf), replace(state, psi=psi)

    def select(self, state: _CtcRows, rows: Tensor, tokens: Tensor) -> _CtcRows:
        batch, vocabulary, times = state.cumulated.shape
        length = min(state.length, times - 2)
        blank, total = state.blank[rows, length:-1], state.total[rows, length:-1]
        phi = torch.where((tokens == state.last[rows])[:, None], blank, total)
        first = torch.arange(batch, device=rows.device).repeat_interleave(state.beam) * vocabulary
        x = state.cumulated.view(batch * vocabulary, times)[first + tokens]  # (R, N + 1)
        label = x.new_full(x.shape, LOG_ZERO)
        spelled = torch.logcumsumexp(phi - x[:, length:-1], dim=1)
        torch.add(x[:, length + 1 :], spelled, out=label[:, length + 1 :])
        x_blank = state.cumulated[:, BLANK].repeat_interleave(state.beam, dim=0)
        blank = torch.full_like(label, LOG_ZERO)
        after = torch.logcumsumexp(label[:, length + 1 : -1] - x_blank[:, length + 1 : -1], dim=1)
        torch.add(x_blank[:, length + 2 :], after, out=blank[:, length + 2 :])
        total = torch.full_like(label, LOG_ZERO)
        torch.logaddexp(label[:, length + 1 :], blank[:, length + 1 :], out=total[:, length + 1 :])
        prefix = state.psi[rows, tokens]
        return replace(state, blank=blank, total=total, last=tokens, prefix=prefix, length=state.length + 1)

    def keep(self, state: _CtcRows, utterances: Tensor) -> _CtcRows:
        rows = _rows(utterances, state.beam)
        return _CtcRows(
            state.cumulated[utterances],
            state.probs[utterances],
            state.blank[rows],
            state.total[rows],
            state.last[rows],
            state.prefix[rows],
            state.psi[rows],
            state.length,
            state.beam,
        )

    def most(self, state: _CtcRows, remaining: Tensor) -> float:
        return 0.0


# --------------------------------------------------------------------------------------------------- language model


class LanguageModel(Protocol):
    """What the search needs of a character language model over CharTokenizer's ids; states can be anything."""

    def start(self, batch: int) -> Any:
        """The state of `batch` rows before BOS."""

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Characters (R,) just written -> logits (R, V) of the next ones, and the new state."""

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state of these rows, in that order and possibly repeated."""


class LmScorer:
    """log p_lm(character | characters so far): shallow fusion.

    Args:
        model: what knows the language.
        weight: times its log-probabilities.
        space: id of the space, if the end of the text is to be worth as much as that of a word: where speech is cut at
            pauses, texts end in the middle of sentences, which a model of whole sentences does not expect. Space and
            EOS then both get p(space) + p(EOS).
    """

    def __init__(self, model: LanguageModel, weight: float, space: int | None = None) -> None:
        self.model = model
        self.weight = weight
        self.space = space

    def start(self, h: Tensor, lengths: Tensor, beam: int) -> tuple[Any, int]:
        return self.model.start(h.shape[0] * beam), beam

    def score(self, state: tuple[Any, int], step: Step) -> tuple[Tensor, tuple[Any, int]]:
        logits, after = self.model.step(step.tokens, state[0])
        return _ends_like_a_word(logits.float().log_softmax(-1), self.space), (after, state[1])

    def select(self, state: tuple[Any, int], rows: Tensor, tokens: Tensor) -> tuple[Any, int]:
        return self.model.select(state[0], rows), state[1]

    def keep(self, state: tuple[Any, int], utterances: Tensor) -> tuple[Any, int]:
        return self.model.select(state[0], _rows(utterances, state[1])), state[1]

    def most(self, state: tuple[Any, int], remaining: Tensor) -> Tensor | float:
        return 0.0


def _ends_like_a_word(log_probs: Tensor, space: int | None) -> Tensor:
    """(R, V) with p(space) + p(EOS) at both, if there is a space."""
    if space is None:
        return log_probs
    ends = [space, EOS]
    return log_probs.index_copy(
        1, torch.tensor(ends, device=log_probs.device), log_probs[:, ends].logsumexp(1, keepdim=True).expand(-1, 2)
    )


class InternalLmScorer(LmScorer):
    """log p(character | characters so far) of the speller when it hears nothing; to be subtracted, by a weight < 0.

    The speller has learnt some language from the few transcripts it was trained on; where a language model that has
    read far more is added, that only stands in the way. Its estimate is the speller's output with all contexts a_t
    (and C) zero (Variani et al. 2020, "Hybrid autoregressive transducer"; Meng et al. 2021, "Internal language model
    estimation").

    What is subtracted can add to the score without limit, so that in theory no hypothesis is ever out of the race. In
    practice a character that this adds much to costs as much elsewhere: `patience` nats are taken for the most that
    an open hypothesis still gets out of it. With inf the search goes on until no hypothesis can grow.
    """

    def __init__(self, speller: Speller, weight: float, space: int | None = None, patience: float = math.inf) -> None:
        # Without feeding back what is heard, the first hop of the speller that hears is that of the one that does not.
        self.shares = speller.config.context == "attention" and not speller.sequential
        super().__init__(_UpperHops(speller) if self.shares else _Deaf(speller), weight, space)
        self.patience = patience

    def score(self, state: tuple[Any, int], step: Step) -> tuple[Tensor, tuple[Any, int]]:
        if not self.shares:
            return super().score(state, step)
        if step.first_hidden is None:
            raise ValueError("the internal language model needs the speller's scorer before it")
        logits, after = self.model.step(step.first_hidden, state[0])
        return _ends_like_a_word(logits.float().log_softmax(-1), self.space), (after, state[1])

    def most(self, state: tuple[Any, int], remaining: Tensor) -> Tensor:
        return torch.full_like(remaining, -self.patience, dtype=torch.float)


class _Deaf:
    """The speller as a language model: it attends to one state of zeros, with its own s_t."""

    def __init__(self, speller: Speller) -> None:
        self.speller = speller

    def start(self, batch: int) -> tuple[Memory, SpellerState]:
        some = self.speller.embedding.weight
        nothing = some.new_zeros(batch, 1, self.speller.config.d)
        memory = self.speller.memory(nothing, torch.ones(batch, dtype=torch.long, device=some.device))
        return memory, self.speller.start(memory)

    def step(self, tokens: Tensor, state: tuple[Memory, SpellerState]) -> tuple[Tensor, tuple[Memory, SpellerState]]:
        memory, before = state
        logits, after = self.speller.step(tokens, memory, before)
        return logits, (memory, after)

    def select(self, state: tuple[Memory, SpellerState], rows: Tensor) -> tuple[Memory, SpellerState]:
        memory, before = state
        # All rows of the memory are the same.
        return memory if len(rows) == len(memory.h) else memory.select(rows), before.select(rows)


class _UpperHops:
    """The speller above its first hop, where [a_t ; s_t] is [0 ; s_t]: half of the weights have nothing to do.

    The state is hidden and cell of the other hops, (R, hops - 1, d) each.
    """

    def __init__(self, speller: Speller) -> None:
        self.d = speller.config.d
        self.output = speller.output.weight[:, self.d :].contiguous(), speller.output.bias
        packed = bool(speller._packed) and not self.output[0].is_cuda
        self.cells = [self._cell(lstm, packed) for lstm in list(speller.lstms)[1:]]

    def _cell(self, lstm: torch.nn.Module, packed: bool) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """One step of this LSTM from [0 ; s]."""
        w_ih, *others = lstm.all_weights[0]  # type: ignore[index]
        weights = [w_ih[:, self.d :].contiguous(), *others]
        if not packed:
            return lambda s, h, c: torch.lstm_cell(s, (h, c), *weights)
        half = torch.nn.LSTM(self.d, self.d, device="meta")
        half.load_state_dict(dict(zip(half.state_dict(), weights, strict=True)), assign=True)
        return PackedCell(half)

    def start(self, batch: int) -> tuple[Tensor, Tensor]:
        zeros = self.output[0].new_zeros(batch, len(self.cells), self.d)
        return zeros, zeros

    def step(self, s: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """s_t of the first hop (R, d) -> logits (R, V), and the new state."""
        hidden, cell = [], []
        for hop, step in enumerate(self.cells):
            s, c = step(s, state[0][:, hop], state[1][:, hop])
            hidden.append(s)
            cell.append(c)
        after = (torch.stack(hidden, 1), torch.stack(cell, 1)) if hidden else state
        return torch.nn.functional.linear(s, *self.output), after

    def select(self, state: tuple[Tensor, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
        return state[0][rows], state[1][rows]


# ------------------------------------------------------------------------------------------------ length, coverage


class LengthBonus:
    """The same for every character written; nothing for EOS."""

    def __init__(self, vocabulary: int, weight: float) -> None:
        self.weight = weight
        self.vocabulary = vocabulary

    def start(self, h: Tensor, lengths: Tensor, beam: int) -> Tensor:
        bonus = torch.ones(1, self.vocabulary, device=h.device)
        bonus[:, EOS] = 0
        return bonus

    def score(self, state: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        return state, state

    def select(self, state: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        return state

    def keep(self, state: Tensor, utterances: Tensor) -> Tensor:
        return state

    def most(self, state: Tensor, remaining: Tensor) -> Tensor:
        return remaining.float()


class WordBonus(LengthBonus):
    """The same for every space, that is for every word but the last; a malus keeps words from falling apart."""

    def __init__(self, vocabulary: int, weight: float, space: int) -> None:
        super().__init__(vocabulary, weight)
        self.space = space

    def start(self, h: Tensor, lengths: Tensor, beam: int) -> Tensor:
        bonus = torch.zeros(1, self.vocabulary, device=h.device)
        bonus[:, self.space] = 1
        return bonus


@dataclass(frozen=True)
class _Covered:
    attention: Tensor  # (R, N) summed over the steps
    count: Tensor  # (R,) encoder states covered
    lengths: Tensor  # (B,)
    beam: int


class CoverageScorer:
    """One for every encoder state whose attention, summed over the steps, passes the threshold.

    (Chorowski & Jaitly 2017.) Looking twice at the same place gains nothing, and leaving a part out loses what it
    would have gained.
    """

    def __init__(self, weight: float, threshold: float) -> None:
        self.weight = weight
        self.threshold = threshold

    def start(self, h: Tensor, lengths: Tensor, beam: int) -> _Covered:
        batch, frames, _ = h.shape
        zeros = torch.zeros(batch * beam, frames, device=h.device)
        return _Covered(zeros, zeros[:, 0], lengths, beam)

    def score(self, state: _Covered, step: Step) -> tuple[Tensor, _Covered]:
        if step.attention is None:
            raise ValueError("coverage needs a speller with attention")
        attention = state.attention + step.attention
        count = (attention > self.threshold).sum(1, dtype=attention.dtype)
        return (count - state.count)[:, None], replace(state, attention=attention, count=count)

    def select(self, state: _Covered, rows: Tensor, tokens: Tensor) -> _Covered:
        return replace(state, attention=state.attention[rows], count=state.count[rows])

    def keep(self, state: _Covered, utterances: Tensor) -> _Covered:
        rows = _rows(utterances, state.beam)
        return _Covered(state.attention[rows], state.count[rows], state.lengths[utterances], state.beam)

    def most(self, state: _Covered, remaining: Tensor) -> Tensor:
        return state.lengths[:, None] - state.count.view(-1, state.beam)


# ------------------------------------------------------------------------------------------------------- repetition


@dataclass(frozen=True)
class _Recent:
    tokens: Tensor  # (R, P) the last P characters, the newest first; blank where there is none yet
    runs: Tensor  # (R, P) how many of the last characters equal the one p before them
    beam: int


class RepetitionGuard:
    """Forbids (-inf) what would write the same 1 .. `longest` characters more than `times` times in a row.

    "BEEN PLIED BEEN PLIED BEEN PLIED " is a unit of 11 characters three times in a row.
    """

    weight = 1.0

    def __init__(self, vocabulary: int, times: int, longest: int) -> None:
        self.vocabulary = vocabulary
        self.times = times
        self.longest = longest

    def start(self, h: Tensor, lengths: Tensor, beam: int) -> _Recent:
        tokens = torch.full((h.shape[0] * beam, self.longest), BLANK, device=h.device)
        return _Recent(tokens, torch.zeros_like(tokens), beam)

    def score(self, state: _Recent, step: Step) -> tuple[Tensor, _Recent]:
        # A run of r at distance p means that the last p + r characters are one unit of p over and over.
        period = torch.arange(1, self.longest + 1, device=state.runs.device)
        full = (state.runs + 1 >= self.times * period).float()
        repeats = torch.zeros(full.shape[0], self.vocabulary, device=full.device)
        repeats.scatter_add_(1, state.tokens, full)
        return torch.zeros_like(repeats).masked_fill_(repeats > 0, -math.inf), state

    def select(self, state: _Recent, rows: Tensor, tokens: Tensor) -> _Recent:
        recent, new = state.tokens[rows], tokens[:, None]
        runs = (state.runs[rows] + 1) * (recent == new)
        return replace(state, tokens=torch.cat([new, recent[:, :-1]], dim=1), runs=runs)

    def keep(self, state: _Recent, utterances: Tensor) -> _Recent:
        rows = _rows(utterances, state.beam)
        return replace(state, tokens=state.tokens[rows], runs=state.runs[rows])

    def most(self, state: _Recent, remaining: Tensor) -> float:
        return 0.0
