"""When each word of a result was said, and how sure it is.

    words = align_words(ctc_log_probs, hypothesis.tokens, tokenizer, 0.04, token_scores=hypothesis.token_scores)

Times come from the forced alignment of the result with the CTC head (`torchaudio.functional.forced_align`). CTC does
not mark how long a character lasts: it fires for a state or two, a little after the character begins (Sak et al. 2015).
So the spikes of a word say where it is, and `WordTiming`, fitted to a reference alignment, where it begins and ends.
Where the characters do not fit into the encoder's states, the attention's peaks stand in for the spikes.

Confidences come from the probabilities of a word's characters through a logistic function, `Confidence`, whose
coefficients are fitted on speech that the model was not trained on. `recipes/librispeech/word_times.py` fits both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from asr.tokenizer import CharTokenizer
from asr.writers import Word

__all__ = [
    "FEATURES",
    "Confidence",
    "SpottedWord",
    "WordTiming",
    "align_batch",
    "align_words",
    "calibration_error",
    "fit_confidence",
    "fit_timing",
    "fits",
    "geometric_mean",
    "place_words",
    "spot_words",
]

FEATURES = ("score_mean", "score_min", "ctc_mean", "ctc_min", "log_length")  # of a word; see `SpottedWord`
LEAST_LOG_PROBABILITY = -20.0  # below, a character is impossible and its exact score means nothing
RIDGE = 1.0  # penalty on the squared weights of standardised features: of no weight once there are 100 words


@dataclass(frozen=True)
class WordTiming:
    """From the spikes of a word's first and last character to its boundaries; all in seconds.

    Defaults: fitted to the word alignments of dev-2spk (50 minutes, 2 speakers) with a model of 6 hours of training
    speech and 40 ms states.
    """

    pause: float = 0.18  # spikes of neighbouring words farther apart than this have silence in between
    share: float = 0.75  # without silence words meet at this share of the gap between their spikes: spikes are late
    shift: float = -0.02  # .. and this much later
    lead: float = 0.0  # after silence a word begins this long before its first spike
    tail: float = 0.1  # before silence a word ends this long after its last spike

    def __post_init__(self) -> None:
        if self.pause < 0:
            raise ValueError(f"pause must not be negative, got {self.pause}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be 0 .. 1, got {self.share}")


@dataclass(frozen=True)
class SpottedWord:
    """Where the characters of a word fired, and what speaks for it.

    Attributes:
        word: its text.
        first: (start, end) of its first character's spike, in seconds.
        last: (start, end) of its last character's spike, in seconds.
        features: `FEATURES` in their order. Mean and least of what each character, and the space or EOS that ends the
            word, added to the search's score (of CTC where the scores are not known); mean and least of the CTC
            log-probabilities of its characters' spikes; log of the number of characters.
    """

    word: str
    first: tuple[float, float]
    last: tuple[float, float]
    features: tuple[float, ...]


@dataclass(frozen=True)
class Confidence:
    """1 / (1 + exp(-(bias + weights . features))). Weights are never negative: see `fit_confidence`."""

    bias: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)  # by the names of FEATURES; those left out are 0

    def __post_init__(self) -> None:
        if not isinstance(self.weights, Mapping):
            raise TypeError(f"weights should be numbers by the names of features, not {self.weights!r}")
        unknown = [name for name in self.weights if name not in FEATURES]
        if unknown:
            raise ValueError(f"no feature {unknown[0]!r}; there are {', '.join(FEATURES)}")
        for name, weight in self.weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise TypeError(f"weight of {name} should be a number, not {weight!r}")

    def __call__(self, features: Sequence[float]) -> float:
        """The features of one word, in the order of FEATURES -> 0..1."""
        z = self.bias + sum(self.weights.get(n, 0.0) * x for n, x in zip(FEATURES, features, strict=True))
        return 1 / (1 + math.exp(-z)) if z > -700 else 0.0


def geometric_mean(features: Sequence[float]) -> float:
    """Confidence without calibration: the geometric mean of the characters' probabilities."""
    return math.exp(min(features[0], 0.0))


def align_words(
    ctc_log_probs: Tensor,
    tokens: Sequence[int],
    tokenizer: CharTokenizer,
    seconds_per_state: float,
    *,
    token_scores: Sequence[float] | None = None,
    attention: Tensor | None = None,
    duration: float | None = None,
    timing: WordTiming | None = None,
    confidence: Callable[[Sequence[float]], float] = geometric_mean,
) -> list[Word]:
    """The words of one result with their times, in seconds from the start of the segment, and confidences.

    Args:
        ctc_log_probs: (N, V) log-probabilities of the CTC head.
        tokens: U ids of the result, without BOS and EOS.
        seconds_per_state: hop times the encoder's reduction.
        token_scores: `Hypothesis.token_scores` (U + 1).
        attention: `Hypothesis.attention` (U, N), for results with more characters than CTC has room for.
        duration: of the segment; no word reaches past it. By default that of N states.

    Words follow each other without overlap. No text, no words.
    """
    spotted = spot_words(ctc_log_probs, tokens, tokenizer, seconds_per_state, token_scores, attention)
    duration = len(ctc_log_probs) * seconds_per_state if duration is None else duration
    times = place_words(spotted, timing or WordTiming(), duration)
    return [Word(s.word, *span, confidence(s.features)) for s, span in zip(spotted, times, strict=True)]


def align_batch(
    ctc_log_probs: Tensor,
    lengths: Tensor,
    tokens: Sequence[Sequence[int]],
    tokenizer: CharTokenizer,
    seconds_per_state: float,
    *,
    token_scores: Sequence[Sequence[float] | None] | None = None,
    attention: Sequence[Tensor | None] | None = None,
    durations: Sequence[float] | None = None,
    timing: WordTiming | None = None,
    confidence: Callable[[Sequence[float]], float] = geometric_mean,
) -> list[list[Word]]:
    """`align_words` for padded (B, N, V) log-probabilities with lengths (B,): one list of words an utterance.

    A loop over utterances: on CPU `forced_align` takes one at a time.
    """
    log_probs = ctc_log_probs.cpu()  # one copy for the batch
    return [
        align_words(
            log_probs[i, :length],
            tokens[i],
            tokenizer,
            seconds_per_state,
            token_scores=token_scores[i] if token_scores else None,
            attention=attention[i] if attention else None,
            duration=durations[i] if durations else None,
            timing=timing,
            confidence=confidence,
        )
        for i, length in enumerate(lengths.tolist())
    ]


# --- where characters fire ---


@torch.inference_mode()
def spot_words(
    ctc_log_probs: Tensor,
    tokens: Sequence[int],
    tokenizer: CharTokenizer,
    seconds_per_state: float,
    token_scores: Sequence[float] | None = None,
    attention: Tensor | None = None,
) -> list[SpottedWord]:
    """What `align_words` makes its words of; the arguments are the same."""
    states = len(ctc_log_probs)
    if not states or not any(tokenizer.decode([token]).strip() for token in tokens):
        return []
    log_probs = ctc_log_probs.detach().float().cpu()
    if fits(tokens, states):
        spans, ctc_scores = _ctc_spikes(log_probs, tokens)
    else:
        spans = _attention_peaks(attention, len(tokens), states)
        ctc_scores = [
            float(log_probs[min(int(start), states - 1), t]) for (start, _), t in zip(spans, tokens, strict=True)
        ]
    ctc_scores = [max(score, LEAST_LOG_PROBABILITY) for score in ctc_scores]
    scores = ctc_scores if token_scores is None else [max(score, LEAST_LOG_PROBABILITY) for score in token_scores]

    def seconds(span: tuple[float, float]) -> tuple[float, float]:
        return span[0] * seconds_per_state, span[1] * seconds_per_state

    spotted = []
    spaces = [-1, *(i for i, token in enumerate(tokens) if token == tokenizer.space_id), len(tokens)]
    for before, after in pairwise(spaces):
        text = tokenizer.decode(tokens[before + 1 : after])
        if not text:
            continue  # two spaces in a row
        of_search, of_ctc = scores[before + 1 : after + 1], ctc_scores[before + 1 : after]
        features = (_mean(of_search), min(of_search), _mean(of_ctc), min(of_ctc), math.log(len(text)))
        spotted.append(SpottedWord(text, seconds(spans[before + 1]), seconds(spans[after - 1]), features))
    return spotted


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def fits(tokens: Sequence[int], states: int) -> bool:
    """Whether CTC can write these in so many states: one each, and a blank between two equal ones."""
    return len(tokens) + sum(a == b for a, b in pairwise(tokens)) <= states


def _ctc_spikes(log_probs: Tensor, tokens: Sequence[int]) -> tuple[list[tuple[float, float]], list[float]]:
    """(start, end) in states and log-probability of each character on the best path through (N, V)."""
    from torchaudio.functional import forced_align, merge_tokens

    path, scores = forced_align(
        log_probs[None].contiguous(), torch.tensor([list(tokens)]), blank=CharTokenizer.blank_id
    )
    spans = merge_tokens(path[0], scores[0], blank=CharTokenizer.blank_id)
    return [(float(span.start), float(span.end)) for span in spans], [float(span.score) for span in spans]


def _attention_peaks(attention: Tensor | None, characters: int, states: int) -> list[tuple[float, float]]:
    """(start, end) in states of each character: its attention's peak, on the best path that never turns back.

    Characters that peak in the same state divide it among themselves. Without attention all divide the whole.
    """
    if attention is None or len(attention) < characters:
        return [(i * states / characters, (i + 1) * states / characters) for i in range(characters)]
    gains = np.log(np.maximum(attention[:characters, :states].float().cpu().numpy(), 1e-6))  # (U, N)
    came_from = np.zeros(gains.shape, dtype=int)
    best = gains[0]
    for u in range(1, characters):
        highest = np.maximum.accumulate(best)
        came_from[u] = np.maximum.accumulate(np.where(best >= highest, np.arange(len(best)), 0))
        best = highest + gains[u]
    peaks = [int(best.argmax())]
    for u in range(characters - 1, 0, -1):
        peaks.append(int(came_from[u, peaks[-1]]))
    _, place, count = np.unique(peaks[::-1], return_inverse=True, return_counts=True)
    spans, seen = [], np.zeros(len(count))
    for peak, i in zip(peaks[::-1], place, strict=True):
        spans.append((float(peak + seen[i] / count[i]), float(peak + (seen[i] + 1) / count[i])))
        seen[i] += 1
    return spans


# --- where words begin and end ---


def place_words(spotted: Sequence[SpottedWord], timing: WordTiming, duration: float) -> list[tuple[float, float]]:
    """(start, end) of each word in seconds, one after another and inside 0 .. `duration`.

    A word always covers the inner three quarters of its first and of its last spike.
    """
    if not spotted:
        return []
    t = timing
    first, last = np.array([s.first for s in spotted]), np.array([s.last for s in spotted])  # (W, 2) each
    begins, ends = first[:, 0], last[:, 1]
    gap = begins[1:] - ends[:-1]
    meeting = ends[:-1] + t.share * gap + t.shift
    start, end = begins - t.lead, ends + t.tail
    start[1:] = np.where(gap > t.pause, start[1:], meeting)
    end[:-1] = np.where(gap > t.pause, end[:-1], meeting)
    latest_start = begins + (first[:, 1] - begins) / 8
    earliest_end = ends - (ends - last[:, 0]) / 8
    start = np.clip(start, np.append(0.0, earliest_end[:-1]), latest_start)
    end = np.clip(end, earliest_end, np.append(latest_start[1:], np.inf))
    middle = (end[:-1] + start[1:]) / 2
    overlap = end[:-1] > start[1:]
    end[:-1][overlap] = start[1:][overlap] = middle[overlap]
    return list(zip(start.clip(0, duration).tolist(), end.clip(0, duration).tolist(), strict=True))


def fit_timing(utterances: Sequence[tuple[Sequence[SpottedWord], Sequence[tuple[float, float] | None]]]) -> WordTiming:
    """The `WordTiming` with the least mean absolute error of start and end.

    Args:
        utterances: the words of each, and the reference (start, end) in seconds of each word, None where there is none.
    """
    # Rows: gap before the word, reference start and end relative to the spikes around them.
    starts, ends = [], []
    for spotted, references in utterances:
        for i, (word, reference) in enumerate(zip(spotted, references, strict=True)):
            if reference is None:
                continue
            before = word.first[0] - spotted[i - 1].last[1] if i else math.inf
            after = spotted[i + 1].first[0] - word.last[1] if i + 1 < len(spotted) else math.inf
            starts.append((before, reference[0] - word.first[0]))
            ends.append((after, reference[1] - word.last[1]))
    if not starts:
        raise ValueError("no word has a reference time")
    (gap_before, start), (gap_after, end) = np.array(starts).T, np.array(ends).T

    def middle(values: np.ndarray) -> float:  # the median has the least absolute error
        return float(np.median(values)) if len(values) else 0.0

    best, least = WordTiming(), math.inf
    for pause in (0.08, 0.12, 0.16, 0.2, 0.24, 0.28, 0.36):
        pause -= 0.02  # between the multiples of a state's 40 ms
        joined, joins = gap_before <= pause, gap_after <= pause
        lead, tail = middle(-start[~joined]), middle(end[~joins])
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            # Where words meet, relative to the end of the last spike of the one before.
            late = np.concatenate(
                [start[joined] + (1 - share) * gap_before[joined], end[joins] - share * gap_after[joins]]
            )
            shift = middle(late)
            error = np.abs(late - shift).sum() + np.abs(start + lead)[~joined].sum() + np.abs(end - tail)[~joins].sum()
            if error < least:
                best, least = WordTiming(pause, share, shift, lead, tail), error
    return WordTiming(*(round(value, 4) for value in (best.pause, best.share, best.shift, best.lead, best.tail)))


# --- how sure ---


def fit_confidence(features: np.ndarray, correct: np.ndarray, steps: int = 30) -> Confidence:
    """Logistic regression by Newton steps: features (W, F) as in FEATURES, `correct` (W,) booleans.

    A feature whose weight would be negative is left out, so that a word whose characters are more probable is never
    less sure.
    """
    features, y = np.asarray(features, float), np.asarray(correct, float)
    scale = features.std(0)
    used = [i for i in range(features.shape[1]) if scale[i] > 1e-9]
    while True:
        mean = features[:, used].mean(0)
        x = np.column_stack([np.ones(len(y)), (features[:, used] - mean) / scale[used]])
        penalty = np.full(x.shape[1], RIDGE)
        penalty[0] = 1e-3  # enough to keep the bias finite where all words are right, or all wrong
        w = np.zeros(x.shape[1])
        for _ in range(steps):
            p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
            hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
            step = np.linalg.solve(hessian, x.T @ (y - p) - penalty * w)
            w += step / max(1.0, float(np.abs(step).max()))  # no more than 1 at a time: Newton overshoots far away
        if not used or w[1:].min() >= 0:
            break
        del used[int(w[1:].argmin())]
    raw = w[1:] / scale[used]
    weights = {FEATURES[i]: round(float(value), 5) for i, value in zip(used, raw, strict=True)}
    return Confidence(round(float(w[0] - raw @ mean), 5), weights)


def calibration_error(confidences: np.ndarray, correct: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015): |mean confidence - share correct| over bins of equal width."""
    confidences, correct = np.asarray(confidences, float), np.asarray(correct, float)
    if not len(confidences):
        return math.nan
    bin_of = np.minimum((confidences * bins).astype(int), bins - 1)
    difference = np.bincount(bin_of, confidences - correct, bins)
    return float(np.abs(difference).sum() / len(confidences))
