"""The transcription benchmark: what is joined is what is scored, and the command answers with what readers expect."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jiwer
import pytest
import soundfile

from asr.corpus.dataset import cut_text, load_cuts

BENCHMARK = Path(__file__).parents[2] / "recipes" / "benchmark"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARK))
    monkeypatch.delitem(sys.modules, "transcribe", raising=False)
    import transcribe

    return transcribe


def test_the_recording_holds_the_utterances_in_order_until_it_is_long_enough(benchmark, toy_corpus, tmp_path):
    cuts = load_cuts(toy_corpus / "manifests", ["dev-toy"])
    once = sum(cut.duration for cut in cuts) / 60
    paths, text, seconds = benchmark.write_recording(cuts, 4 * once, tmp_path)
    assert len(paths) > len(cuts)
    assert [path.stem for path in paths[: len(cuts)]] == [cut.id for cut in cuts]
    assert text.split() == [
        word for path in paths for cut in cuts if cut.id == path.stem for word in cut_text(cut).split()
    ]
    assert seconds == soundfile.info(tmp_path / "recording.flac").duration >= 240 * once
    speech = sum(soundfile.info(path).duration for path in paths)
    low, high = benchmark.PAUSES
    assert low * len(paths) <= seconds - speech <= high * len(paths)


def test_numbers_and_punctuation_do_not_count_as_errors(benchmark):
    assert benchmark._words("Don't, he said: 21 Men.") == "DONT HE SAID TWENTY ONE MEN"


def test_the_table_and_the_json(benchmark, toy_corpus, toy_bundle, capsys, monkeypatch):
    arguments = ["--manifests", str(toy_corpus / "manifests"), "--subset", "dev-toy", "--minutes", "0.05"]
    arguments += ["--model", str(toy_bundle), "--systems", "utterances"]
    benchmark.main([*arguments, "--json"])
    report = json.loads(capsys.readouterr().out)
    (result,) = report["results"]
    assert result["system"] == "utterances"
    assert result["processor_factor"] > 0
    assert result["peak_mb"] > 100
    words = result["substitutions"] + result["deletions"] + result["insertions"]
    assert result["wer"] == pytest.approx(words / _reference_words(benchmark, toy_corpus, report["seconds"]), rel=0.01)


def _reference_words(benchmark, toy_corpus, seconds):
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        cuts = load_cuts(toy_corpus / "manifests", ["dev-toy"])
        _, text, again = benchmark.write_recording(cuts, 0.05, Path(name))
    assert again == seconds
    return jiwer.process_words(text, text).hits


def test_a_system_that_fails_is_named(benchmark, toy_corpus, capsys):
    arguments = ["--manifests", str(toy_corpus / "manifests"), "--subset", "dev-toy", "--minutes", "0.05"]
    with pytest.raises(SystemExit) as stop:
        benchmark.main([*arguments, "--systems", "asr", "--model", "/no/model"])
    assert stop.value.code == 2
    assert "asr: failed: " in capsys.readouterr().err.splitlines()[-1]
