import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from toy_speech import speak
from typer.testing import CliRunner

from asr import cli
from asr.errors import AsrError
from asr.model.word_lm import estimate, save_word_lm


@pytest.fixture
def run(toy_bundle, capsys, monkeypatch):
    """Run `asr ...` in this process: exit code, standard output, standard error."""

    def call(*arguments):
        arguments = [str(a) for a in arguments]
        if arguments[0] in ("transcribe", "info") and "--model" not in arguments:
            arguments += ["--model", str(toy_bundle)]
        monkeypatch.setattr(sys, "argv", ["asr", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture
def files(tmp_path):
    paths = []
    for i, text in enumerate(["ABLE BIRD", "CAVE"]):
        paths.append(tmp_path / f"{text[0]}.flac")
        soundfile.write(paths[-1], speak(text, i), 16000)
    return paths


def test_transcribe_prints_one_line_a_file_and_nothing_else(run, files):
    code, out, err = run("transcribe", *files)
    assert (code, err) == (0, "")
    lines = out.split("\n")
    assert len(lines) == 3
    assert lines[2] == ""
    assert run("transcribe", files[1])[1] == lines[1] + "\n"


def test_transcribe_json(run, files):
    code, out, _ = run("transcribe", "--format", "json", "--beam", "2", *files)
    assert code == 0
    objects = [json.loads(line) for line in out.splitlines()]
    assert [o["audio"] for o in objects] == [str(f) for f in files]
    assert objects[1]["duration"] == pytest.approx(soundfile.info(files[1]).duration, abs=1e-3)
    assert all(isinstance(o["text"], str) for o in objects)


def test_one_bad_file_does_not_stop_the_others(run, files, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_text("not audio")
    code, out, err = run("transcribe", files[0], bad, files[1])
    assert code == 2
    assert out == run("transcribe", *files)[1]
    assert err.count("\n") == 1
    assert "bad.wav" in err


def test_output_dir(run, files, tmp_path):
    folder = tmp_path / "new" / "texts"
    code, out, _ = run("transcribe", "--output-dir", folder, *files)
    assert (code, out) == (0, "")
    assert sorted(p.name for p in folder.iterdir()) == ["A.txt", "C.txt"]
    assert (folder / "C.txt").read_text() == run("transcribe", files[1])[1]
    run("transcribe", "--output-dir", folder, "--format", "json", files[1])
    assert json.loads((folder / "C.json").read_text())["audio"] == str(files[1])
    (tmp_path / "plain").write_text("")
    code, _, err = run("transcribe", "--output-dir", tmp_path / "plain" / "x", files[0])
    assert code == 2
    assert "choose another --output-dir" in err


def test_files_of_one_name_do_not_overwrite_each_other(run, tmp_path):
    paths = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "a.wav")
        soundfile.write(paths[-1], speak("GOLD"), 16000)
    run("transcribe", "--output-dir", tmp_path / "out", *paths)
    assert len(list((tmp_path / "out").iterdir())) == 2
    code, _, err = run("transcribe", "--output-dir", tmp_path / "out", paths[0], paths[0])
    assert code == 2
    assert "named more than once" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("transcribe", "--model", "/no/model", "a.wav"), "error: /no/model: no such model folder"),
        (("transcribe", "/no/such.wav"), "error: /no/such.wav: no such file"),
        (("score", "/no/ref", "/no/hyp"), "error: /no/ref"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_silence(run, tmp_path):
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(16000), 16000)
    assert run("transcribe", path) == (0, "\n", "")


def test_score(run, tmp_path):
    ref, hyp = tmp_path / "ref.txt", tmp_path / "hyp.trn"
    ref.write_text("u1 THE CAT SAT\nu2 A DOG\n")
    hyp.write_text("THE CAT (u1)\nA BIG DOT (u2)\n")
    code, out, _ = run("score", ref, hyp, "--json")
    figures = json.loads(out)
    assert code == 0
    assert {k: figures[k] for k in ("substitutions", "deletions", "insertions", "reference_words", "utterances")} == {
        "substitutions": 1, "deletions": 1, "insertions": 1, "reference_words": 5, "utterances": 2,
    }  # fmt: skip
    assert figures["wer"] == pytest.approx(0.6)
    assert "cer" in figures
    assert "60.0" in run("score", ref, hyp)[1]
    hyp.write_text("THE CAT (u1)\n")
    code, out, err = run("score", ref, hyp)
    assert (code, out) == (2, "")
    assert "u2" in err


def test_info(run, toy_bundle):
    code, out, _ = run("info", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["parameters"] > 10_000
    assert facts["training"]["dev_wer"] == 0.5
    assert "train-toy" in run("info")[1]


def test_the_language_model(run, toy_bundle, files):
    code, out, err = run("transcribe", "--lm-weight", "0.4", *files)
    assert (code, out) == (2, "")
    assert err.startswith("error: lm_weight is 0.4, but ")
    assert err.count("\n") == 1
    without = run("transcribe", "--beam", "2", *files)[1]
    save_word_lm(toy_bundle, estimate(["ABLE BIRD", "ABLE BIRD CAVE", "CAVE"]), {"words": 6})
    assert run("transcribe", "--beam", "2", "--lm-weight", "0", *files)[1] == without
    fused = run("transcribe", "--beam", "2", "--lm-weight", "3", *files)
    assert fused[0] == 0
    assert fused[1] != without
    assert run("transcribe", "--lm-weight", "-1", *files)[0] == 2
    facts = json.loads(run("info", "--json")[1])["language_model"]
    assert (facts["kind"], facts["training"]) == ("word n-gram", {"words": 6})
    assert "word n-gram" in run("info")[1]


@pytest.mark.parametrize("command", [(), ("transcribe",), ("score",), ("info",)])
def test_help_has_examples(command):
    result = CliRunner().invoke(cli.app, [*command, "--help"])
    assert result.exit_code == 0
    if command:
        assert f"asr {command[0]} " in result.output.split("Example")[1]


def test_an_unforeseen_asr_error_is_one_line_too(run, monkeypatch, files):
    def fail(*_, **__):
        raise AsrError("two\nlines")

    monkeypatch.setattr("asr.transcriber.load_model", fail)
    assert run("transcribe", files[0]) == (2, "", "error: two lines\n")


def test_import_is_quick_and_pulls_in_no_training_code():
    code = (
        "import time, sys; t = time.perf_counter(); import asr; t = time.perf_counter() - t;"
        "heavy = {'lightning', 'lhotse', 'hydra', 'librosa', 'torch', 'matplotlib'} & set(sys.modules);"
        "print(heavy or '', t < 1.0, callable(asr.load_model), callable(asr.transcribe))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["True", "True", "True"]


def test_transcribing_imports_no_training_code(toy_bundle, files):
    code = (
        "import sys; import asr; asr.transcribe(sys.argv[1], sys.argv[2], 'cpu');"
        "print(sorted({'lightning', 'lhotse', 'hydra', 'librosa', 'matplotlib', 'jiwer'} & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(files[0]), str(toy_bundle)], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "[]"
