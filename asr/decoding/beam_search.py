"""One batched beam search: utterances, hypotheses and characters in one tensor, Python loops over time alone.

Hypotheses that fall too far behind the best of their utterance are given up (`prune`), so a beam is as wide as what was
said is unclear; only what is left is computed.

    score(y) = (1 - ctc_weight) log p_speller(y) + ctc_weight log p_ctc(y)
             + lm_weight log p_lm(y) - ilm_weight log p_ilm(y)
             + length_bonus |y| + word_bonus (spaces in y) + coverage (encoder states covered)

summed character by character (Watanabe et al. 2017, "Hybrid CTC/attention architecture"). A part with weight 0 is not
computed. A beam of 1 without other parts is the plain greedy loop of `asr.decoding.greedy`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from asr.decoding.greedy import ctc_greedy
from asr.decoding.scorers import (
    Beams,
    CoverageScorer,
    CtcPrefixScorer,
    InternalLmScorer,
    LanguageModel,
    LengthBonus,
    LmScorer,
    RepetitionGuard,
    Scorer,
    SpellerScorer,
    Step,
    WordBonus,
)
from asr.errors import ConfigError
from asr.model.las import ListenAttendSpell
from asr.tokenizer import CharTokenizer

__all__ = ["PRESETS", "DecodingConfig", "Hypothesis", "beam_search"]


HASH = 1_000_003  # words are told apart by a polynomial of their characters modulo 2^64
PHRASE_HASH = 6_364_136_223_846_793_005  # .. and words in a row by one of theirs


@dataclass(frozen=True)
class DecodingConfig:
    """How to search. What is not asked for is not there: the default is the speller alone, without guards.

    `PRESETS` has the settings that work; conf/decoding/ holds the same for Hydra.
    """

    beam: int = 8  # open hypotheses an utterance, at most; 1 is greedy
    prune: float = math.inf  # .. and none whose score is by more than this below the best one's; inf: any
    nbest: int = 1  # hypotheses returned an utterance, at most `beam`
    temperature: float = 1.0  # the speller's logits are divided by it; above 1 its mistakes are less certain
    ctc_weight: float = 0.0  # share of the CTC prefix score, the rest being the speller's; 1: no speller at all
    lm_weight: float = 0.0  # times the language model's log-probability, added
    lm_eos: bool = True  # whether language models tell EOS from the end of a word; off for speech cut anywhere
    ilm_weight: float = 0.0  # times the log-probability of the speller's own language model, subtracted
    ilm_patience: float = 10.0  # such log-probability that an open hypothesis may still gain by; inf: any
    length_bonus: float = 0.0  # added for every character; makes up for what each costs. The search stops later
    word_bonus: float = 0.0  # added for every space; below 0 against words that fall apart
    coverage: float = 0.0  # added for every encoder state once attention has passed over it; against early ends
    coverage_threshold: float = 0.5  # .. that is, once its summed attention exceeds this
    eos_threshold: float = 0.0  # EOS only where it is at least this times as likely as the best character; 0: off
    min_length_ratio: float = 0.0  # no EOS before this share of the characters of CTC's best path; 0: off
    max_length_ratio: float = 0.0  # EOS at this many times the characters of CTC's best path; 0: at N characters
    max_repeats: int = 0  # no unit of characters more often than this in a row ("been plied been plied"); 0: off
    repeat_span: int = 40  # longest such unit that is noticed, in characters
    phases: int = 1  # times the encoder hears the utterance, each time one frame on; the search sees the mean of h
    warp: float = 0.0  # 0.05: frequencies times 0.95 at the first of several phases .. 1.05 at the last, other voices
    merge_words: int = 0  # hypotheses alike in this many last words are one, the better goes on; 0: never

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise ValueError(f"beam must be at least 1, got {self.beam}")
        if not self.prune > 0:
            raise ValueError(f"prune must be above 0, got {self.prune}")
        if self.phases < 1:
            raise ValueError(f"phases must be at least 1, got {self.phases}")
        if not 0 <= self.warp < 0.5:
            raise ValueError(f"warp must be at least 0 and below 0.5, got {self.warp}")
        if not 1 <= self.nbest <= self.beam:
            raise ValueError(f"nbest must be 1 .. beam ({self.beam}), got {self.nbest}")
        for name in ("ctc_weight", "eos_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0 .. 1, got {getattr(self, name)}")
        for field in fields(self):
            if field.name not in ("prune", "ilm_patience") and not math.isfinite(getattr(self, field.name)):
                raise ValueError(f"{field.name} must be finite, got {getattr(self, field.name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        for name in (
            "lm_weight",
            "ilm_weight",
            "ilm_patience",
            "coverage",
            "min_length_ratio",
            "max_length_ratio",
            "max_repeats",
            "merge_words",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.max_length_ratio and self.min_length_ratio > self.max_length_ratio:
            raise ValueError(f"min_length_ratio {self.min_length_ratio} > max_length_ratio {self.max_length_ratio}")
        if self.repeat_span < 1:
            raise ValueError(f"repeat_span must be at least 1, got {self.repeat_span}")
        if self.ctc_weight == 1 and self.coverage:
            raise ValueError("coverage looks at the speller's attention, which ctc_weight 1 leaves out")
        if self.ctc_weight == 1 and self.ilm_weight:
            raise ValueError("ilm_weight takes from the speller's score, which ctc_weight 1 leaves out")


_GUARDS: dict[str, Any] = {"min_length_ratio": 0.5, "max_length_ratio": 1.5, "max_repeats": 3}
PRESETS: dict[str, DecodingConfig] = {
    "greedy": DecodingConfig(beam=1),
    "greedy_ctc": DecodingConfig(beam=1, ctc_weight=0.2, phases=4, warp=0.04, **_GUARDS),
    # Without CTC nothing else speaks against EOS; with it a threshold only hinders CTC in ending a loop.
    "beam": DecodingConfig(eos_threshold=0.5, phases=4, **_GUARDS),
    "beam_ctc": DecodingConfig(ctc_weight=0.2, phases=4, warp=0.04, **_GUARDS),
    # Tuned on half of dev-2spk with a word n-gram model alone (recipes/language_model/README.md).
    "beam_ctc_lm": DecodingConfig(
        beam=128,
        prune=7.0,
        ctc_weight=0.5,
        lm_weight=0.8,
        lm_eos=False,
        ilm_weight=0.3,
        word_bonus=-3.0,
        phases=4,
        merge_words=2,  # all that a 3-gram sees; with a word LSTM beside it 3 brought nothing
        **(_GUARDS | {"max_length_ratio": 1.2}),
    ),
}


@dataclass(frozen=True)
class Hypothesis:
    """What one utterance may have said.

    Attributes:
        tokens: ids of the U characters, without BOS and EOS.
        text: the same as text.
        score: of the whole, EOS included; only to be compared within an utterance.
        token_scores: what each character and, in the end, EOS added to the score; U + 1 of them.
        attention: (U, N) on the CPU, last hop's weights when each character was chosen; None where none attends.
    """

    tokens: tuple[int, ...]
    text: str
    score: float
    token_scores: tuple[float, ...]
    attention: Tensor | None


def _nothing(attends: bool, frames: int = 0) -> Hypothesis:
    return Hypothesis((), "", 0.0, (0.0,), torch.zeros(0, frames) if attends else None)


@torch.inference_mode()
def beam_search(
    model: ListenAttendSpell,
    h: Tensor,
    lengths: Tensor,
    config: DecodingConfig,
    tokenizer: CharTokenizer,
    language_model: LanguageModel | None = None,
    extra_scorers: Sequence[Scorer] = (),
) -> list[list[Hypothesis]]:
    """Encoder states h (B, N, d) with lengths (B,) -> up to `nbest` hypotheses of each utterance, the best first.

    An utterance without encoder states has one empty hypothesis. At least one and at most N characters and EOS
    are looked at. The model should be in eval mode.

    Raises:
        ConfigError: the settings do not fit the model, or the language model is missing.
    """
    scorers = _scorers(model, config, tokenizer, language_model, extra_scorers)
    attends = any(isinstance(scorer, SpellerScorer) and scorer.attends for scorer in scorers)
    results = [[_nothing(attends)] for _ in range(h.shape[0])]
    spoken = (lengths > 0).nonzero().flatten()
    if not len(spoken):
        return results
    if len(spoken) < len(lengths):
        h, lengths = h[spoken], lengths[spoken]
    shortest, longest = _length_limits(model, h, lengths, config)
    vocabulary = model.config.speller.vocabulary
    space = tokenizer.space_id if config.merge_words else -1
    search = _Search(scorers, h, lengths, shortest, longest, vocabulary, config, space)
    search.run()
    for i, hypotheses in zip(spoken.tolist(), search.read(tokenizer), strict=True):
        results[i] = hypotheses
    return results


def _scorers(
    model: ListenAttendSpell,
    config: DecodingConfig,
    tokenizer: CharTokenizer,
    language_model: LanguageModel | None,
    extra: Sequence[Scorer],
) -> list[Scorer]:
    """The parts of the score that count; the speller first, for others look at its attention."""
    c, vocabulary = config, model.config.speller.vocabulary
    space = None if c.lm_eos else tokenizer.space_id
    scorers: list[Scorer] = []
    if c.ctc_weight < 1:
        scorers.append(SpellerScorer(model.speller, 1 - c.ctc_weight, c.temperature))
    if c.ctc_weight:
        scorers.append(CtcPrefixScorer(model.ctc, c.ctc_weight))
    if c.lm_weight:
        if language_model is None:
            raise ConfigError(f"lm_weight is {c.lm_weight} but there is no language model; give one or set it to 0")
        scorers.append(LmScorer(language_model, c.lm_weight, space))
    if c.ilm_weight:
        scorers.append(InternalLmScorer(model.speller, -c.ilm_weight, space, c.ilm_patience))
    if c.length_bonus:
        scorers.append(LengthBonus(vocabulary, c.length_bonus))
    if c.word_bonus:
        scorers.append(WordBonus(vocabulary, c.word_bonus, tokenizer.space_id))
    if c.coverage:
        if model.config.speller.context != "attention":
            raise ConfigError(f"coverage needs attention, but the model's context is {model.config.speller.context}")
        scorers.append(CoverageScorer(c.coverage, c.coverage_threshold))
    if c.max_repeats:
        scorers.append(RepetitionGuard(vocabulary, c.max_repeats, c.repeat_span))
    return scorers + [scorer for scorer in extra if scorer.weight]


def _length_limits(
    model: ListenAttendSpell, h: Tensor, lengths: Tensor, config: DecodingConfig
) -> tuple[Tensor, Tensor]:
    """The fewest and the most characters of each utterance, (B,) each."""
    shortest, longest = torch.zeros_like(lengths), lengths
    if config.min_length_ratio or config.max_length_ratio:
        heard = lengths.new_tensor([len(path) for path in ctc_greedy(model.ctc(h), lengths)])
        if config.max_length_ratio:
            longest = (heard * config.max_length_ratio).ceil().to(lengths.dtype).minimum(lengths)
        shortest = (heard * config.min_length_ratio).floor().to(lengths.dtype).minimum(longest)
    return shortest, longest


@dataclass(frozen=True)
class _Written:
    """One step of the past, for the utterances (B',) that were still open then."""

    utterances: Tensor  # (B',)
    parent: Tensor  # (B', K) which hypothesis of the step before goes on here
    row: Tensor  # (B', K) .. and its row then
    token: Tensor  # (B', K) with this character
    score: Tensor  # (B', K) and now has this score
    attention: Tensor | None  # (R, N) of the rows, when the character was chosen


class _Search:
    """The state of a search over B utterances of at least one encoder state.

    Of the open utterances, B', it has tables (B', K) of hypotheses; K is the number of the utterance that has most.
    Scorers see the R hypotheses alone that are still in the race: `beams` tells where in the tables they are.

    What ends is kept as (score, number of characters, parent) and traced back through `past` when all is done, so a
    step copies no prefixes and no attention.
    """

    def __init__(
        self,
        scorers: Sequence[Scorer],
        h: Tensor,
        lengths: Tensor,
        shortest: Tensor,
        longest: Tensor,
        vocabulary: int,
        config: DecodingConfig,
        space: int,
    ) -> None:
        batch, device = h.shape[0], h.device
        self.space = space
        self.scorers, self.config, self.lengths = scorers, config, lengths
        self.shortest, self.longest = shortest[:, None], longest[:, None]  # (B', 1)
        self.states = [scorer.start(h, lengths) for scorer in scorers]
        self.utterances = torch.arange(batch, device=device)  # (B',) those still open
        self.beams = Beams.single(batch, device)
        self.tokens = torch.full((batch,), CharTokenizer.bos_id, device=device)  # (R,)
        self.score = torch.zeros(batch, 1, device=device)  # (B', K)
        self.never = self.score.new_zeros(vocabulary)  # (V,) what is not written
        self.never[[CharTokenizer.blank_id, CharTokenizer.bos_id, CharTokenizer.unk_id]] = -math.inf
        self.past: list[_Written] = []
        # (B', K, 1 + merge_words) numbers that stand for the word at work and the ones before it, the last first
        self.words = self.tokens.new_zeros(batch, 1, 1 + config.merge_words)
        # Finished hypotheses of the open utterances, the best first: (B', F) each; and of all utterances.
        self.ended = self.score.new_full((batch, config.nbest), -math.inf)
        self.ended_length = torch.zeros_like(self.ended, dtype=torch.long)
        self.ended_parent = torch.zeros_like(self.ended_length)
        self.all_ended = (self.ended.clone(), self.ended_length.clone(), self.ended_parent.clone())

    def run(self) -> None:
        """One step for every character, until no open hypothesis can win."""
        c = self.config
        some_minimum = bool(self.shortest.any()) or c.eos_threshold > 0
        first_limit = int(self.longest.min())
        for position in range(int(self.longest.max()) + 1):
            step = Step(position, self.tokens, self.beams)
            gain = self._gain(step)  # (R, V)
            if some_minimum or position >= first_limit:
                self._limit_ends(gain, position)
            self._advance(gain, step)
            if not len(self.utterances):
                break

    def _gain(self, step: Step) -> Tensor:
        """What every next character adds to the score of every row: (R, V)."""
        gain = self.never.expand(len(self.tokens), -1)
        for i, scorer in enumerate(self.scorers):
            scores, self.states[i] = scorer.score(self.states[i], step)
            gain = gain.add(scores, alpha=scorer.weight)
        return gain

    def _limit_ends(self, gain: Tensor, position: int) -> None:
        """Take EOS away where it comes too early, and everything else where the hypothesis is long enough."""
        eos, threshold = CharTokenizer.eos_id, self.config.eos_threshold
        owners = self.beams.owners
        shortest, longest = self.shortest[owners, 0], self.longest[owners, 0]
        end = gain[:, eos].clone()  # (R,)
        gain[:, eos] = -math.inf
        best = gain.amax(-1)
        too_early = position < shortest
        if threshold:
            too_early = too_early | (end < best + math.log(threshold))
        must = position >= longest
        gain.masked_fill_(must[:, None], -math.inf)
        gain[:, eos] = end.masked_fill(too_early & ~must & ~best.isinf(), -math.inf)

    def _advance(self, gain: Tensor, step: Step) -> None:
        """The K best continuations of each utterance; those that end leave the beam."""
        beam, beams, vocabulary = self.config.beam, self.beams, gain.shape[1]
        total = beams.gather(self.score)[:, None] + gain  # (R, V)
        if not beams.full:
            nothing = total.new_full((beams.rows.numel(), vocabulary), -math.inf)
            total = nothing.index_copy_(0, beams.slots, total)
        total = total.view(len(beams.rows), -1)
        score, choice = self._best(total)
        parent, token = choice // vocabulary, choice % vocabulary
        if self.config.merge_words:
            score, order = self._merge(score, parent, token).topk(min(2 * beam, score.shape[1]))
            parent, token = parent.gather(1, order), token.gather(1, order)
        ends = token == CharTokenizer.eos_id
        if ends.any():  # rarely
            self._end(score[:, :beam].masked_fill(~ends[:, :beam], -math.inf), parent[:, :beam], step.position)
            score, order = score.masked_fill(ends, -math.inf).topk(min(beam, score.shape[1]))
            parent, token = parent.gather(1, order), token.gather(1, order)
        self.score, parent, token = score[:, :beam], parent[:, :beam], token[:, :beam]
        row = beams.rows.gather(1, parent)
        self.past.append(_Written(self.utterances, parent, row, token, self.score, step.attention))
        if self.config.merge_words:
            self.words = self._words(parent, token)

        places = self._in_the_race(row, step.position)
        done = ~places.any(1)
        if done.any():
            open_ = (~done).nonzero().flatten()
            self._keep(open_)
            if not len(open_):
                return
            row, token, places = row[open_], token[open_], places[open_]
        if not (self.beams.full and places.shape == self.beams.rows.shape and places.all()):
            self.beams = Beams.of(places)  # else they are what they were
        width = self.beams.rows.shape[1]
        self.score, self.words = self.score[:, :width], self.words[:, :width]
        rows, self.tokens = self.beams.gather(row[:, :width]), self.beams.gather(token[:, :width])
        self.states = [
            scorer.select(state, rows, self.tokens, self.beams)
            for scorer, state in zip(self.scorers, self.states, strict=True)
        ]

    def _best(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B', K V) of all continuations -> the best ones (B', C) and which they are, as many as may be needed.

        At most K of them end, so K that go on are among the best 2 K. What ends counts if it is among the best K. Of
        those that go on, merging may leave less than K, in the worst case; the beam is narrower then for a step.
        """
        c = self.config
        count = min((4 if c.merge_words else 2) * c.beam, total.shape[1])
        if c.prune == math.inf:
            return total.topk(count)
        least, sure = total.amax(1, keepdim=True) - c.prune, 4 * c.nbest
        score, choice = total.topk(min(count, max(int((total >= least).sum(1).max()), sure)))
        behind = score < least
        behind[:, :sure] = False
        return score.masked_fill_(behind, -math.inf), choice  # however many the other utterances have

    def _in_the_race(self, row: Tensor, position: int) -> Tensor:
        """Which of the new hypotheses (B', K), continuations of these rows, go on."""
        remaining = (self.longest - position - 1)[self.beams.owners, 0]
        hope = self.score  # the most that each can still reach
        for scorer, state in zip(self.scorers, self.states, strict=True):
            most = scorer.most(state, remaining)
            if isinstance(most, Tensor):
                hope = hope + (scorer.weight * most[row]).clamp(min=0)
            elif scorer.weight < 0:  # subtracts a log-probability: no limit to what that can add
                hope = hope + math.inf
        hope = hope.masked_fill(self.score == -math.inf, -math.inf)
        places = hope > self.ended[:, -1:]
        if self.config.prune < math.inf:
            near = self.score >= self.score[:, :1] - self.config.prune
            near[:, : self.config.nbest] = True
            places &= near
        return places

    def _words(self, parent: Tensor, token: Tensor) -> Tensor:
        """`self.words` of the continuations (B', C) of `parent` by `token`: (B', C, 1 + merge_words)."""
        words = self.words.gather(1, parent[..., None].expand(-1, -1, self.words.shape[2]))
        going_on = torch.cat([words[..., :1] * HASH + token[..., None], words[..., 1:]], dim=-1)
        next_word = functional.pad(words[..., :-1], (1, 0))
        return torch.where((token == self.space)[..., None], next_word, going_on)

    def _merge(self, score: Tensor, parent: Tensor, token: Tensor) -> Tensor:
        """Scores (B', C) of continuations, the best first, with -inf for those that end as a better one does."""
        words = self._words(parent, token).unbind(-1)
        key, order = reduce(lambda key, word: key * PHRASE_HASH + word, words).sort(stable=True)  # (B', C)
        again = functional.pad(key[:, 1:] == key[:, :-1], (1, 0))  # equal ones are in a row, the best first
        alike = torch.empty_like(again).scatter_(1, order, again)
        return score.masked_fill(alike & (token != CharTokenizer.eos_id), -math.inf)

    def _end(self, score: Tensor, parent: Tensor, length: int) -> None:
        """Let these (B', K) join the finished ones, and the best of all stay."""
        count = self.ended.shape[1]
        self.ended, order = torch.cat([self.ended, score], dim=1).topk(count)
        lengths = torch.cat([self.ended_length, torch.full_like(parent, length)], dim=1)
        self.ended_length = lengths.gather(1, order)
        self.ended_parent = torch.cat([self.ended_parent, parent], dim=1).gather(1, order)

    def _keep(self, open_: Tensor) -> None:
        """Note what has ended, and go on with these utterances (of the B' open ones) alone."""
        for every, now in zip(self.all_ended, (self.ended, self.ended_length, self.ended_parent), strict=True):
            every[self.utterances] = now
        self.utterances = self.utterances[open_]
        if not len(open_):
            return
        self.score, self.shortest, self.longest = self.score[open_], self.shortest[open_], self.longest[open_]
        self.ended, self.ended_length = self.ended[open_], self.ended_length[open_]
        self.words = self.words[open_]
        self.ended_parent = self.ended_parent[open_]
        self.states = [s.keep(state, open_) for s, state in zip(self.scorers, self.states, strict=True)]

    def read(self, tokenizer: CharTokenizer) -> list[list[Hypothesis]]:
        """Trace the finished hypotheses back to their beginning."""
        scores, lengths, beams = (ended.clone() for ended in self.all_ended)  # (B, F) each
        (batch, count), steps = scores.shape, int(lengths.max())
        tokens = lengths.new_zeros(steps, batch, count)
        levels = scores.new_zeros(steps + 1, batch, count)  # scores of the first 0 .. steps characters
        seen = self.past[0].attention
        attention = None if seen is None else seen.new_zeros(steps, batch, count, seen.shape[1])
        for t in range(steps - 1, -1, -1):
            past = self.past[t]  # a hypothesis longer than t is of an utterance that was open at t
            beam = beams[past.utterances]  # (B', F)
            at = beam.clamp(max=past.token.shape[1] - 1)  # those that have ended are elsewhere, and not asked for
            tokens[t, past.utterances] = past.token.gather(1, at)
            levels[t + 1, past.utterances] = past.score.gather(1, at)
            beam = torch.where(lengths[past.utterances] > t, past.parent.gather(1, at), beam)
            beams[past.utterances] = beam
            if attention is not None and past.attention is not None:
                attention[t, past.utterances] = past.attention[past.row.gather(1, at)]
        tokens, levels, scores, lengths = tokens.cpu(), levels.cpu(), scores.cpu(), lengths.cpu()
        attention = None if attention is None else attention.cpu()
        results = []
        for b, frames in enumerate(self.lengths.tolist()):
            found = []
            for f in range(count):
                score, length = float(scores[b, f]), int(lengths[b, f])
                if score == -math.inf:
                    break  # fewer hypotheses than asked for
                ids = tuple(tokens[:length, b, f].tolist())
                reached = [*levels[: length + 1, b, f].tolist(), score]
                gains = tuple(after - before for before, after in pairwise(reached))
                weights = None if attention is None else attention[:length, b, f, :frames].clone()
                found.append(Hypothesis(ids, tokenizer.decode(ids), score, gains, weights))
            results.append(found or [_nothing(attention is not None, frames)])
        return results
