import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "synthetic" / "robustness.py"


@pytest.fixture
def noises(tmp_path):
    (tmp_path / "noises").mkdir()
    soundfile.write(tmp_path / "noises" / "hiss.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    return tmp_path / "noises"


def run(folder, *options):
    command = [sys.executable, str(SCRIPT), "decoding=greedy", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_an_output_that_cannot_be_made_is_named_before_anything_is_measured(tmp_path):
    done = run(tmp_path, "model_dir=nowhere", "corpus.manifests=nowhere", f"output={__file__}/x")
    assert done.returncode == 2
    assert done.stderr == f"error: {__file__}/x: cannot write there (Not a directory); choose another output=\n"


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
