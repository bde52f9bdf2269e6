"""What a hypothesis is worth: one small protocol, and the speller, CTC, language models, length and coverage in it.

A search over B utterances with up to K hypotheses each has R rows, those of an utterance one after another (`Beams`).
At every step each scorer tells, for every row and every character that may follow, what the row's score gains by it;
the search adds these up with the scorers' weights. Another scorer is another class here, or anywhere else, with these
methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from asr.model.encoder import length_mask
from asr.model.speller import Beams, Memory, Speller, SpellerState
from asr.tokenizer import CharTokenizer

__all__ = [
    "Beams",
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
    beams: Beams  # whose the rows are
    attention: Tensor | None = None  # (R, N) of the speller's last hop at this step
    spelled: SpellerState | None = None  # of the speller after this step


class Scorer(Protocol):
    """A part of the score. Its state is its own; it need not be a tensor."""

    weight: float

    def start(self, h: Tensor, lengths: Tensor) -> Any:
        """Encoder states (B, N, d) with lengths (B,) -> the state of B empty hypotheses, one an utterance."""

    def score(self, state: Any, step: Step) -> tuple[Tensor, Any]:
        """What each next character adds to each row: (R, V), or something that broadcasts to it; and the state."""

    def keep(self, state: Any, utterances: Tensor) -> Any:
        """Between `score` and `select`: only these utterances go on. Rows keep their numbers until `select`."""

    def select(self, state: Any, rows: Tensor, tokens: Tensor, beams: Beams) -> Any:
        """The state of new rows (R,): row i is what was row rows[i] when scored, followed by tokens[i].

        `beams` tells whose the new rows are, among the utterances that go on.
        """

    def most(self, state: Any, remaining: Tensor) -> Tensor | float:
        """The most that `score` can still add to each row, in `remaining` (R,) more characters: (R,), or for all.

        0.0 for log-probabilities, which add nothing. The search stops when no open row can overtake a finished one.
        """


# ---------------------------------------------------------------------------------------------------------- speller


class SpellerScorer:
    """log p(character | characters so far, h) of the attention decoder; leaves its attention for the others."""

    def __init__(self, speller: Speller, weight: float = 1.0, temperature: float = 1.0) -> None:
        self.speller = speller
        self.weight = weight
        self.temperature = temperature
        self.attends = speller.config.context == "attention"
        # Location-aware scores look at each row's own last weights, so every row needs its own memory.
        self.own_memory = any(attention.sequential for attention in speller.attentions)

    def start(self, h: Tensor, lengths: Tensor) -> tuple[Memory, SpellerState]:
        memory = self.speller.memory(h, lengths)
        return memory, self.speller.start(memory)

    def score(self, state: tuple[Memory, SpellerState], step: Step) -> tuple[Tensor, tuple[Memory, SpellerState]]:
        logits, after = self.speller.step(step.tokens, *state, beams=None if self.own_memory else step.beams)
        logits = logits.float()
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.attends:
            step.attention = after.weights[:, -1]
        step.spelled = after
        return logits.log_softmax(-1), (state[0], after)

    def keep(self, state: tuple[Memory, SpellerState], utterances: Tensor) -> tuple[Memory, SpellerState]:
        return state[0] if self.own_memory else state[0].select(utterances), state[1]

    def select(
        self, state: tuple[Memory, SpellerState], rows: Tensor, tokens: Tensor, beams: Beams
    ) -> tuple[Memory, SpellerState]:
        return state[0].select(rows) if self.own_memory else state[0], state[1].select(rows)

    def most(self, state: tuple[Memory, SpellerState], remaining: Tensor) -> float:
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

    def of(self, characters: Tensor, owners: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those of one character a row, (R,), of its utterance: (R, ...) each."""
        rows = characters + self.through.shape[1] * owners
        following, within, through = (
            table.flatten(0, 1).index_select(0, rows) for table in (self.following, self.within, self.through)
        )
        return following, within, through

    def keep(self, utterances: Tensor) -> _CtcTables:
        return _CtcTables(self.following[utterances], self.within[utterances], self.through[utterances])

    def drop(self, blocks: int) -> _CtcTables:
        """Without the first blocks."""
        return _CtcTables(*(table[..., blocks:].contiguous() for table in (self.following, self.within, self.through)))


@dataclass(frozen=True)
class _CtcRows:
    """The forward variables of R prefixes, float64.

    mass    (R, 2, _BLOCK, blocks)  times e^scale: probability that t frames spell the prefix and end in blank [0],
                                    or end in blank or its last character [1]
    scale   (R, blocks)             such that the greatest mass of a block is 1
    last    (R,)                    last character
    again   (R, _BLOCK, blocks)     its `following`
    prefix  (R,)                    log-probability that all frames spell something that begins with the prefix
    psi     (R, V)                  .. with prefix + c; at EOS: that they spell the prefix
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

    def start(self, h: Tensor, lengths: Tensor) -> _CtcRows:
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
        last = torch.full((batch,), BOS, device=h.device)
        return _CtcRows(
            tables,
            mass=blank.exp()[:, None].repeat(1, 2, 1, 1),
            scale=scale,
            last=last,
            again=tables.of(last, torch.arange(batch, device=h.device))[0],
            prefix=x.new_zeros(batch),
            psi=x.new_zeros(batch, vocabulary),
        )

    def score(self, state: _CtcRows, step: Step) -> tuple[Tensor, _CtcRows]:
        following = state.tables.following.flatten(2)  # (B, V, times)
        top = state.scale.amax(1, keepdim=True)  # what is e^700 times less likely than the best block is lost
        share = (state.scale - top).exp()
        blank, total = (state.mass * share[:, None, None]).flatten(2).unbind(1)  # (R, times)
        psi = step.beams.matmul(total, following.transpose(1, 2))
        # A character can follow itself only across a blank.
        psi.scatter_(1, state.last[:, None], (blank * state.again.flatten(1)).sum(1, keepdim=True))
        psi = psi.log_().add_(top)
        psi[:, EOS] = state.mass[:, 1, -1, -1].log() + state.scale[:, -1]
        psi.clamp_(min=LOG_ZERO)
        impossible = psi < LOG_ZERO / 2  # more characters than frames, say
        gain = (psi - state.prefix[:, None]).float().masked_fill(impossible, -math.inf)
        return gain, replace(state, psi=psi)

    def keep(self, state: _CtcRows, utterances: Tensor) -> _CtcRows:
        return replace(state, tables=state.tables.keep(utterances))

    def select(self, state: _CtcRows, rows: Tensor, tokens: Tensor, beams: Beams) -> _CtcRows:
        across = tokens != state.last.index_select(0, rows)
        source = state.mass.flatten(0, 1).index_select(0, 2 * rows + across)
        scale = state.scale.index_select(0, rows)
        tables, first = state.tables, min(state.length // _BLOCK, state.first + scale.shape[-1] - 1)
        if skip := first - state.first:
            tables, source, scale = tables.drop(skip), source[..., skip:], scale[..., skip:]
        owners = beams.owners
        following, within, through = tables.of(tokens, owners)
        label, label_scale = _scan(source, scale, following, within, through)
        blanks = tables.of(torch.full_like(owners, BLANK), owners)
        blank, scale = _scan(label, label_scale, *blanks)
        total = label.mul_((label_scale - scale).exp()[..., None, :]).add_(blank)
        greatest = total.amax(-2)
        greatest.masked_fill_(greatest == 0, 1.0)
        mass = torch.stack([blank, total], dim=1).mul_(greatest.reciprocal()[:, None, None])
        return _CtcRows(
            tables,
            mass=mass,
            scale=(scale + greatest.log()).clamp(min=LOG_ZERO),
            last=tokens,
            again=following,
            prefix=state.psi.take(rows * state.psi.shape[-1] + tokens),
            psi=state.psi,
            length=state.length + 1,
            first=first,
        )

    def most(self, state: _CtcRows, remaining: Tensor) -> float:
        return 0.0


def _scan(source: Tensor, scale: Tensor, following: Tensor, within: Tensor, through: Tensor) -> tuple[Tensor, Tensor]:
    """r(t) = (r(t - 1) + source(t - 1)) e^x(t), where r and source are 0 before the first block.

    The loop runs over the _BLOCK places within blocks. From block to block goes a carry, with which r(t) becomes
    r(t) + within(t) carry; logarithms are taken of nothing else, and no block can be too small for another's scale.

    Args:
        source: (R, _BLOCK, blocks), times e^scale.
        scale: (R, blocks).
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

    def start(self, h: Tensor, lengths: Tensor) -> Any:
        return self.model.start(h.shape[0])

    def score(self, state: Any, step: Step) -> tuple[Tensor, Any]:
        logits, after = self.model.step(step.tokens, state)
        return _ends_like_a_word(logits.float().log_softmax(-1), self.space), after

    def keep(self, state: Any, utterances: Tensor) -> Any:
        return state

    def select(self, state: Any, rows: Tensor, tokens: Tensor, beams: Beams) -> Any:
        return self.model.select(state, rows)

    def most(self, state: Any, remaining: Tensor) -> Tensor | float:
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

    def score(self, state: Any, step: Step) -> tuple[Tensor, Any]:
        if not self.shares:
            return super().score(state, step)
        if step.spelled is None:
            raise ValueError("the internal language model needs the speller's scorer before it")
        s, read = self.speller.alone(step.spelled)
        logits, after = self.model.step(s, state)
        logits = logits + read
        return _ends_like_a_word(logits.float().log_softmax(-1), self.space), after

    def most(self, state: Any, remaining: Tensor) -> Tensor:
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
        self.cells: Sequence[Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = speller.unheard
        if not self.cells or self.output[0].is_cuda:
            self.cells = [self._cell(lstm) for lstm in list(speller.lstms)[1:]]

    def _cell(self, lstm: torch.nn.Module) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """One step of this LSTM from [0 ; s]."""
        w_ih, *others = lstm.all_weights[0]  # type: ignore[index]
        weights = [w_ih[:, self.d :].contiguous(), *others]
        return lambda s, h, c: torch.lstm_cell(s, (h, c), *weights)

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
        return state[0].index_select(0, rows), state[1].index_select(0, rows)


# ------------------------------------------------------------------------------------------------ length, coverage


class LengthBonus:
    """The same for every character written; nothing for EOS."""

    def __init__(self, vocabulary: int, weight: float) -> None:
        self.weight = weight
        self.vocabulary = vocabulary

    def start(self, h: Tensor, lengths: Tensor) -> Tensor:
        bonus = torch.ones(1, self.vocabulary, device=h.device)
        bonus[:, EOS] = 0
        return bonus

    def score(self, state: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        return state, state

    def keep(self, state: Tensor, utterances: Tensor) -> Tensor:
        return state

    def select(self, state: Tensor, rows: Tensor, tokens: Tensor, beams: Beams) -> Tensor:
        return state

    def most(self, state: Tensor, remaining: Tensor) -> Tensor:
        return remaining.float()


class WordBonus(LengthBonus):
    """The same for every space, that is for every word but the last; a malus keeps words from falling apart."""

    def __init__(self, vocabulary: int, weight: float, space: int) -> None:
        super().__init__(vocabulary, weight)
        self.space = space

    def start(self, h: Tensor, lengths: Tensor) -> Tensor:
        bonus = torch.zeros(1, self.vocabulary, device=h.device)
        bonus[:, self.space] = 1
        return bonus


@dataclass(frozen=True)
class _Covered:
    attention: Tensor  # (R, N) summed over the steps
    count: Tensor  # (R,) encoder states covered
    lengths: Tensor  # (R,) encoder states


class CoverageScorer:
    """One for every encoder state whose attention, summed over the steps, passes the threshold.

    (Chorowski & Jaitly 2017.) Looking twice at the same place gains nothing, and leaving a part out loses what it
    would have gained.
    """

    def __init__(self, weight: float, threshold: float) -> None:
        self.weight = weight
        self.threshold = threshold

    def start(self, h: Tensor, lengths: Tensor) -> _Covered:
        zeros = torch.zeros(h.shape[:2], device=h.device)
        return _Covered(zeros, zeros[:, 0], lengths)

    def score(self, state: _Covered, step: Step) -> tuple[Tensor, _Covered]:
        if step.attention is None:
            raise ValueError("coverage needs a speller with attention")
        attention = state.attention + step.attention
        count = (attention > self.threshold).sum(1, dtype=attention.dtype)
        return (count - state.count)[:, None], replace(state, attention=attention, count=count)

    def keep(self, state: _Covered, utterances: Tensor) -> _Covered:
        return state

    def select(self, state: _Covered, rows: Tensor, tokens: Tensor, beams: Beams) -> _Covered:
        return _Covered(state.attention[rows], state.count[rows], state.lengths[rows])

    def most(self, state: _Covered, remaining: Tensor) -> Tensor:
        return state.lengths - state.count


# ------------------------------------------------------------------------------------------------------- repetition


@dataclass(frozen=True)
class _Recent:
    tokens: Tensor  # (R, P) the last P characters, the newest first; blank where there is none yet
    runs: Tensor  # (R, P) how many of the last characters equal the one p before them


class RepetitionGuard:
    """Forbids (-inf) what would write the same 1 .. `longest` characters more than `times` times in a row.

    "BEEN PLIED BEEN PLIED BEEN PLIED " is a unit of 11 characters three times in a row.
    """

    weight = 1.0

    def __init__(self, vocabulary: int, times: int, longest: int) -> None:
        self.vocabulary = vocabulary
        self.times = times
        self.longest = longest

    def start(self, h: Tensor, lengths: Tensor) -> _Recent:
        tokens = torch.full((h.shape[0], self.longest), BLANK, device=h.device)
        return _Recent(tokens, torch.zeros_like(tokens))

    def score(self, state: _Recent, step: Step) -> tuple[Tensor, _Recent]:
        # A run of r at distance p means that the last p + r characters are one unit of p over and over.
        period = torch.arange(1, self.longest + 1, device=state.runs.device)
        full = (state.runs + 1 >= self.times * period).float()
        repeats = torch.zeros(full.shape[0], self.vocabulary, device=full.device)
        repeats.scatter_add_(1, state.tokens, full)
        return torch.zeros_like(repeats).masked_fill_(repeats > 0, -math.inf), state

    def keep(self, state: _Recent, utterances: Tensor) -> _Recent:
        return state

    def select(self, state: _Recent, rows: Tensor, tokens: Tensor, beams: Beams) -> _Recent:
        recent, new = state.tokens[rows], tokens[:, None]
        runs = (state.runs[rows] + 1) * (recent == new)
        return _Recent(torch.cat([new, recent[:, :-1]], dim=1), runs)

    def most(self, state: _Recent, remaining: Tensor) -> float:
        return 0.0
