"""A word n-gram model that scores characters, so that a search over characters can use it at every step.

    tables = estimate(sentences, vocabulary=65_000, order=3, ngrams=3_000_000)
    model = WordLanguageModel(tables)
    state = model.start(rows); logits, state = model.step(tokens, state)      # the protocol of `scorers.LanguageModel`

An n-gram over words knows spelling, vocabulary and the words around; an open word is worth what all words that begin
with it are worth together ("look-ahead", Hori et al. 2018, "End-to-end speech recognition with word-based RNN language
models"). With the words in alphabetical order those that share a beginning are one range of word numbers, so

    p(next character c | history, word so far) = P(words that begin with word so far + c) / P(.. with word so far)

is a ratio of range sums, and a range sum in an interpolated n-gram model is a difference of cumulated sums,

    P(range | history) = E(range | history) + b(history) P(range | shorter history),

found by binary search: nothing loops over words, rows or characters. Words outside the vocabulary are spelled by a
character 4-gram; both ways to write a word add up, so a step's probabilities sum to 1.

The estimate is interpolated modified Kneser-Ney (Chen & Goodman 1999), cut down to a number of n-grams by what each is
worth: its count times the log-ratio to what the shorter history says (the weighted difference of Seymore & Rosenfeld
1996). What is cut goes to the shorter history's share, so that sums stay 1. numpy's sorting does it: KenLM's Python
package reads models but brings no estimator.
"""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor, nn

from asr.errors import ConfigError, CorpusError, ModelError
from asr.model.language_model import WEIGHTS, check_settings, read_settings, write_folder
from asr.tokenizer import CHARACTERS, CharTokenizer

__all__ = [
    "KIND",
    "WordLanguageModel",
    "WordState",
    "compact",
    "estimate",
    "load_word_lm",
    "measure",
    "packed",
    "read_tensors",
    "save_word_lm",
]

KIND = "word n-gram"  # in the settings, to tell it from a character model
PACKED = "packed"  # name of the array of bytes that holds the tables in a file

STEPS = 14.0  # levels of a stored probability by a factor of e: 255 of them reach down to 1.2e-8
UNIT = 2.0**40  # cumulated probabilities are whole numbers of 1 / UNIT, so that their differences are exact
LETTERS = 3  # letters of context of the spelling of unknown words
SPREAD = 1e-5  # share of every step that is spread evenly, so that nothing that can be written is impossible


def compact(values: np.ndarray) -> np.ndarray:
    """The same whole numbers in as few bytes each as the largest needs."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def _quantised(probabilities: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(-STEPS * np.log(np.maximum(probabilities, 1e-30))), 0, 255).astype(np.uint8)


def _restored(levels: np.ndarray) -> np.ndarray:
    return np.exp(-levels.astype(np.float64) / STEPS)


# ------------------------------------------------------------------------------------------------------- estimation


@dataclass
class _Order:
    """All n-grams of one length, sorted by (context, last word); an n-gram's number is its place here."""

    context: np.ndarray  # (n,) number of its first words among the shorter n-grams
    word: np.ndarray  # (n,) its last word
    explicit: np.ndarray  # (n,) E: discounted probability
    backoff: np.ndarray  # (contexts,) b; 1 where nothing follows
    gain: np.ndarray  # (n,) what it is worth: count times log-ratio to the shorter history's estimate


def estimate(
    sentences: Iterable[str],
    vocabulary: int = 65_000,
    order: int = 3,
    ngrams: int = 3_000_000,
    characters: str = CHARACTERS,
    least_count: int = 2,
    lexicon: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """The tables of a `WordLanguageModel`.

    Args:
        sentences: words separated by spaces.
        vocabulary: words known: the most frequent ones, if they come at least `least_count` times.
        order: words of the longest n-grams.
        ngrams: how many of 2 and more words are kept, and some more where a kept one needs its beginning.
        lexicon: words known besides, however seldom they come; those that never do have what the interpolation leaves
            to every word alike.

    Raises:
        ConfigError: `order` or `ngrams` is too small.
        CorpusError: no word comes often enough to be known.
    """
    if order < 2 or ngrams < 1:
        raise ConfigError(f"order must be at least 2 and ngrams at least 1, got {order} and {ngrams}")
    split = [sentence.split() for sentence in sentences]
    counts = Counter(word for sentence in split for word in sentence)
    words = sorted({w for w, n in counts.most_common(vocabulary) if n >= least_count}.union(lexicon))
    if not words:
        raise CorpusError(
            f"none of {len(counts):,} different words is left with vocabulary={vocabulary} and "
            f"least_count={least_count}; give more text"
        )
    # Unknown words look like the rare ones.
    rare = [w for w, n in counts.items() if n <= 5 * least_count] or words
    tables = {
        "words": np.frombuffer("\n".join(words).encode("ascii"), np.uint8),
        "letters": _quantised(_spelling(rare, _letters(characters))),
    }
    end, unknown, begin = len(words), len(words) + 1, len(words) + 2
    number = {word: i for i, word in enumerate(words)}
    stream = np.fromiter(
        (i for s in split for i in (begin, *[number.get(word, unknown) for word in s], end)), dtype=np.int64
    )
    del split
    unigrams, orders = _estimate_orders(stream, order, begin)
    tables["unigrams"] = unigrams.astype(np.float32)
    for n, kept in enumerate(_cut(orders, ngrams), start=2):
        tables |= {f"{n}.{name}": table for name, table in kept.items()}
    return tables


def _letters(characters: str) -> str:
    """The characters that words are made of, in alphabetical (ASCII) order."""
    return "".join(sorted(characters.replace(" ", "")))


def _spelling(words: Iterable[str], letters: str) -> np.ndarray:
    """p(letter or end | last three letters), each word counting once: (contexts, letters + 1).

    Witten-Bell smoothing. A context's number has the base letters + 1, whose last digit is the latest letter; what is
    before the word is the digit `len(letters)`.
    """
    base = len(letters) + 1
    digit = {letter: i for i, letter in enumerate(letters)}
    edge = base - 1
    grams: Counter[tuple[int, ...]] = Counter()
    for word in words:
        digits = [edge] * LETTERS + [digit[letter] for letter in word if letter in digit] + [edge]
        for i in range(LETTERS, len(digits)):
            grams[tuple(digits[i - LETTERS : i + 1])] += 1
    counts = np.zeros((base,) * (LETTERS + 1))
    counts[tuple(np.array(list(grams)).T)] = list(grams.values())
    p = np.full(base, 1 / base)
    for n in range(LETTERS + 1):
        seen = counts.sum(tuple(range(LETTERS - n)))  # (base,) * (n + 1)
        kinds = (seen > 0).sum(-1, keepdims=True)
        p = (seen + kinds * p) / np.maximum(seen.sum(-1, keepdims=True) + kinds, 1) + p * (kinds == 0)
    return p.reshape(-1, base)


def _estimate_orders(stream: np.ndarray, order: int, begin: int) -> tuple[np.ndarray, list[_Order]]:
    """Numbers of words, sentence after sentence -> unigram probabilities and the n-grams of 2 .. `order` words."""
    kinds = begin + 1
    # Of each place in the text: number of the n-gram that ends there, -1 where the sentence is not that long yet.
    at = stream
    found = []
    for _ in range(2, order + 1):
        before = np.concatenate([[-1], at[:-1]])
        place = np.flatnonzero((before >= 0) & (at >= 0) & (stream != begin))
        keys, first, inverse, count = np.unique(
            before[place] * kinds + stream[place], return_index=True, return_inverse=True, return_counts=True
        )
        found.append((keys // kinds, keys % kinds, at[place[first]], count))
        at = np.full_like(stream, -1)
        at[place] = inverse
    # How often: in the text for the longest and what begins a sentence, else after how many different words.
    unigram_count = np.bincount(found[0][1], minlength=kinds).astype(float)
    discounted, left = _discounted(unigram_count, np.zeros(kinds, np.int64), 1)
    probability = discounted + left[0] / (kinds - 1)
    probability[begin] = 0.0
    unigrams = probability
    orders = []
    begins = np.arange(kinds) == begin  # whether the context begins a sentence
    for i, (context, word, shorter, count) in enumerate(found):
        last = i + 1 == len(found)
        adjusted = count if last else np.bincount(found[i + 1][2], minlength=len(count))
        adjusted = np.where(begins[context], count, adjusted)
        explicit, backoff = _discounted(adjusted, context, len(begins))
        shorter_says = probability[shorter]
        probability = explicit + backoff[context] * shorter_says
        gain = count * np.log(probability / shorter_says)
        orders.append(_Order(context, word, explicit, backoff, gain))
        begins = begins[context]
    return unigrams, orders


def _discounted(count: np.ndarray, context: np.ndarray, contexts: int) -> tuple[np.ndarray, np.ndarray]:
    """Modified Kneser-Ney: E (n,) and, for each context, b = 1 - sum of E."""
    n1, n2, n3, n4 = (float((count == c).sum()) for c in (1, 2, 3, 4))
    discounts = np.array([0.0, 0.5, 0.5, 0.5])  # where the text is too short to tell
    if min(n1, n2, n3, n4) > 0:
        y = n1 / (n1 + 2 * n2)
        discounts[1:] = np.clip([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3], 0.1, [0.95, 1.9, 2.9])
    total = np.bincount(context, count, minlength=contexts)
    explicit = (count - discounts[np.minimum(count, 3).astype(int)]) / total[context]
    return explicit, 1 - np.bincount(context, explicit, minlength=contexts)


def _cut(orders: list[_Order], ngrams: int) -> list[dict[str, np.ndarray]]:
    """Keep those that are worth most, and what they begin with; renumber and quantise."""
    gains = np.concatenate([o.gain for o in orders])
    least = np.partition(gains, -ngrams)[-ngrams] if ngrams < len(gains) else -np.inf
    keeps = [o.gain >= least for o in orders]
    for n in range(len(orders) - 1, 0, -1):
        keeps[n - 1][np.unique(orders[n].context[keeps[n]])] = True
    kept: list[dict[str, np.ndarray]] = []
    contexts = np.arange(len(orders[0].backoff))  # old numbers of the contexts that are left
    for o, keep in zip(orders, keeps, strict=True):
        new = np.full(len(o.backoff), -1)
        new[contexts] = np.arange(len(contexts))
        context, explicit = new[o.context[keep]], o.explicit[keep]
        size = np.bincount(context, minlength=len(contexts))
        backoff = 1 - np.bincount(context, explicit, minlength=len(contexts))
        kept.append(
            {
                "size": compact(size),
                "word": compact(o.word[keep]),
                "explicit": _quantised(explicit),
                "backoff": _quantised(backoff[size > 0]),
            }
        )
        contexts = np.flatnonzero(keep)
    return kept


# ------------------------------------------------------------------------------------------------------------ model


@dataclass(frozen=True)
class WordState:
    """Of R hypotheses; histories are numbers of n-grams by length, 1 .. order - 1, -1 where there is none.

    Attributes:
        node: (R,) of the tree of words, for the word so far; 0 where no known word begins like this.
        history: (order - 1, R) words before the word so far.
        next_history: (order - 1, R) the same if the word so far ends here.
        letters: (R,) last three letters of the word so far.
        spelled: (R,) log-probability of the word so far by the letters alone.
    """

    node: Tensor
    history: Tensor
    next_history: Tensor
    letters: Tensor
    spelled: Tensor

    def select(self, rows: Tensor) -> WordState:
        node, letters, spelled = (x.index_select(0, rows) for x in (self.node, self.letters, self.spelled))
        history, next_history = (x.index_select(1, rows) for x in (self.history, self.next_history))
        return WordState(node, history, next_history, letters, spelled)


class WordLanguageModel(nn.Module):
    """log p(character | characters so far) by an interpolated n-gram model over words."""

    digit: Tensor  # (V,) character id -> place in the alphabet, -1 for what is no letter
    letter_ids: Tensor  # (letters,) .. and back
    spelling: Tensor  # (contexts, letters + 1) log-probabilities of the next letter, or the end, of unknown words
    first: Tensor  # (nodes,) of the tree: number of the first word that begins like this
    size: Tensor  # (nodes,) how many do
    is_word: Tensor  # (nodes,) whether it is a word, then the first
    child: Tensor  # (nodes, letters)
    unigrams: Tensor  # (kinds + 1,) cumulated probabilities

    def __init__(self, tables: Mapping[str, np.ndarray], characters: str = CHARACTERS) -> None:
        super().__init__()
        self.words = bytes(np.asarray(tables["words"], np.uint8)).decode("ascii").split("\n")
        self.order = 1 + sum(name.endswith(".word") for name in tables)
        letters = _letters(characters)
        self.base = len(letters) + 1
        self.end, self.unknown, self.begin = (len(self.words) + i for i in range(3))
        self.kinds = len(self.words) + 3

        def put(name: str, values: np.ndarray) -> None:
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)), persistent=False)

        ids = CharTokenizer(characters)
        self.vocabulary, self.space = len(ids), ids.space_id
        digit = np.full(len(ids), -1)
        digit[ids.encode(letters)] = np.arange(len(letters))
        put("digit", digit)
        put("letter_ids", np.array(ids.encode(letters)))
        p = _restored(np.asarray(tables["letters"])).reshape(-1, self.base)
        put("spelling", np.log(p / p.sum(1, keepdims=True)))
        first, size, is_word, child = _tree(self.words, letters)
        put("first", first)
        put("size", size)
        put("is_word", is_word)
        put("child", child.astype(np.int32))
        unigrams = np.asarray(tables["unigrams"], np.float64)
        put("unigrams", np.concatenate([[0.0], np.cumsum(unigrams / unigrams.sum())]))
        contexts = self.kinds
        for n in range(2, self.order + 1):
            sizes = np.asarray(tables[f"{n}.size"]).astype(np.int64)
            explicit = _restored(np.asarray(tables[f"{n}.explicit"]))
            backoff = np.ones(contexts + 1)  # the last is that of no context
            backoff[:-1][sizes > 0] = _restored(np.asarray(tables[f"{n}.backoff"]))
            context = np.repeat(np.arange(contexts), sizes)
            explicit *= ((1 - backoff[:-1]) / np.maximum(np.bincount(context, explicit, contexts), 1e-30))[context]
            put(f"keys{n}", context * self.kinds + np.asarray(tables[f"{n}.word"]))
            put(f"explicit{n}", np.concatenate([[0], np.cumsum(np.rint(explicit * UNIT).astype(np.int64))]))
            put(f"backoff{n}", backoff)
            contexts = len(explicit)

    def start(self, batch: int) -> WordState:
        device = self.first.device
        history = torch.full((self.order - 1, batch), -1, device=device)
        history[0] = self.begin
        node = torch.ones(batch, dtype=torch.long, device=device)
        return WordState(
            node,
            history,
            history,
            torch.full_like(node, self.base**LETTERS - 1),
            torch.zeros(batch, dtype=torch.float64, device=device),
        )

    def select(self, state: WordState, rows: Tensor) -> WordState:
        return state.select(rows)

    def step(self, tokens: Tensor, state: WordState) -> tuple[Tensor, WordState]:
        """Characters (R,) just written -> log-probabilities (R, V) of the next ones, and the new state."""
        state = self._follow(tokens, state)
        node = state.node
        children = self.child[node].long()  # (R, letters)
        # Words below the node begin with the word that it is itself, then child after child.
        widths = torch.cat([self.is_word[node, None], self.size[children]], 1)
        inside = self.first[node, None] + widths.cumsum(1)
        bounds = torch.cat([self.first[node, None], inside], 1)
        sums = self._masses(
            torch.cat([bounds, bounds.new_tensor([[self.unknown, self.unknown + 1]]).expand(len(node), 2)], 1), state
        )
        unknown = sums[:, -1] - sums[:, -2]
        spelled = (state.spelled[:, None] + self.spelling[state.letters]).exp() * unknown[:, None]  # (R, letters + 1)
        known = sums[:, 1:-2] - sums[:, :-3]  # (R, 1 + letters): the word itself, then by the next letter
        p_letter = known[:, 1:] + spelled[:, :-1]
        p_end = known[:, 0] + spelled[:, -1]
        p_end[node == 1] = 0  # no word has no letters (spelling gives it next to nothing)
        end = state.node.new_tensor([[self.end, self.end + 1]]).expand(len(node), 2)
        ends = self._below(end, state.next_history)
        p_eos = (ends[:, 1] - ends[:, 0]) * p_end
        p = torch.zeros(len(tokens), self.vocabulary, dtype=torch.float64, device=tokens.device)
        p[:, self.letter_ids] = p_letter
        p[:, self.space] = p_end - p_eos
        p[:, CharTokenizer.eos_id] = p_eos
        p = p.clamp(min=0)
        total = p.sum(1, keepdim=True)  # nothing at all where no word goes on so and nothing is left for the unknown
        p = torch.where(total > 0, p / total * (1 - SPREAD) + SPREAD / (self.base + 1), 1 / (self.base + 1))
        p[:, [CharTokenizer.blank_id, CharTokenizer.bos_id, CharTokenizer.unk_id]] = 0
        return p.log().float(), state

    def _follow(self, tokens: Tensor, state: WordState) -> WordState:
        """The state after these characters (R,)."""
        digit = self.digit[tokens]
        is_letter, is_space = digit >= 0, tokens == self.space
        after = self.child[state.node, digit.clamp(min=0)].long()
        node = torch.where(is_letter, after, torch.where(is_space, torch.ones_like(after), state.node))
        code = state.letters % self.base ** (LETTERS - 1) * self.base + digit
        letters = torch.where(is_letter, code, torch.where(is_space, self.base**LETTERS - 1, state.letters))
        spelled = state.spelled + self.spelling[state.letters, digit.clamp(min=0)]
        spelled = spelled.clamp(min=-500)  # exp of it is still a number; no known word is that unlikely
        spelled = torch.where(is_letter, spelled, torch.where(is_space, torch.zeros_like(spelled), state.spelled))
        history = torch.where(is_space, state.next_history, state.history)
        return WordState(node, history, self._append(history, self._word(node)), letters, spelled)

    def _word(self, node: Tensor) -> Tensor:
        """Numbers (R,) of the words that end at these nodes."""
        word = torch.where(self.is_word[node] > 0, self.first[node], self.unknown)
        return torch.where(node == 1, self.begin, word)

    def _append(self, history: Tensor, word: Tensor) -> Tensor:
        """Histories (order - 1, R) and the words (R,) after them -> histories."""
        longer = [word]
        for n in range(2, self.order):
            keys = getattr(self, f"keys{n}")
            if not len(keys):  # such as bigrams of a text of single words
                longer.append(torch.full_like(word, -1))
                continue
            wanted = history[n - 2] * self.kinds + word
            place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
            longer.append(torch.where((keys[place] == wanted) & (history[n - 2] >= 0), place, -1))
        return torch.stack(longer)

    def _masses(self, bounds: Tensor, state: WordState) -> Tensor:
        """P(words before each bound | words before the word so far), less those before the first bound: (R, S)."""
        return self._below(bounds, state.history)

    def _below(self, bounds: Tensor, history: Tensor) -> Tensor:
        """P(words before each bound) - P(words before the first), (R, S), for bounds (R, S)."""
        sums = self.unigrams[bounds]
        sums = sums - sums[:, :1]
        for n in range(2, self.order + 1):
            context = history[n - 2, :, None]
            explicit = getattr(self, f"explicit{n}")
            place = torch.searchsorted(getattr(self, f"keys{n}"), context * self.kinds + bounds)
            inside = explicit[place]
            inside = (inside - inside[:, :1]).double() / UNIT
            sums = inside + getattr(self, f"backoff{n}")[context] * sums
        return sums


def _tree(words: list[str], letters: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sorted words -> first word, number of words, whether it is one, and children by letter, of each node.

    Node 0 is nowhere (no words, its own child), node 1 the empty beginning; children of none are 0.
    """
    longest = max(map(len, words))
    raw = np.array(words, dtype=f"S{longest}").view(np.uint8).reshape(len(words), longest)
    table = np.full(256, -1, np.int16)
    table[np.frombuffer(letters.encode("ascii"), np.uint8)] = np.arange(len(letters))
    digits = table[raw]
    node = np.ones(len(words), np.int64)  # of each word's first letters
    first, size = [np.array([0, 0])], [np.array([0, len(words)])]
    edges = []
    count = 2
    differs = np.zeros(len(words), bool)
    differs[0] = True
    for depth in range(longest):
        differs[1:] |= digits[1:, depth] != digits[:-1, depth]
        longer = digits[:, depth] >= 0
        starts = np.flatnonzero(differs & longer)
        if not len(starts):
            break
        numbers = np.zeros(len(words), np.int64)
        numbers[starts] = np.arange(len(starts)) + 1
        member = np.maximum.accumulate(numbers) * longer  # 1 .. of the words that are long enough
        edges.append((node[starts], digits[starts, depth], count + np.arange(len(starts))))
        first.append(starts)
        size.append(np.bincount(member[longer] - 1, minlength=len(starts)))
        node = np.where(longer, member + count - 1, 0)
        count += len(starts)
    child = np.zeros((count, len(letters)), np.int64)
    for parents, digit, children in edges:
        child[parents, digit] = children
    sizes = np.concatenate(size)
    return np.concatenate(first), sizes, sizes - sizes[child].sum(1), child


@torch.inference_mode()
def measure(
    model: WordLanguageModel, lines: Sequence[str], tokenizer: CharTokenizer, most: int | None = None
) -> tuple[float, float]:
    """Bits per character, EOS counting as one, and perplexity per word, the end counting as one.

    most: only so many of the sentences, evenly picked
    """
    lines = sorted(lines[:: max(1, len(lines) // most)][:most] if most else lines, key=len)
    total = 0.0
    for first in range(0, len(lines), 100):
        ids = [[tokenizer.bos_id, *tokenizer.encode(line), tokenizer.eos_id] for line in lines[first : first + 100]]
        padded = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
        for row, one in zip(padded, ids, strict=True):
            row[: len(one)] = torch.tensor(one)
        state = model.start(len(ids))
        for now, after in zip(padded.T[:-1], padded.T[1:], strict=True):
            scores, state = model.step(now, state)
            total += scores.gather(1, after[:, None])[:, 0].masked_fill(after == tokenizer.pad_id, 0).sum().item()
    characters, words = sum(len(line) + 1 for line in lines), sum(len(line.split()) + 1 for line in lines)
    return -total / characters / math.log(2), math.exp(-total / words)


# ---------------------------------------------------------------------------------------------------------- on disk


def save_word_lm(
    folder: str | Path, tables: Mapping[str, np.ndarray], training: Mapping[str, Any], characters: str = CHARACTERS
) -> Path:
    """Write `language_model.safetensors` and `language_model.yaml`; each file appears complete or not at all.

    Raises:
        AsrError: the folder cannot be written.
    """
    settings = {"kind": KIND, "tokenizer": {"characters": characters}, "training": dict(training)}
    return write_folder(Path(folder), settings, save(packed(tables)))


def packed(tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tables as a file holds them: one array of bytes, an .npz, which takes less than half of their room."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **tables)
    return {PACKED: np.frombuffer(file.getvalue(), np.uint8)}


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a language model's file, with those that are packed there; files of format 1 pack none.

    Raises:
        SafetensorError, OSError, ValueError: it cannot be read.
    """
    tensors = load_file(path)
    if (content := tensors.pop(PACKED, None)) is None:
        return tensors
    try:
        with np.load(io.BytesIO(content.tobytes()), allow_pickle=False) as tables:
            return {**tensors, **tables}
    # RuntimeError: packed in a way zipfile cannot read, or encrypted; TokenError: numpy on an array's header
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, tokenize.TokenError) as error:
        raise ValueError(str(error)) from error


def load_word_lm(folder: str | Path, tokenizer: CharTokenizer | None = None) -> WordLanguageModel:
    """Read what `save_word_lm` wrote.

    Raises:
        ModelError: a file is missing or damaged, or is about other characters than the tokenizer's.
    """
    folder = Path(folder)
    characters = check_settings(folder, read_settings(folder), KIND, tokenizer)
    try:
        return WordLanguageModel(read_tensors(folder / WEIGHTS), characters).eval()
    except (SafetensorError, OSError, KeyError, ValueError, IndexError) as error:
        detail = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder / WEIGHTS}: damaged ({detail}); copy the language model again") from error
