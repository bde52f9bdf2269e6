import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.corpus.augment import AugmentConfig
from asr.corpus.dataset import load_cuts

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "synthetic" / "robustness.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("robustness", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def noises(tmp_path):
    (tmp_path / "noises").mkdir()
    soundfile.write(tmp_path / "noises" / "hiss.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    return tmp_path / "noises"


def test_utterances_are_picked_evenly(recipe, toy_corpus):
    cuts = load_cuts(toy_corpus / "manifests", ["dev-toy"])
    durations = [c.duration for c in recipe.pick(cuts, 3)]
    everything = sorted(c.duration for c in cuts)
    assert durations == [everything[i * len(cuts) // 3] for i in range(3)]
    assert len(recipe.pick(cuts, 0)) == len(recipe.pick(cuts, 1000)) == len(cuts)


def test_what_is_heard_is_changed_as_asked_and_always_alike(recipe, toy_corpus, noises):
    cut = load_cuts(toy_corpus / "manifests", ["dev-toy"])[0]
    plain = AugmentConfig(rooms=0, noise=0, telephone=0, mp3=0, gain=(0, 0))
    noisy = AugmentConfig(rooms=0, noise=1, telephone=0, mp3=0, gain=(0, 0), snr=(10, 10))
    paths = sorted(noises.iterdir())
    recorded = cut.load_audio()[0]
    heard = recipe.changed(cut, paths, plain, 16000).numpy()
    np.testing.assert_allclose(heard, recorded * min(1, 0.99 / np.abs(recorded).max()), atol=1e-6)
    assert recipe.changed(cut, paths, plain, 8000).shape[0] == pytest.approx(len(recorded) / 2, abs=1)
    other = recipe.changed(cut, paths, noisy, 16000).numpy()
    added = np.linalg.norm(recorded) / np.linalg.norm(other - recorded)
    assert 20 * np.log10(added) == pytest.approx(10, abs=0.5)
    assert np.array_equal(other, recipe.changed(cut, paths, noisy, 16000).numpy())


def run(folder, *options):
    command = [sys.executable, str(SCRIPT), "decoding=greedy", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_whole_way(toy_bundle, toy_corpus, noises, tmp_path):
    given = [
        f"model_dir={toy_bundle}",
        f"corpus.manifests={toy_corpus}/manifests",
        "corpus.decode=[dev-toy]",
        "utterances=2",
    ]
    removed = [f"~changes.{name}" for name in ("rooms", "telephone", "mp3", "all")]
    done = run(tmp_path, *given, *removed, f"noises={noises}", f"output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert report["utterances"] == 2
    assert list(report["changes"]) == ["as_recorded", "level", "noise_20_db", "noise_10_db"]
    for row in report["changes"].values():
        assert 0 <= row["low"] <= row["wer"] <= row["high"]
    without = run(tmp_path, *given, *removed, f"output={tmp_path / 'out'}")
    assert without.returncode == 2
    assert without.stderr.startswith("error: changes.noise_20_db needs noises=FOLDER")
    assert without.stderr.count("\n") == 1
    assert run(tmp_path, *given, *removed, "~changes.noise_20_db", "~changes.noise_10_db", "output=out").returncode == 0
