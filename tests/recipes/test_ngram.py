"""ngram.py on a little text: what it writes is a language model, and its figures are those of its sentences."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from asr.bundle import load_any_language_model
from asr.corpus.text import prepare_text
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


def test_text_to_model(recipe, text, tmp_path, capsys):
    settings = {"text": str(text), "output": str(tmp_path / "lm"), "held_out": 10}
    settings |= {"vocabulary": 100, "least_count": 2, "order": 3, "ngrams": 1000}
    summary = recipe.build(settings)
    model = load_any_language_model(tmp_path / "lm")
    assert {"THE", "CAT", "DIDN'T", "ROOF"} <= set(model.words)
    assert summary["vocabulary"] == len(model.words) == 13
    assert summary["bits_per_character"] < 1.0
    assert f"wrote {tmp_path / 'lm'}: " in capsys.readouterr().out


def test_figures_are_those_of_the_sentences(recipe, text, tmp_path):
    settings = {"text": str(text), "output": str(tmp_path / "lm"), "held_out": 0}
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


@pytest.mark.parametrize("change", [{"order": 1}, {"ngrams": 0}, {"text": "/no/text"}])
def test_what_cannot_be_counted(recipe, text, tmp_path, change, capsys):
    settings = {"text": str(text), "output": str(tmp_path), "held_out": 0}
    settings |= {"vocabulary": 100, "least_count": 2, "order": 2, "ngrams": 10}
    with pytest.raises(SystemExit) as stop:
        recipe.build(settings | change)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
