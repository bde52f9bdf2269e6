"""tune.py on toy speech: what is measured, remembered, refused and saved."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import asr
from asr.config import to_mapping
from asr.decoding.beam_search import PRESETS
from asr.errors import ConfigError
from asr.model.word_lm import estimate, save_word_lm
from asr.model.word_lstm import WordLstm, WordLstmConfig, save_mixed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("tune", ROOT / "recipes" / "librispeech" / "tune.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["tune"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["tune"]


@pytest.fixture
def settings(toy_corpus, toy_bundle, tmp_path):
    """What Hydra would hand over."""
    save_word_lm(toy_bundle, estimate(["ABLE BIRD", "ABLE BIRD CAVE", "CAVE"]), {})
    return {
        "model_dir": str(toy_bundle),
        "language_model": None,
        "output": str(tmp_path / "tune"),
        "strategy": "grid",
        "save": False,
        "max_utterances": 3,
        "device": "cpu",
        "threads": None,
        "batch_seconds": 4.0,
        "decoding": to_mapping(PRESETS["beam_ctc_lm"]) | {"beam": 2},
        "grid": {"lm_weight": [0.0, 0.4], "ctc_weight": None, "word_bonus": [0.0, -2.0]},
        "corpus": {"manifests": str(toy_corpus / "manifests"), "decode": ["dev-toy"]},
    }


def lines(settings):
    return [json.loads(line) for line in (Path(settings["output"]) / "tune.jsonl").read_text().splitlines()]


def test_a_grid_and_what_is_remembered_of_it(recipe, settings, capsys, monkeypatch):
    best = recipe.tune(settings)
    records = lines(settings)
    points = [(r["decoding"]["lm_weight"], r["decoding"]["word_bonus"]) for r in records]
    assert points == [(0.0, 0.0), (0.0, -2.0), (0.4, 0.0), (0.4, -2.0)]
    assert best["wer"] == min(r["wer"] for r in records)
    assert yaml.safe_load((Path(settings["output"]) / "best.yaml").read_text()) == best["decoding"]
    assert capsys.readouterr().out.count("%") >= 12  # each point as it is measured, and the surface

    # The encoder's states are those of decode.py, up to fp16; the measured WERs are those of its search.
    monkeypatch.setattr(recipe.Transcriber, "encode", None)  # would fail if it were called again
    settings["grid"]["lm_weight"] = [0.4, 0.8]
    recipe.tune(settings)
    assert [r["decoding"]["lm_weight"] for r in lines(settings)] == [0.0, 0.0, 0.4, 0.4, 0.8, 0.8]
    assert lines(settings)[:4] == records
    states = next(Path(settings["output"]).glob("states-*.safetensors"))
    states.write_bytes(states.read_bytes()[:100])
    with pytest.raises(TypeError):
        recipe.tune(settings)  # damaged, so it has to be computed again


def test_what_is_saved_is_what_transcribe_uses(recipe, settings):
    settings |= {"save": True, "grid": {"lm_weight": [0.4]}, "max_utterances": None}
    best = recipe.tune(settings)
    assert to_mapping(asr.load_model(settings["model_dir"], "cpu").decoding) == best["decoding"]
    assert best["reference_words"] > 6
    before = (Path(settings["model_dir"]) / "language_model.yaml").read_text()
    recipe.tune(settings | {"grid": {"lm_weight": [0.0]}})
    assert (Path(settings["model_dir"]) / "language_model.yaml").read_text() == before


def test_a_mixed_model_of_another_share_is_another(recipe, settings, tmp_path):
    tables = estimate(["ABLE BIRD", "ABLE BIRD CAVE", "CAVE"])
    lstm = WordLstm(WordLstmConfig(shortlist=2, embedding=4, d=8, cutoffs=[3]))
    settings |= {"save": True, "grid": {"lm_weight": [0.4]}, "max_utterances": 1}
    for share in (0.5, 0.9):
        settings["language_model"] = str(save_mixed(tmp_path / str(share), tables, lstm, np.array([0, 1]), share, {}))
        recipe.tune(settings)
        recipe.tune(settings)  # what it saved makes no other model of it
    assert len({r["language_model"] for r in lines(settings)}) == len(lines(settings)) == 2


def test_coordinates_one_after_the_other(recipe):
    tried = []

    def measured(points):
        tried.extend(points)
        return [(p["x"] - 2) ** 2 + (p["y"] - p["x"]) ** 2 / 2 for p in points]

    grid = {"x": [0, 1, 2], "y": [0, 1, 2]}
    assert recipe.coordinate_search(grid, {"x": 0, "y": 0}, measured) == {"x": 2, "y": 2}
    assert tried[0] == {"x": 0, "y": 0}


def test_coordinate_strategy(recipe, settings):
    recipe.tune(settings | {"strategy": "coordinate"})
    found = [(r["decoding"]["lm_weight"], r["decoding"]["word_bonus"]) for r in lines(settings)]
    assert len(set(found)) == len(found)  # nothing is measured twice
    assert found[0] == (PRESETS["beam_ctc_lm"].lm_weight, PRESETS["beam_ctc_lm"].word_bonus)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": {"manifests": "x", "decode": ["test-clean"]}}, "test set"),
        ({"grid": {"colour": [1]}}, "grid.colour: no setting of the search"),
        ({"grid": {"lm_weight": 0.3}}, "should be a list"),
        ({"grid": {"lm_weight": None}}, "nothing to vary"),
        ({"grid": {"beam": [0]}}, "beam must be at least 1"),
        ({"strategy": "luck"}, "grid or coordinate"),
        ({"output": f"{__file__}/x"}, "x: cannot write there (Not a directory); choose another output="),
    ],
)
def test_what_cannot_be_tuned(recipe, settings, change, message, capsys):
    with pytest.raises(SystemExit) as stop:
        recipe.tune(settings | change)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_without_a_language_model(recipe, settings):
    for path in Path(settings["model_dir"]).glob("language_model.*"):
        path.unlink()
    (Path(settings["output"])).mkdir()
    tuner = recipe.Tuner(settings, Path(settings["output"]))
    with pytest.raises(ConfigError, match="name one: language_model=DIR"):
        tuner.measure([{"lm_weight": 0.4}])
    assert len(tuner.measure([{"lm_weight": 0.0}])) == 1


def test_on_the_command_line(settings):
    command = [
        sys.executable,
        ROOT / "recipes/librispeech/tune.py",
        f"model_dir={settings['model_dir']}",
        f"corpus.manifests={settings['corpus']['manifests']}",
        "corpus.decode=[dev-toy]",
        "decoding.beam=2",
        "grid.lm_weight=[0,0.4]",
        "grid.lm_eos=[true,false]",
        "max_utterances=2",
        f"output={settings['output']}",
    ]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(lines(settings)) == 4
