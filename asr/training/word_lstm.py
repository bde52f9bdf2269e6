"""One run from prepared text and a word n-gram model to both mixed: what `recipes/language_model/word_lstm.py` calls.

The n-gram model says which words there are; the LSTM learns the most frequent ones. Passages and windows are those of
`asr.training.language_model`, of words instead of characters and without an end: where an utterance ends says little.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asr.config import from_mapping, to_mapping
from asr.corpus.passages import PassageBatch, Passages, plan_batches
from asr.corpus.text import PreparedText
from asr.errors import ConfigError
from asr.model.language_model import WEIGHTS, LanguageModelState, language_model_summary
from asr.model.word_lm import WordLanguageModel, measure
from asr.model.word_lstm import (
    BEGIN,
    FIRST_WORD,
    PAD,
    UNKNOWN,
    MixedLanguageModel,
    WordLstm,
    WordLstmConfig,
    check_share,
    load_mixed,
    load_ngrams,
    save_mixed,
)
from asr.tokenizer import CharTokenizer
from asr.training.language_model import (
    LanguageModelModule,
    LanguageModelTraining,
    TextData,
    Window,
    WindowLoader,
    fit,
    seed_from,
    windows_of,
)
from asr.training.run import differences

__all__ = ["WordLoader", "WordText", "choose_shortlist", "train"]

log = logging.getLogger(__name__)


class WordText:
    """A prepared text as words.

    Attributes:
        words: (W,) of all sentences in a row, as numbers of the n-gram model; what it does not know is `unknown`.
        starts: (S,) where each sentence begins.
        lengths: (S,) words of each.
        about: what `text.json` says.
    """

    def __init__(self, text: PreparedText, model: WordLanguageModel) -> None:
        number = {word: i for i, word in enumerate(model.words)}
        lines = text.lines()
        self.lengths: NDArray[np.int64] = np.array([line.count(" ") + 1 for line in lines])
        self.words = np.fromiter(
            (number.get(word, model.unknown) for line in lines for word in line.split(" ")),
            np.int32,
            int(self.lengths.sum()),
        )
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.about = text.about

    def __len__(self) -> int:
        """Sentences."""
        return len(self.lengths)


def choose_shortlist(text: WordText, model: WordLanguageModel, size: int) -> NDArray[np.int64]:
    """Numbers of the most frequent words of a text, the first the most frequent; all there are if they are fewer."""
    count = np.bincount(text.words, minlength=model.kinds)[: len(model.words)]
    return np.argsort(-count, kind="stable")[:size]


def class_table(model: WordLanguageModel, shortlist: NDArray[np.int64]) -> NDArray[np.int64]:
    """(kinds,) number of a word -> class."""
    table = np.full(model.kinds, UNKNOWN)
    table[shortlist] = FIRST_WORD + np.arange(len(shortlist))
    return table


def read_words(text: WordText, classes: NDArray[np.int64], passages: Passages, batch: PassageBatch) -> Tensor:
    """BEGIN, the words of some sentences, then padding: (R, windows * width + 1) classes."""
    ids = np.full((len(batch.passages), batch.windows * batch.width + 1), PAD)
    ids[:, 0] = BEGIN
    for row, passage in zip(ids, batch.passages, strict=True):
        first, position = passages.first[passage], 1
        for sentence in passages.order[first : first + passages.count[passage]]:
            start, length = text.starts[sentence], text.lengths[sentence]
            row[position : position + length] = classes[text.words[start : start + length]]
            position += length
    return torch.from_numpy(ids)


class WordLoader(WindowLoader):
    """The windows of one epoch, of words."""

    text: Any  # a WordText

    def __init__(self, text: WordText, classes: NDArray[np.int64], *args: Any) -> None:
        self.classes = classes
        super().__init__(text, *args)  # type: ignore[arg-type]

    def _draw(self, join: float, seed: tuple[int, int]) -> Passages:
        return Passages.draw(self.text.lengths - 1, join, seed)  # no spaces between sentences, and no EOS

    def _read(self, batch: PassageBatch) -> Tensor:
        return read_words(self.text, self.classes, self.passages, batch)


class WordLstmModule(LanguageModelModule):
    unit = "word"

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], tokenizer: CharTokenizer | None = None) -> WordLstmModule:
        return cls(
            from_mapping(WordLstmConfig, settings["model"], "model"),  # type: ignore[arg-type]
            from_mapping(LanguageModelTraining, settings["training"], "training"),
            tokenizer or CharTokenizer(),
            settings["trainer"]["max_minutes"],
        )

    def make_model(self, config: Any) -> nn.Module:
        return WordLstm(config)

    def nats(self, batch: Window, state: LanguageModelState | None) -> tuple[Tensor, LanguageModelState]:
        s, state = self.model(batch.inputs, state)
        return self.model.nats(s, batch.targets).sum() / max(1, batch.characters), state


class WordData(TextData):
    """A prepared text as words, epoch by epoch, and the n-gram model that says which.

    The LSTM's words are the most frequent ones of the text; those of `first`, with which training began, come first.
    """

    def __init__(
        self,
        folder: str,
        ngram: str | Path,
        words: int,
        share: float,
        settings: LanguageModelTraining,
        first: MixedLanguageModel | None = None,
        before: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(folder, settings, CharTokenizer())
        self.share, self.before = share, before
        model, self.tables, self.about_ngram = load_ngrams(ngram)
        self.model_words = model.words
        self.words = WordText(self.text, model)
        self.held_out_words = WordText(self.held_out, model)
        if first is not None:
            try:
                self.shortlist = first.shortlist_in(model.words)
            except ConfigError as error:
                raise ConfigError(f"{ngram}: {error}; set ngram to what init_from names") from None
        else:
            self.shortlist = np.array([], np.int64)
        if words > len(self.shortlist):
            known = set(self.shortlist.tolist())
            frequent = [i for i in choose_shortlist(self.words, model, words).tolist() if i not in known]
            self.shortlist = np.array([*self.shortlist, *frequent][:words], np.int64)
        if len(self.shortlist) < words:
            raise ConfigError(
                f"model.shortlist and model.rare ask for {words} words: {ngram} has {len(self.shortlist)}; lower them"
            )
        self.classes = class_table(model, self.shortlist)

    @property
    def digest(self) -> str:
        words = "\n".join([super().digest, *(self.model_words[i] for i in self.shortlist)])
        return hashlib.blake2b(words.encode(), digest_size=8).hexdigest()

    def train_dataloader(self) -> WindowLoader:
        t = self.trainer
        epoch, rank, world_size = (t.current_epoch, t.global_rank, t.world_size) if t else (0, 0, 1)
        return WordLoader(self.words, self.classes, self.settings, self.tokenizer, epoch, rank, world_size)

    @torch.no_grad()
    def measure(self, module: LanguageModelModule, sentences: int, rank: int, world_size: int) -> tuple[float, int]:
        """Bits of the LSTM alone for each sentence by itself, without its end; rare words count as `unknown`."""
        passages = Passages.draw(self.held_out_words.lengths[:sentences] - 1, 0.0, None)
        bits, count = 0.0, 0
        for batch in plan_batches(passages.steps, 4000, 512)[rank::world_size]:
            state = None
            for window in windows_of(read_words(self.held_out_words, self.classes, passages, batch), batch):
                s, state = module.model(window.inputs.to(module.device), state)
                bits += module.model.nats(s, window.targets.to(module.device)).double().sum().item() / np.log(2)
                count += window.characters
        return bits, count

    def save(self, folder: Path, module: LanguageModelModule, progress: Mapping[str, Any], held_out: float) -> None:
        self._write(folder, module.model, self._summary(progress, held_out))

    def _summary(self, progress: Mapping[str, Any], held_out: float) -> dict[str, Any]:
        return {
            **self.about(),
            "words": int(self.words.lengths.sum()),
            "ngram": {k: v for k, v in self.about_ngram.items() if k not in ("sentences", "words")},
            **({"init_from": dict(self.before)} if self.before else {}),
            **{key: progress[key] for key in ("words_read", "steps", "minutes")},
            "lstm_bits_per_word": round(held_out, 4),
            "date": time.strftime("%Y-%m-%d"),
        }

    def _write(self, folder: Path, lstm: WordLstm, about: Mapping[str, Any]) -> None:
        save_mixed(folder, self.tables, lstm, self.shortlist, self.share, about, self.tokenizer.characters)

    def finish(self, folder: Path, module: LanguageModelModule) -> None:
        """Write into the folder what both models together, as they are there, make of 1,000 held-out sentences."""
        lstm, characters = load_mixed(folder, module.tokenizer).lstm, module.tokenizer.characters
        # With the share and the n-grams of now: the run may have been over before these were chosen.
        model = MixedLanguageModel(self.tables, lstm, self.shortlist, self.share, characters).eval()
        bits, perplexity = measure(model, self.held_out.lines(), self.tokenizer, 1000)
        figures = {"bits_per_character": round(bits, 3), "word_perplexity": round(perplexity, 1)}
        self._write(folder, lstm, {**language_model_summary(folder), **figures})
        log.info("wrote %s: %.1f MB, %s", folder, (folder / WEIGHTS).stat().st_size / 1e6, figures)


def train(settings: Mapping[str, Any]) -> Path:
    """Train as `settings` (`conf/word_lstm.yaml`) say.

    Returns the folder of the mixed language model, the best so far during the run. The output folder holds besides what
    `asr.training.language_model.train` leaves there.

    Raises:
        AsrError: the settings, the text, the n-gram model or the disk will not do, or training cannot usefully go on.
        TrainingInterrupted: Ctrl-C or SIGTERM; all is saved.
    """
    check_share(settings["share"])
    seed_from(settings)
    module = WordLstmModule.from_settings(settings)
    first = before = None
    if folder := settings.get("init_from"):
        first = load_mixed(folder, module.tokenizer)
        theirs, mine = (dict(to_mapping(config)) for config in (first.lstm.config, module.model.config))
        theirs["layers"] = max(theirs["layers"], mine["layers"])
        if not theirs["rare"]:
            theirs |= {"rare": mine["rare"], "rare_projection": mine["rare_projection"]}
        if keys := differences(theirs, mine):
            raise ConfigError(f"{folder}: the LSTM there has another model ({keys}); set it so")
        module.model.begin_as(first.lstm)
        wanted = ("words_read", "steps", "minutes", "init_from")
        before = {key: value for key, value in language_model_summary(folder).items() if key in wanted}

    def data() -> WordData:
        words = module.model.config.words
        return WordData(settings["text"], settings["ngram"], words, settings["share"], module.settings, first, before)

    return fit(settings, module, data)
