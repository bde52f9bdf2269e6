"""The recipes as a user runs them: prepare, train, decode, score and transcribe, on a minute of toy speech."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def recipe(script: str, *options: str, code: int = 0) -> subprocess.CompletedProcess:
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "recipes" / script, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == code, done.stderr[-3000:]
    return done


def test_from_a_folder_of_speech_to_a_wer_and_from_a_flac_to_text(toy_corpus, tmp_path):
    manifests, run = tmp_path / "manifests", tmp_path / "run"
    out = recipe(
        "librispeech/prepare.py",
        f"corpus.root={toy_corpus}",
        "corpus.subsets=[train-toy,dev-toy]",
        f"output={manifests}",
    )
    assert "train-toy" in out.stdout
    recipe(
        "librispeech/train.py",
        "experiment=tiny",
        "model.encoder.d=48",
        "model.encoder.layers=2",
        f"corpus.manifests={manifests}",
        "corpus.train=[train-toy]",
        "corpus.dev=[dev-toy]",
        "corpus.batch_seconds=5",
        "training.learning_rate=5e-3",
        "trainer.max_epochs=12",
        "trainer.validate_every=4",
        "trainer.average_decay=0.8",
        f"output={run}",
    )
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in history] == [4, 8, 12]
    assert history[-1]["dev/ctc"] < history[0]["dev/ctc"]

    for decoding in ("greedy_ctc", "beam_ctc"):
        decoded = tmp_path / decoding
        recipe(
            "librispeech/decode.py",
            f"model_dir={run / 'model'}",
            f"corpus.manifests={manifests}",
            "corpus.decode=[dev-toy]",
            f"decoding={decoding}",
            f"output={decoded}",
        )
        wer = json.loads((decoded / "wer.json").read_text())
        assert wer["utterances"] == 6
        assert len((decoded / "nbest.jsonl").read_text().splitlines()) == 6
        assert "WER" in (decoded / "wer.txt").read_text()
        scored = subprocess.run(
            [sys.executable, "-m", "asr.cli", "score", decoded / "ref.trn", decoded / "hyp.trn", "--json"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(scored.stdout)["wer"] == pytest.approx(wer["wer"])

    # The command line, the Python face and the recipe are one recogniser.
    flac = next((toy_corpus / "dev-toy").rglob("*.flac"))
    said = subprocess.run(
        [sys.executable, "-m", "asr.cli", "transcribe", "--no-vad", "--model", run / "model", flac],  # tones, no speech
        capture_output=True,
        text=True,
        check=True,
    )
    hypotheses = (tmp_path / "greedy_ctc" / "hyp.trn").read_text().splitlines()
    assert f"{said.stdout.strip()} ({flac.stem})".lstrip() in hypotheses


def test_recipes_end_with_one_line_and_code_2(tmp_path):
    out = recipe("librispeech/train.py", f"corpus.manifests={tmp_path}", f"output={tmp_path / 'run'}", code=2)
    assert out.stderr.splitlines()[-1].startswith("error: ")
    assert "run prepare.py first" in out.stderr
    assert "Traceback" not in out.stderr
    out = recipe("librispeech/decode.py", "model_dir=/no/model", code=2)
    assert out.stderr.splitlines()[-1].startswith("error: /no/model: no such model folder; models that ship: ")
