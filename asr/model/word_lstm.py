"""A word LSTM beside the word n-gram: further back than two words, and for words that mean much the same.

    s_t, c_t = LSTM(E w_t ; s_{t-1}, c_{t-1})          w_0 = begin, s_{-1} = c_{-1} = 0
    y_t = s_t, + LSTM'(y_t) for each further layer
    P(w_{t+1} | w_0 .. w_t) = adaptive_softmax(y_t)    (Grave et al. 2017, "Efficient softmax approximation for GPUs")
    P(w | history) = (1 - m) P_ngram(w | last words) + m P_lstm(w | all words)

It knows a shortlist of the n-gram model's words (Schwenk 2007, "Continuous space language models"); what it leaves for
the others is shared among them as their unigram probabilities are. It may know rarer words to write than to read. Its
probabilities, cumulated in alphabetical order, go where those of the n-gram model go (`asr.model.word_lm`): so an open
word is worth what all words that begin with it are worth to both together, at every character, and a step's
probabilities sum to 1. The LSTM is asked once a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save
from torch import Tensor, nn

from asr.config import from_mapping, to_mapping
from asr.errors import ConfigError, ModelError
from asr.model.int8 import are_int8, for_file, from_int8, to_int8
from asr.model.language_model import (
    WEIGHTS,
    LanguageModelState,
    check_settings,
    language_model_summary,
    read_settings,
    write_folder,
)
from asr.model.lstm import PackedCell, PackedLinear
from asr.model.lstm import lstm as run_lstm
from asr.model.word_lm import WordLanguageModel, WordState, compact, load_word_lm, packed, read_tensors
from asr.tokenizer import CHARACTERS, CharTokenizer

__all__ = [
    "BEGIN",
    "FIRST_WORD",
    "KIND",
    "PAD",
    "UNKNOWN",
    "MixedLanguageModel",
    "MixedState",
    "WordLstm",
    "WordLstmConfig",
    "load_mixed",
    "load_ngrams",
    "save_mixed",
]

KIND = "word n-gram and LSTM"  # in the settings, to tell it from other language models

PAD, BEGIN, UNKNOWN, FIRST_WORD = 0, 1, 2, 3  # classes; then the shortlist, the most frequent word first
UNIT = 2**30  # cumulated probabilities are whole numbers of 1 / UNIT, so that their differences are exact


@dataclass(frozen=True)
class WordLstmConfig:
    shortlist: int = 20_000  # words known; of the others only that one was there
    rare: int = 0  # words beyond these that may come next, but of which afterwards only that one was there
    embedding: int = 192
    d: int = 512  # size of s and of c
    layers: int = 1  # those above the first add to what they read; they begin as if they were not there
    cutoffs: Sequence[int] = (2000, 8000)  # of the adaptive softmax: classes up to here are the more frequent groups
    shrink: float = 4.0  # .. and each further group has a projection by so much smaller
    rare_projection: int = 40  # .. and the rare words, one more group, one of this size
    dropout: float = 0.0  # before and after the LSTM; text read once or twice needs none

    def __post_init__(self) -> None:
        if min(self.shortlist, self.embedding, self.d, self.layers, self.rare_projection) < 1 or self.rare < 0:
            raise ValueError("shortlist, embedding, d, layers and rare_projection must be 1 or more, rare 0 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1; got {self.dropout}")
        bounds = [0, *self.cutoffs, self.read]
        if bounds != sorted(set(bounds)):
            raise ValueError(f"cutoffs must rise, above 0 and below {self.read}; got {list(self.cutoffs)}")

    @property
    def words(self) -> int:
        """Known at all."""
        return self.shortlist + self.rare

    @property
    def read(self) -> int:
        """Classes that it tells apart when it reads them: the first ones."""
        return FIRST_WORD + self.shortlist

    @property
    def classes(self) -> int:
        return FIRST_WORD + self.words


class WordLstm(nn.Module):
    """Words so far -> probabilities of the next one, over classes."""

    def __init__(self, config: WordLstmConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.read, config.embedding)
        self.lstm = nn.LSTM(config.embedding, config.d, batch_first=True)
        self.further = nn.ModuleList(nn.LSTM(config.d, config.d, batch_first=True) for _ in range(1, config.layers))
        self.dropout = nn.Dropout(config.dropout)
        cutoffs = [*config.cutoffs, config.read] if config.rare else list(config.cutoffs)
        self.output = nn.AdaptiveLogSoftmaxWithLoss(
            config.d, config.classes, cutoffs, div_value=config.shrink, head_bias=True
        )
        if config.rare:
            self.output.tail[-1] = nn.Sequential(
                nn.Linear(config.d, config.rare_projection, bias=False),
                nn.Linear(config.rare_projection, config.rare, bias=False),
            )
        self._packed: list[PackedCell] = []  # of the LSTMs; see `pack`
        self._packed_output: list[list[PackedLinear]] = []  # .. and of the head and each group of the output
        nn.init.normal_(self.embedding.weight, std=0.1)
        for layer in (self.lstm, *self.further):
            bias = dict(layer.named_parameters())["bias_ih_l0"].data
            nn.init.ones_(bias[config.d : 2 * config.d])  # remember at first (Jozefowicz et al. 2015)
        for layer in self.further:
            for parameter in layer.parameters():  # nothing goes into the cell, so that nothing comes out
                nn.init.zeros_(parameter.data[2 * config.d : 3 * config.d])

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, classes: Tensor, state: LanguageModelState | None = None) -> tuple[Tensor, LanguageModelState]:
        """Classes (B, T) after `state` -> y (B, T, d) after each of them, and the state after the last.

        Without a state the text begins here: `classes` start with BEGIN.
        """
        x = self.dropout(self.embedding(self._as_read(classes)))
        if state is None:
            state = self.start(len(classes))
        y, initial = x, zip(state.s.to(x.dtype).split(1), state.c.to(x.dtype).split(1), strict=True)
        after = []
        for i, (layer, (s, c)) in enumerate(zip((self.lstm, *self.further), initial, strict=True)):
            out, (s, c) = run_lstm(layer, y, (s.to(y.dtype), c.to(y.dtype)))
            y = y + out if i else out
            after.append((s.to(x.dtype), c.to(x.dtype)))
        s, c = (torch.cat(parts) for parts in zip(*after, strict=True))
        return self.dropout(y), LanguageModelState(s, c)

    def pack(self) -> WordLstm:
        """Make single steps on the CPU quicker, with `PackedLinear`'s products; training mode undoes it."""
        self.eval()
        if PackedCell.available():
            int8 = are_int8(p for p in self.parameters() if p.dim() == 2)
            self._packed = [PackedCell(layer, int8=int8) for layer in (self.lstm, *self.further)]
            if int8:
                self._packed_output = [
                    [PackedLinear(layer.weight.detach(), to_int8(layer.weight)[1].float()) for layer in layers]
                    for layers in ([self.output.head], *self.output.tail)
                ]
        return self

    def train(self, mode: bool = True) -> WordLstm:
        if mode:
            self._packed, self._packed_output = [], []  # the weights are about to change
        return super().train(mode)

    def step(self, classes: Tensor, state: LanguageModelState) -> tuple[Tensor, LanguageModelState]:
        """One class (R,) after each state -> y (R, d), and the state after it."""
        if not self._packed or classes.is_cuda:
            y, state = self(classes[:, None], state)
            return y[:, 0], state
        y = self.embedding(self._as_read(classes))
        hidden, cells = [], []
        for i, (cell, h, c) in enumerate(zip(self._packed, state.s, state.c, strict=True)):
            h, c = cell(y, h, c)
            y = y + h if i else h
            hidden.append(h)
            cells.append(c)
        return y, LanguageModelState(torch.stack(hidden), torch.stack(cells))

    def _as_read(self, classes: Tensor) -> Tensor:
        return classes.where(classes < self.config.read, UNKNOWN) if self.config.rare else classes

    def nats(self, s: Tensor, targets: Tensor) -> Tensor:
        """-log p of each target (B, T) that is no padding, after s (B, T, d): (targets,).

        The layer's own loss, but in training its products are in the type of autocast where that is on and all else in
        fp32, which the layer cannot do on CPUs; and groups that no target is of have gradients too, of 0: for those of
        a process that has none the others would wait for ever (DistributedDataParallel).
        """
        real = targets != PAD
        s, targets = s[real], targets[real]
        device, layer = s.device.type, self.output
        half = self.training and torch.is_autocast_enabled(device)
        with torch.autocast(device, torch.get_autocast_dtype(device), enabled=half):
            s = s if half else s.float()
            head = layer.head(s).float().log_softmax(1)
            place = targets.clone()  # in the head: of the word, or of its group
            within = head.new_zeros(len(targets))  # log p of the word in its group
            for i, (group, (first, end)) in enumerate(zip(layer.tail, pairwise(layer.cutoffs), strict=True)):
                rows = ((targets >= first) & (targets < end)).nonzero().flatten()
                place[rows] = layer.shortlist_size + i
                log_p = group(s[rows]).float().log_softmax(1)
                within = within.index_add(0, rows, log_p.gather(1, targets[rows, None] - first)[:, 0])
            return -(head.gather(1, place[:, None])[:, 0] + within)

    @torch.no_grad()
    def probabilities(self, s: Tensor, units: int | None = None) -> Tensor:
        """Of each class, the next one, after s (R, d): (R, classes).

        With `units` they add up to so many, without PAD and BEGIN: what stands there does not count.
        """
        head, *groups = self._logits(s)
        head = head.softmax(1)
        if units is not None:
            head *= units / (1 - head[:, [PAD, BEGIN]].sum(1, keepdim=True))
        frequent = self.output.shortlist_size
        p = head.new_empty(len(s), self.config.classes)
        p[:, :frequent] = head[:, :frequent]
        bounds = pairwise(self.output.cutoffs)
        for i, (group, (first, end)) in enumerate(zip(groups, bounds, strict=True), frequent):
            torch.mul(group.softmax(1), head[:, i, None], out=p[:, first:end])
        return p

    def _logits(self, s: Tensor) -> Iterator[Tensor]:
        """Of the head, then of each group, after s (R, d): (R, .) each."""
        if not self._packed_output or s.is_cuda:
            yield self.output.head(s)
            yield from (group(s) for group in self.output.tail)
            return
        for i, layers in enumerate(self._packed_output):
            x = s
            for layer in layers:
                x = layer(x)
            yield x if i else x.add_(self.output.head.bias)

    def start(self, rows: int) -> LanguageModelState:
        zeros = self.embedding.weight.new_zeros(self.config.layers, rows, self.config.d)
        return LanguageModelState(zeros, zeros)

    @torch.no_grad()
    def begin_as(self, before: WordLstm) -> None:
        """Take over a trained one that may have fewer layers and no rare words, whatever else is the same.

        Further layers begin as if they were not there; half of what it has for UNKNOWN goes to rare words.

        Raises:
            RuntimeError: what is not the same does not fit.
        """
        weights = before.state_dict()
        if self.config.rare and not before.config.rare:
            for name in ("output.head.weight", "output.head.bias"):
                old = weights[name]
                weights[name] = torch.cat([old, old[UNKNOWN : UNKNOWN + 1]])
            weights["output.head.bias"][[UNKNOWN, -1]] -= np.log(2)
        missing, unexpected = self.load_state_dict(weights, strict=False)
        added = ("further.", f"output.tail.{len(self.output.tail) - 1}.")
        if unexpected or any(not name.startswith(added) for name in missing):
            raise RuntimeError(f"weights that do not fit: {[*missing, *unexpected]}")


class _Pool:
    """Cumulated probabilities of the next word, (capacity, S + 2) units, which hypotheses refer to by row.

    Rows are added and never changed, so that older states stay what they were.
    """

    def __init__(self, rows: Tensor, used: int) -> None:
        self.rows, self.used = rows, used

    def grow(self, count: int, place: Tensor) -> tuple[_Pool, Tensor, slice]:
        """So many rows more, to be filled: a pool, where in it the rows `place` (R,) are now, and where the new are."""
        if self.used + count <= len(self.rows):
            pool = self
        else:  # leave out what nothing refers to
            live, place = place.unique(return_inverse=True)
            size = 2 * (len(live) + count) + len(place)
            pool = _Pool(self.rows.new_empty(size, self.rows.shape[1]), len(live))
            pool.rows[: len(live)] = self.rows[live]
        first, pool.used = pool.used, pool.used + count
        return pool, place, slice(first, pool.used)


@dataclass(frozen=True)
class MixedState(WordState):
    """.. and what the LSTM knows of the R hypotheses.

    Attributes:
        memory: the LSTM's state after the words before the word so far.
        place: (R,) which row of the pool tells of the next word.
        pool: what that is.
    """

    memory: LanguageModelState
    place: Tensor
    pool: _Pool

    def select(self, rows: Tensor) -> MixedState:
        memory, place = self.memory.select(rows), self.place.index_select(0, rows)
        return MixedState(**vars(super().select(rows)), memory=memory, place=place, pool=self.pool)


class MixedLanguageModel(WordLanguageModel):
    """log p(character | characters so far) by an n-gram model and an LSTM, both over words.

    Attributes:
        lstm: what knows the shortlist.
        shortlist: (S,) numbers of the words that it knows, in the order of its classes.
        share: m, of the LSTM.
    """

    class_of: Tensor  # (kinds,) number of a word -> class
    alphabetical: Tensor  # (S,) classes of the shortlist in alphabetical order
    before: Tensor  # (kinds + 1,) how many of the shortlist come before a word
    others: Tensor  # (kinds + 1,) cumulated share of each word in what the LSTM leaves for UNKNOWN

    def __init__(
        self,
        tables: Mapping[str, np.ndarray],
        lstm: WordLstm,
        shortlist: np.ndarray,
        share: float = 0.5,
        characters: str = CHARACTERS,
    ) -> None:
        """
        Args:
            tables: of the n-gram model, from `estimate`.
            lstm: what it is mixed with.
            shortlist: (S,) numbers of the words that the LSTM knows, in the order of its classes.
            share: m, of the LSTM.

        Raises:
            ValueError: the parts do not fit each other.
        """
        super().__init__(tables, characters)
        numbers = np.asarray(shortlist).astype(np.int64)
        if (different := len(set(numbers.tolist()))) != lstm.config.words or different < len(numbers):
            raise ValueError(f"{different} different words are not the {lstm.config.words} of the LSTM")
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self.words):
            raise ValueError("the LSTM's words are not the n-gram model's")
        if not 0 <= share <= 1:
            raise ValueError(f"the LSTM's share must be from 0 to 1; got {share}")
        self.lstm, self.share, self.shortlist = lstm, share, numbers
        class_of = np.full(self.kinds, UNKNOWN)
        class_of[numbers] = FIRST_WORD + np.arange(len(numbers))
        class_of[self.begin] = BEGIN
        others = np.diff(self.unigrams.numpy())
        others[numbers] = others[[self.end, self.begin]] = 0
        others = np.concatenate([[0.0], np.cumsum(others / others.sum())])
        tables_ = {
            "class_of": class_of,
            "alphabetical": FIRST_WORD + np.argsort(numbers),
            "before": np.searchsorted(np.sort(numbers), np.arange(self.kinds + 1)),
            "others": others,
        }
        for name, values in tables_.items():
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def shortlist_in(self, words: Sequence[str]) -> np.ndarray:
        """(S,) numbers that the LSTM's words have among other words.

        Raises:
            ConfigError: they are not all among them.
        """
        number = {word: i for i, word in enumerate(words)}
        if missing := [word for i in self.shortlist if (word := self.words[i]) not in number]:
            raise ConfigError(f"the n-grams lack {len(missing)} of the LSTM's words, {missing[0]} for one")
        return np.array([number[self.words[i]] for i in self.shortlist])

    def start(self, batch: int) -> MixedState:
        state = super().start(batch)
        pool = _Pool(torch.zeros(1, len(self.alphabetical) + 2, dtype=torch.int32, device=state.node.device), 1)
        place = torch.zeros_like(state.node)  # what stands there is not asked for: BOS comes first
        return MixedState(**vars(state), memory=self.lstm.start(batch), place=place, pool=pool)

    def _follow(self, tokens: Tensor, state: WordState) -> MixedState:
        assert isinstance(state, MixedState)
        after = super()._follow(tokens, state)
        memory, place, pool = state.memory, state.place, state.pool
        rows = (self.digit[tokens] < 0).nonzero().flatten()  # a space, or BOS
        if len(rows):
            classes = self.class_of[self._word(state.node[rows])]
            y, memory_after = self.lstm.step(classes, memory.select(rows))
            pool, place, new = pool.grow(len(rows), place)
            self._cumulate(y, pool.rows[new])
            place = place.index_copy(0, rows, torch.arange(new.start, new.stop, device=rows.device))
            memory = LanguageModelState(
                memory.s.index_copy(1, rows, memory_after.s), memory.c.index_copy(1, rows, memory_after.c)
            )
        return MixedState(**vars(after), memory=memory, place=place, pool=pool)

    def _cumulate(self, y: Tensor, into: Tensor) -> None:
        """After y (r, d), into (r, S + 2): units of the shortlist's words before each, of all, and of UNKNOWN."""
        p = self.lstm.probabilities(y, UNIT)
        into[:, 0] = 0
        into[:, -1] = p[:, UNKNOWN].round()
        below = into[:, 1:-1]
        below.copy_(p.index_select(1, self.alphabetical).round_()).cumsum_(1, dtype=torch.int32)

    def _masses(self, bounds: Tensor, state: WordState) -> Tensor:
        assert isinstance(state, MixedState)
        ends = bounds.new_tensor([[self.end, self.end + 1]]).expand(len(bounds), 2)
        counted = self._below(torch.cat([bounds, ends], 1), state.history)
        counted, end = counted[:, :-2], counted[:, -1:] - counted[:, -2:-1]
        at = state.pool.rows[state.place[:, None], self.before[bounds]]
        known = (at - at[:, :1]).double() / UNIT
        unknown = state.pool.rows[state.place, -1].double() / UNIT
        others = self.others[bounds]
        learned = known + unknown[:, None] * (others - others[:, :1])
        return (1 - self.share) * counted / (1 - end) + self.share * learned


def _taken(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Those whose names begin so, taken out, by the rest of their names."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}


def check_share(share: Any) -> None:
    """ConfigError where it cannot be the LSTM's."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ConfigError(f"share must be from 0 to 1, got {share!r}")


def save_mixed(
    folder: str | Path,
    tables: Mapping[str, np.ndarray],
    lstm: WordLstm,
    shortlist: np.ndarray,
    share: float,
    training: Mapping[str, Any],
    characters: str = CHARACTERS,
) -> Path:
    """Write both parts into one `language_model.safetensors` and `language_model.yaml`.

    The LSTM's matrices become int8 with an fp16 scale a row, its vectors fp16. Each file appears whole or not at all.

    Raises:
        AsrError: the folder cannot be written.
    """
    tensors = {name: value.numpy() for name, value in for_file(lstm.state_dict(), "lstm.").items()}
    settings = {
        "kind": KIND,
        "lstm": to_mapping(lstm.config),
        "share": share,
        "tokenizer": {"characters": characters},
        "training": dict(training),
    }
    tables = {**tables, "shortlist": compact(np.asarray(shortlist))}
    return write_folder(Path(folder), settings, save({**packed(tables), **tensors}))


def load_mixed(folder: str | Path, tokenizer: CharTokenizer | None = None) -> MixedLanguageModel:
    """Read what `save_mixed` wrote, in evaluation mode.

    Raises:
        ModelError: a file is missing or damaged, does not fit the rest, or is about other characters.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    characters = check_settings(folder, settings, KIND, tokenizer)
    try:
        tables = read_tensors(folder / WEIGHTS)
        weights, scales = _taken(tables, "lstm."), _taken(tables, "scale.")
        lstm = WordLstm(from_mapping(WordLstmConfig, settings["lstm"], "lstm"))
        given = {name: torch.from_numpy(value) for name, value in weights.items()}
        for name, value in given.items():
            if value.dtype == torch.int8:
                given[name] = from_int8(value, torch.from_numpy(scales[name]))
        lstm.load_state_dict(given)
        lstm.pack()
        return MixedLanguageModel(tables, lstm, tables.pop("shortlist"), settings["share"], characters).eval()
    except (
        SafetensorError, OSError, ConfigError,
        KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, ArithmeticError,
    ) as error:  # fmt: skip
        detail = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: damaged language model ({detail}); copy it again") from error


def load_ngrams(folder: str | Path) -> tuple[WordLanguageModel, dict[str, np.ndarray], dict[str, Any]]:
    """The n-gram model of a folder, alone there or mixed: the model, its tables, and what is known of its training.

    Raises:
        ModelError: a file is missing or damaged, or is no such language model.
    """
    folder = Path(folder)
    mixed = read_settings(folder).get("kind") == KIND
    model = load_mixed(folder) if mixed else load_word_lm(folder)
    tables, about = read_tensors(folder / WEIGHTS), dict(language_model_summary(folder))
    if mixed:
        about = dict(about.get("ngram") or {})
        tables.pop("shortlist")
        for prefix in ("lstm.", "scale."):
            _taken(tables, prefix)
    return model, tables, about
