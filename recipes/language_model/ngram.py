"""Count a word n-gram language model in the text that prepare.py wrote. It takes a minute or two.

python recipes/language_model/ngram.py text=data/text output=runs/ngram/model
python recipes/language_model/ngram.py ngrams=1000000 vocabulary=40000      # smaller

Every setting, with what it means: conf/ngram.yaml.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from asr._exit import friendly_errors
from asr.corpus.text import PreparedText
from asr.errors import ConfigError
from asr.model.language_model import WEIGHTS
from asr.model.word_lm import WordLanguageModel, estimate, measure, save_word_lm
from asr.tokenizer import CharTokenizer


@friendly_errors
def build(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Estimate, measure, write; returns what the model's settings say about it."""
    if settings["order"] < 2 or settings["ngrams"] < 1:
        raise ConfigError("order must be at least 2 and ngrams at least 1")
    tokenizer = CharTokenizer()
    began = time.perf_counter()
    train = PreparedText(settings["text"], "train", tokenizer).lines()
    summary: dict[str, Any] = {"sentences": len(train), "words": sum(line.count(" ") + 1 for line in train)}
    print(f"{settings['text']}: {summary['sentences']:,} sentences, {summary['words']:,} words", flush=True)
    chosen = {name: settings[name] for name in ("vocabulary", "order", "ngrams", "least_count")}
    tables = estimate(train, **chosen)
    model = WordLanguageModel(tables)
    summary |= {"vocabulary": len(model.words), "order": settings["order"]}
    summary["ngrams"] = {n: len(tables[f"{n}.word"]) for n in range(2, settings["order"] + 1)}
    if settings["held_out"]:
        held_out = PreparedText(settings["text"], "held_out", tokenizer).lines()
        bits, perplexity = measure(model, held_out, tokenizer, settings["held_out"])
        summary |= {"bits_per_character": round(bits, 3), "word_perplexity": round(perplexity, 1)}
    folder = save_word_lm(settings["output"], tables, summary)
    size = (folder / WEIGHTS).stat().st_size / 1e6
    print(f"wrote {folder}: {size:.1f} MB in {time.perf_counter() - began:.0f} s: {summary}")
    return summary


@hydra.main(version_base="1.3", config_path="../../conf", config_name="ngram")
def main(config: DictConfig) -> None:
    build(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
