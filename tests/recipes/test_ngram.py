"""ngram.py on a little text: what it writes is a language model, and its figures are those of its sentences."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from asr.bundle import load_any_language_model
from asr.corpus.text import prepare_text
from asr.model.word_lstm import WordLstm, WordLstmConfig, load_mixed, load_ngrams, save_mixed
from asr.tokenizer import CharTokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("ngram", ROOT / "recipes" / "language_model" / "ngram.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    animals, verbs, places = ["CAT", "DOG", "BIRD"], ["SAT", "SLEPT", "DIDN'T SIT"], ["MAT", "ROOF", "WALL", "TREE"]
    lines = [f"THE {a} {v} ON THE {p}" for a in animals for v in verbs for p in places]
    (folder / "lines.txt").write_text("\n".join(lines))
    prepare_text([folder / "lines.txt"], folder / "text", held_out=0.2)
    return folder / "text"


DEFAULTS = {"lexicon": [], "lstm_from": None, "share": 0.9}


def test_text_to_model(recipe, text, tmp_path, capsys):
    settings = DEFAULTS | {"text": str(text), "output": str(tmp_path / "lm"), "held_out": 10}
    settings |= {"vocabulary": 100, "least_count": 2, "order": 3, "ngrams": 1000}
    summary = recipe.build(settings)
    model = load_any_language_model(tmp_path / "lm")
    assert {"THE", "CAT", "DIDN'T", "ROOF"} <= set(model.words)
    assert summary["vocabulary"] == len(model.words) == 13
    assert summary["bits_per_character"] < 1.0
    assert f"wrote {tmp_path / 'lm'}: " in capsys.readouterr().out


def test_figures_are_those_of_the_sentences(recipe, text, tmp_path):
    settings = DEFAULTS | {"text": str(text), "output": str(tmp_path / "lm"), "held_out": 0}
    recipe.build(settings | {"vocabulary": 100, "least_count": 2, "order": 2, "ngrams": 1000})
    model, tokenizer = load_any_language_model(tmp_path / "lm"), CharTokenizer()
    lines, total = ["THE CAT SAT", "A DOG"], 0.0
    for line in lines:
        state, last = model.start(1), tokenizer.bos_id
        for token in [*tokenizer.encode(line), tokenizer.eos_id]:
            scores, state = model.step(torch.tensor([last]), state)
            total, last = total + scores[0, token].item(), token
    bits, perplexity = recipe.measure(model, lines, tokenizer)
    assert bits == pytest.approx(-total / 18 / math.log(2), rel=1e-4)
    assert perplexity == pytest.approx(math.exp(-total / 7), rel=1e-4)


@pytest.mark.parametrize("change", [{"order": 1}, {"ngrams": 0}, {"order": "abc"}, {"share": 75}, {"text": "/no/text"}])
def test_what_cannot_be_counted(recipe, text, tmp_path, change, capsys):
    settings = DEFAULTS | {"text": str(text), "output": str(tmp_path), "held_out": 0}
    settings |= {"vocabulary": 100, "least_count": 2, "order": 2, "ngrams": 10}
    with pytest.raises(SystemExit) as stop:
        recipe.build(settings | change)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_words_of_a_lexicon(recipe, text, tmp_path):
    (tmp_path / "words.dict").write_text(
        "catamaran K AE2 T\ncatamaran(2) K AH2 T\nd'artagnan D # name\n3d TH R\n\n;;; no\nCAFÉ\n"
    )
    settings = DEFAULTS | {
        "text": str(text),
        "output": str(tmp_path / "lm"),
        "held_out": 0,
        "lexicon": str(tmp_path / "words.dict"),  # as Hydra gives one without brackets
    }
    settings |= {"vocabulary": 100, "least_count": 2, "order": 2, "ngrams": 1000}
    summary = recipe.build(settings)
    words = load_any_language_model(tmp_path / "lm").words
    assert {"CATAMARAN", "D'ARTAGNAN", "CAFE", "CAT"} <= set(words)
    assert summary["lexicon"] == {"files": ["words.dict"], "words": 3}
    assert summary["vocabulary"] == len(words) == 16


def test_new_ngrams_beside_the_lstm_of_a_folder(recipe, text, tmp_path):
    settings = DEFAULTS | {"text": str(text), "output": str(tmp_path / "first"), "held_out": 10}
    settings |= {"vocabulary": 100, "least_count": 2, "order": 3, "ngrams": 1000}
    recipe.build(settings)
    model, tables, _ = load_ngrams(tmp_path / "first")
    shortlist = [model.words.index(word) for word in ("THE", "CAT", "ON")]
    torch.manual_seed(1)
    lstm = WordLstm(WordLstmConfig(shortlist=3, embedding=4, d=8, cutoffs=[4]))
    both = save_mixed(tmp_path / "both", tables, lstm, np.array(shortlist), 0.5, {"steps": 7, "ngram": {"order": 9}})
    (tmp_path / "words.txt").write_text("AARDVARK\nCATAMARAN\n")  # so that all words have other numbers
    settings |= {
        "output": str(tmp_path / "new"),
        "lstm_from": str(both),
        "share": 0.75,
        "lexicon": [tmp_path / "words.txt"],
    }
    summary = recipe.build(settings)
    before, after = load_mixed(both), load_mixed(tmp_path / "new")
    assert [after.words[i] for i in after.shortlist] == ["THE", "CAT", "ON"]
    assert after.shortlist.tolist() != before.shortlist.tolist()
    assert after.share == 0.75
    for one, other in zip(after.lstm.parameters(), before.lstm.parameters(), strict=True):
        assert torch.equal(one, other)
    assert summary["steps"] == 7
    assert summary["ngram"]["order"] == 3
    assert summary["ngram"]["bits_per_character"] != summary["bits_per_character"]
    # In another text, which lacks the LSTM's words, they are known all the same.
    (tmp_path / "lines.txt").write_text("A DOG\nA DOG\nA DOG RAN\nA DOG RAN\n")
    prepare_text([tmp_path / "lines.txt"], tmp_path / "other", held_out=0.5)
    recipe.build(settings | {"text": str(tmp_path / "other"), "lexicon": [], "held_out": 0})
    after = load_mixed(tmp_path / "new")
    assert [after.words[i] for i in after.shortlist] == ["THE", "CAT", "ON"]
    assert "DOG" in after.words
