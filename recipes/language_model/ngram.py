"""Count a word n-gram language model in the text that prepare.py wrote. It takes a minute or two.

python recipes/language_model/ngram.py text=data/text output=runs/ngram/model
python recipes/language_model/ngram.py ngrams=1000000 vocabulary=40000      # smaller
python recipes/language_model/ngram.py "lexicon=[cmudict.dict]" vocabulary=100000     # words that the text lacks, too
python recipes/language_model/ngram.py lstm_from=asr/assets/mini share=0.9         # beside the word LSTM of that folder

Every setting, with what it means: conf/ngram.yaml.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from asr._exit import friendly_errors
from asr.config import as_list, check_kinds
from asr.corpus.text import PreparedText, read_sentences
from asr.model.language_model import WEIGHTS, language_model_summary
from asr.model.word_lm import WordLanguageModel, estimate, measure, save_word_lm
from asr.model.word_lstm import MixedLanguageModel, check_share, load_mixed, save_mixed
from asr.tokenizer import CharTokenizer, normalize_text

_VARIANT = re.compile(r"\(\d+\)$")  # of how it is said


@friendly_errors
def build(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Estimate, measure, write; returns what the model's settings say about it."""
    settings = {**settings, "lexicon": as_list(settings["lexicon"])}
    check_kinds(settings, dict.fromkeys(("order", "ngrams", "vocabulary", "least_count", "held_out"), int))
    check_share(settings["share"])
    tokenizer = CharTokenizer()
    began = time.perf_counter()
    beside = load_mixed(settings["lstm_from"], tokenizer) if settings["lstm_from"] else None
    lexicon = {word for path in settings["lexicon"] for word in read_lexicon(path)}
    train = PreparedText(settings["text"], "train", tokenizer).lines()
    summary: dict[str, Any] = {"sentences": len(train), "words": sum(line.count(" ") + 1 for line in train)}
    print(f"{settings['text']}: {summary['sentences']:,} sentences, {summary['words']:,} words", flush=True)
    chosen = {name: settings[name] for name in ("vocabulary", "order", "ngrams", "least_count")}
    # What the LSTM knows must be known here, whatever text this is.
    shortlist = {beside.words[i] for i in beside.shortlist} if beside else set()
    tables = estimate(train, **chosen, lexicon=lexicon | shortlist)
    model = WordLanguageModel(tables)
    summary |= {"vocabulary": len(model.words), "order": settings["order"]}
    if lexicon:
        summary["lexicon"] = {"files": [Path(path).name for path in settings["lexicon"]], "words": len(lexicon)}
    summary["ngrams"] = {n: len(tables[f"{n}.word"]) for n in range(2, settings["order"] + 1)}
    held_out = PreparedText(settings["text"], "held_out", tokenizer).lines() if settings["held_out"] else []
    summary |= figures_of(model, held_out, settings["held_out"])
    if beside is None:
        folder = save_word_lm(settings["output"], tables, summary)
    else:
        numbers, share = beside.shortlist_in(model.words), settings["share"]
        figures = figures_of(MixedLanguageModel(tables, beside.lstm, numbers, share), held_out, settings["held_out"])
        del summary["sentences"], summary["words"]
        summary = {**language_model_summary(settings["lstm_from"]), "ngram": summary} | figures
        folder = save_mixed(settings["output"], tables, beside.lstm, numbers, share, summary)
    size = (folder / WEIGHTS).stat().st_size / 1e6
    print(f"wrote {folder}: {size:.1f} MB in {time.perf_counter() - began:.0f} s: {summary}")
    return summary


def figures_of(model: WordLanguageModel, sentences: list[str], most: int) -> dict[str, float]:
    """What `measure` says of so many of these sentences; nothing for none."""
    if not most:
        return {}
    bits, perplexity = measure(model, sentences, CharTokenizer(), most)
    return {"bits_per_character": round(bits, 3), "word_perplexity": round(perplexity, 1)}


def read_lexicon(path: str) -> Iterator[str]:
    """The words of a list: the first of each line, as in CMUdict's `word W ER1 D` and `word(2) ..`."""
    for line in read_sentences(path):
        word = normalize_text(_VARIANT.sub("", line.split()[0])) if line else ""
        if word and " " not in word:
            yield word


@hydra.main(version_base="1.3", config_path="../../conf", config_name="ngram")
def main(config: DictConfig) -> None:
    build(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
