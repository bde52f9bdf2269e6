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
from torch.nn.functional import pad

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
    spelled: SpellerState | None = None  # of the speller after this step


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
        step.spelled = after
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
_BLOCK = 8  # times that share a scale


@dataclass(frozen=True)
class _CtcTables:
    """What the frames say, float64. Times t = 0 .. N and padding, in blocks: t = _BLOCK * block + place.

    With x(c, t) the log-probability of c in frame t = 1 .. N:
        following  (B, V, _BLOCK, blocks)  exp x(c, t + 1)
        within     (B, V, _BLOCK, blocks)  exp of x(c, .) summed from the beginning of the block to t
        through    (B, V, blocks)          x(c, .) summed from the first block to this one
    """

    following: Tensor
    within: Tensor
    through: Tensor

    def of(self, characters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those of one character a row: (B, K) -> (B, K, ...) each."""
        batch, vocabulary, _ = self.through.shape
        rows = (characters + vocabulary * torch.arange(batch, device=characters.device)[:, None]).flatten()
        following, within, through = (
            table.flatten(0, 1).index_select(0, rows).view(*characters.shape, *table.shape[2:])
            for table in (self.following, self.within, self.through)
        )
        return following, within, through

    def keep(self, utterances: Tensor) -> _CtcTables:
        return _CtcTables(self.following[utterances], self.within[utterances], self.through[utterances])

    def drop(self, blocks: int) -> _CtcTables:
        """Without the first blocks."""
        return _CtcTables(*(table[..., blocks:].contiguous() for table in (self.following, self.within, self.through)))


@dataclass(frozen=True)
class _CtcRows:
    """The forward variables of the K prefixes of each utterance, float64.

    mass    (B, K, 2, _BLOCK, blocks)  times e^scale: probability that t frames spell the prefix and end in blank [0],
                                       or end in blank or its last character [1]
    scale   (B, K, blocks)             such that the greatest mass of a block is 1
    last    (B, K)                     last character
    again   (B, K, _BLOCK, blocks)     its `following`
    prefix  (B, K)                     log-probability that all frames spell something that begins with the prefix
    psi     (B, K, V)                  .. with prefix + c; at EOS: that they spell the prefix
    length  characters of the prefix; fewer frames cannot spell it, so that
    first   blocks are not held any more
    """

    tables: _CtcTables
    mass: Tensor
    scale: Tensor
    last: Tensor
    again: Tensor
    prefix: Tensor
    psi: Tensor
    length: int = 0
    first: int = 0


class CtcPrefixScorer:
    """log p_ctc(prefix + character ...) - log p_ctc(prefix ...) (Watanabe et al. 2017, algorithm 2).

    Where that algorithm (as in ESPnet's CTCPrefixScoreTH) runs a recursion over the frames for every candidate,
    here no candidate needs one: psi(prefix + c) = log sum_t exp(total(t - 1) + x(c, t)) needs the forward variables of
    the prefix alone, so all characters of all hypotheses are one matrix product and no pre-beam has to choose some.
    The recursion is left for the rows that the search keeps, and there all blocks of times go through it at once.

    Padding is made of certain blanks, so that the last time speaks for every length.
    """

    def __init__(self, ctc: torch.nn.Module, weight: float) -> None:
        self.ctc = ctc
        self.weight = weight

    def start(self, h: Tensor, lengths: Tensor, beam: int) -> _CtcRows:
        x = self.ctc(h).double().log_softmax(-1).clamp(min=_FLOOR).transpose(1, 2)  # (B, V, N)
        batch, vocabulary, frames = x.shape
        blocks = frames // _BLOCK + 1
        padding = ~length_mask(lengths + 1, blocks * _BLOCK)
        x = pad(x, (1, blocks * _BLOCK - frames - 1)).masked_fill(padding[:, None], LOG_ZERO)
        x[:, BLANK].masked_fill_(padding, 0.0)

        def folded(table: Tensor) -> Tensor:
            return table.unflatten(-1, (blocks, _BLOCK)).transpose(-1, -2).contiguous()

        within = folded(x).cumsum(-2)
        through = within[..., -1, :].cumsum(-1)
        tables = _CtcTables(folded(pad(x[..., 1:].exp(), (0, 1))), within.exp(), through)
        blank = within[:, BLANK] - within[:, BLANK, :1]
        scale = pad(through[:, BLANK, :-1], (1, 0)) + within[:, BLANK, 0]
        last = torch.full((batch, beam), BOS, device=h.device)
        return _CtcRows(
            tables,
            mass=blank.exp()[:, None, None].repeat(1, beam, 2, 1, 1),
            scale=scale[:, None].repeat(1, beam, 1),
            last=last,
            again=tables.of(last)[0],
            prefix=x.new_zeros(batch, beam),
            psi=x.new_zeros(batch, beam, vocabulary),
        )

    def score(self, state: _CtcRows, step: Step) -> tuple[Tensor, _CtcRows]:
        following = state.tables.following.flatten(2)  # (B, V, times)
        top = state.scale.amax(2, keepdim=True)  # what is e^700 times less likely than the best block is lost
        share = (state.scale - top).exp()
        blank, total = (state.mass * share[:, :, None, None]).flatten(3).unbind(2)  # (B, K, times)
        psi = total @ following.transpose(1, 2)
        # A character can follow itself only across a blank.
        psi.scatter_(2, state.last[..., None], (blank * state.again.flatten(2)).sum(2, keepdim=True))
        psi = psi.log_().add_(top)
        psi[..., EOS] = state.mass[:, :, 1, -1, -1].log() + state.scale[..., -1]
        psi.clamp_(min=LOG_ZERO)
        impossible = psi < LOG_ZERO / 2  # more characters than frames, say
        gain = (psi - state.prefix[..., None]).float().masked_fill(impossible, -math.inf)
        return gain.flatten(0, 1), replace(state, psi=psi)

    def select(self, state: _CtcRows, rows: Tensor, tokens: Tensor) -> _CtcRows:
        last = tokens.view_as(state.last)
        across = tokens != state.last.flatten().index_select(0, rows)
        source = state.mass.flatten(0, 2).index_select(0, 2 * rows + across).view_as(state.again)
        scale = state.scale.flatten(0, 1).index_select(0, rows).view_as(state.scale)
        tables, first = state.tables, min(state.length // _BLOCK, state.first + scale.shape[-1] - 1)
        if skip := first - state.first:
            tables, source, scale = tables.drop(skip), source[..., skip:], scale[..., skip:]
        following, within, through = tables.of(last)
        label, label_scale = _scan(source, scale, following, within, through)
        blanks = tables.following[:, BLANK, None], tables.within[:, BLANK, None], tables.through[:, BLANK, None]
        blank, scale = _scan(label, label_scale, *blanks)
        total = label.mul_((label_scale - scale).exp()[..., None, :]).add_(blank)
        greatest = total.amax(-2)
        greatest.masked_fill_(greatest == 0, 1.0)
        mass = torch.stack([blank, total], dim=2).mul_(greatest.reciprocal()[:, :, None, None])
        return _CtcRows(
            tables,
            mass=mass,
            scale=(scale + greatest.log()).clamp(min=LOG_ZERO),
            last=last,
            again=following,
            prefix=state.psi.take(rows * state.psi.shape[-1] + tokens).view_as(last),
            psi=state.psi,
            length=state.length + 1,
            first=first,
        )

    def keep(self, state: _CtcRows, utterances: Tensor) -> _CtcRows:
        return _CtcRows(
            state.tables.keep(utterances),
            state.mass[utterances],
            state.scale[utterances],
            state.last[utterances],
            state.again[utterances],
            state.prefix[utterances],
            state.psi[utterances],
            state.length,
            state.first,
        )

    def most(self, state: _CtcRows, remaining: Tensor) -> float:
        return 0.0


def _scan(source: Tensor, scale: Tensor, following: Tensor, within: Tensor, through: Tensor) -> tuple[Tensor, Tensor]:
    """r(t) = (r(t - 1) + source(t - 1)) e^x(t), where r and source are 0 before the first block.

    The loop runs over the _BLOCK places within blocks. From block to block goes a carry, with which r(t) becomes
    r(t) + within(t) carry; logarithms are taken of nothing else, and no block can be too small for another's scale.

    Args:
        source: (B, K, _BLOCK, blocks), times e^scale.
        scale: (B, K, blocks).
        following, within, through: those of each row's character, see `_CtcTables`.

    Returns:
        r and its scale, no less than that of the source; LOG_ZERO where there is nothing.
    """
    r = torch.zeros_like(source)
    places, sources = r.unbind(-2), source.unbind(-2)
    for i, probs in enumerate(following.unbind(-2)[:-1]):
        torch.add(places[i], sources[i], out=places[i + 1]).mul_(probs)
    carried = ((places[-1] + sources[-1]).log_() + (scale - through)).logcumsumexp(-1) + through
    carry = pad(carried[..., :-1], (1, 0), value=LOG_ZERO).clamp_(min=LOG_ZERO)
    after = scale.maximum(carry)
    r *= (scale - after).exp()[..., None, :]
    return r.addcmul_(within, (carry - after).exp()[..., None, :]), after


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
        self.speller = speller
        # Without feeding back what is heard, the first hop of the speller that hears is that of the one that does not.
        self.shares = speller.config.context == "attention" and not speller.sequential
        super().__init__(_UpperHops(speller) if self.shares else _Deaf(speller), weight, space)
        self.patience = patience

    def score(self, state: tuple[Any, int], step: Step) -> tuple[Tensor, tuple[Any, int]]:
        if not self.shares:
            return super().score(state, step)
        if step.spelled is None:
            raise ValueError("the internal language model needs the speller's scorer before it")
        s, read = self.speller.alone(step.spelled)
        logits, after = self.model.step(s, state[0])
        logits = logits + read
        return _ends_like_a_word(logits.float().log_softmax(-1), self.space), (after, state[1])

    def most(self, state: tuple[Any, int], remaining: Tensor) -> Tensor:
        return torch.full_like(remaining, -self.patience, dtype=torch.float)


class _Deaf:
    """The speller as a language model: it attends to one state of zeros, with its own s_t."""

    def __init__(self, speller: Speller) -> None:
        self.speller = speller

    def start(self, batch: int) -> tuple[Memory, SpellerState]:
        memory = self.speller.nothing_heard(batch)
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
