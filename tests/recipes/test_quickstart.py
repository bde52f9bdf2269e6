import os
import subprocess
import sys
from pathlib import Path

import soundfile

from asr.scoring import read_transcripts
from asr.transcriber import ASSETS, DEFAULT_MODEL, find_model

ROOT = Path(__file__).parents[2]
AUDIO = ROOT / "recipes" / "quickstart" / "audio"


def test_text_and_wer_of_each_file_the_total_and_a_plot(toy_bundle, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "recipes/quickstart/run.py",
            "--model",
            toy_bundle,
            "--output",
            tmp_path,
            "--beam",
            "1",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for name in read_transcripts(AUDIO / "reference.txt"):
        assert name in done.stdout
    assert "Total: WER" in done.stdout
    assert "What next" in done.stdout
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_every_bundled_file_has_a_reference_and_the_other_way_round():
    assert set(read_transcripts(AUDIO / "reference.txt")) == {path.stem for path in AUDIO.glob("*.flac")}
    assert all(soundfile.info(path).samplerate == 16000 for path in AUDIO.glob("*.flac"))


def test_the_model_that_ships_is_small_and_says_what_it_is():
    folder = find_model()
    assert folder == ASSETS / DEFAULT_MODEL
    assert (folder / "model.safetensors").stat().st_size < 30e6
    card = (folder / "README.md").read_text()
    assert "CC BY 4.0" in card
    assert "dev-2spk" in card
