"""The transcription benchmark: what is joined is what is scored, and the command answers with what readers expect."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jiwer
import pytest
import soundfile

from asr.corpus.dataset import cut_text, load_cuts
from asr.errors import AsrError

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
    with pytest.raises(SystemExit) as stop:
        benchmark.main([*arguments, "--json"])
    assert not stop.value.code
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


def test_each_system_by_the_seconds_that_it_hears_and_what_fails_alone(benchmark, toy_corpus, capsys, monkeypatch):
    """Without pocketsphinx installed; utterances are heard once each, however often they stand in the recording."""
    heard = {}

    def measure(system, options, reference, seconds):
        heard[system] = seconds
        if system == "asr":
            raise AsrError("asr: failed: no memory")
        return benchmark.Result(system, 0.5, 1, 2, 3, 0.1, 0.1, 100.0)

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(
            ["--manifests", str(toy_corpus / "manifests"), "--subset", "dev-toy", "--minutes", "1", "--json"]
        )
    assert stop.value.code == 2
    shown, complaints = capsys.readouterr()
    report = json.loads(shown)
    assert [result["system"] for result in report["results"]] == ["asr-beam-8", "asr-greedy", "utterances"]
    assert "error: asr: failed: no memory" in complaints.splitlines()
    assert heard["asr-greedy"] == report["seconds"] >= 60
    cuts = load_cuts(toy_corpus / "manifests", ["dev-toy"])
    assert heard["utterances"] == pytest.approx(sum(cut.duration for cut in cuts))


def test_memory_is_the_process_s_own(benchmark):
    """Not that of the process it was forked from."""
    script = f"import sys; sys.path.insert(0, {str(BENCHMARK)!r}); import transcribe; print(transcribe._peak_mb())"
    ballast = (
        "b = bytearray(600_000_000); import subprocess, sys; print(subprocess.check_output(sys.argv[1:]).decode())"
    )
    said = subprocess.check_output([sys.executable, "-c", ballast, sys.executable, "-c", script], text=True)
    assert 5 < float(said) < 300


def test_a_system_that_fails_is_named(benchmark, toy_corpus, capsys):
    arguments = ["--manifests", str(toy_corpus / "manifests"), "--subset", "dev-toy", "--minutes", "0.05"]
    with pytest.raises(SystemExit) as stop:
        benchmark.main([*arguments, "--systems", "asr", "--model", "/no/model"])
    assert stop.value.code == 2
    assert "asr: failed: " in capsys.readouterr().err.splitlines()[-1]
