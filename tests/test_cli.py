import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile
from toy_speech import speak
from typer.testing import CliRunner

from asr import cli
from asr.bundle import load_bundle
from asr.errors import AsrError
from asr.microphone import blocks
from asr.model.word_lm import estimate, save_word_lm
from asr.scoring import read_transcripts
from asr.segmenter import Segmenter
from asr.transcriber import Transcriber, choose_decoding


@pytest.fixture
def run(toy_bundle, capsys, monkeypatch):
    """Run `asr ...` in this process: exit code, standard output, standard error."""

    def call(*arguments):
        arguments = [str(a) for a in arguments]
        if arguments[0] in ("transcribe", "listen", "info") and "--model" not in arguments:
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
    alike = [tmp_path / "x_y" / "a.wav", tmp_path / "x" / "y" / "a.wav"]
    for path in alike:
        path.parent.mkdir()
        path.write_bytes(paths[0].read_bytes())
    assert run("transcribe", "--output-dir", tmp_path / "more", *alike)[::2] == (0, "")
    assert len(list((tmp_path / "more").iterdir())) == 2


def test_files_of_one_name_are_told_apart_in_trn_and_ctm(run, tmp_path):
    for speaker in ("a", "b"):
        (tmp_path / speaker).mkdir()
        soundfile.write(tmp_path / speaker / "1.flac", speak("CAVE"), 16000)
    paths = [tmp_path / speaker / "1.flac" for speaker in ("a", "b")]
    out = tmp_path / "both.trn"
    out.write_text(run("transcribe", "--format", "trn", *paths)[1])
    first, second = read_transcripts(out)
    assert first.endswith("_a_1")
    assert second.endswith("_b_1")
    ctm = run("transcribe", "--format", "ctm", *paths)[1]
    assert {line.split()[0] for line in ctm.splitlines()} == {first, second}


def test_results_may_come_in_any_order(run, files, tmp_path, monkeypatch):
    orders = []
    transcribe_all = Transcriber.transcribe_all

    def backwards(self, sources, names, on_progress, in_order):
        orders.append(in_order)
        return reversed(list(transcribe_all(self, sources, names, on_progress)))

    monkeypatch.setattr(Transcriber, "transcribe_all", backwards)
    run("transcribe", "--output-dir", tmp_path, *files)
    assert [run("transcribe", file)[1] for file in files] == [(tmp_path / f"{n}.txt").read_text() for n in "AC"]
    assert orders == [False, True, True]


def test_a_result_that_cannot_be_written_does_not_stop_the_others(run, files, tmp_path):
    (tmp_path / "out" / "A.txt").mkdir(parents=True)
    code, _, err = run("transcribe", "--output-dir", tmp_path / "out", "--format", "txt,json", *files)
    assert (code, err) == (2, f"error: {tmp_path}/out/A.txt: cannot be written (Is a directory)\n")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["A.json", "A.txt", "C.json", "C.txt"]


def test_names_that_are_not_utf_8(run, files, tmp_path):
    odd = files[0].rename(tmp_path / os.fsdecode(b"lat\xe9in.flac"))
    code, out, _ = run("transcribe", "--format", "json", odd, files[1])
    assert code == 0
    assert [json.loads(line)["audio"] for line in out.splitlines()] == [f"{tmp_path}/lat\ufffdin.flac", str(files[1])]
    assert run("transcribe", "--output-dir", tmp_path / "out", "--format", "json", odd)[0] == 0
    assert os.listdir(os.fsencode(tmp_path / "out")) == [b"lat\xe9in.json"]
    texts = tmp_path / os.fsdecode(b"t\xe9xt")
    texts.write_text("u1 THE CAT\n")
    assert run("score", texts, texts, texts, "--html", tmp_path / "page.html")[0] == 0


def test_several_formats_at_once(run, files, tmp_path):
    out = tmp_path / "out"
    assert run("transcribe", "--format", "txt,json,srt,vtt,ctm,trn,jsonl", "--output-dir", out, files[0])[:2] == (0, "")
    assert sorted(p.name for p in out.iterdir()) == [
        f"A.{f}" for f in ("ctm", "json", "jsonl", "srt", "trn", "txt", "vtt")
    ]
    text = (out / "A.txt").read_text().strip()
    assert json.loads((out / "A.json").read_text()) == json.loads((out / "A.jsonl").read_text())
    assert (out / "A.trn").read_text() == f"{text} (A)\n"
    assert [line.split()[4] for line in (out / "A.ctm").read_text().splitlines()] == text.split()


def test_subtitles_parse_with_readers_that_are_not_ours(run, files, tmp_path):
    pysrt = pytest.importorskip("pysrt")
    webvtt = pytest.importorskip("webvtt")
    run("transcribe", "--format", "srt,vtt,txt", "--output-dir", tmp_path, files[0])
    text = (tmp_path / "A.txt").read_text().split()
    subtitles = pysrt.open(str(tmp_path / "A.srt"))
    assert [word for cue in subtitles for word in cue.text.split()] == text
    captions = webvtt.read(tmp_path / "A.vtt")
    assert [word for cue in captions for word in cue.text.split()] == text
    seconds = soundfile.info(files[0]).duration
    assert all(0 <= cue.start.ordinal < cue.end.ordinal <= 1000 * seconds for cue in subtitles)
    assert [(cue.start, cue.end) for cue in captions] == [
        (str(cue.start).replace(",", "."), str(cue.end).replace(",", ".")) for cue in subtitles
    ]


def test_json_has_the_keys_and_words_only_where_asked_for(run, files):
    for flags in ((), ("--words",)):
        result = json.loads(run("transcribe", "--format", "json", *flags, files[0])[1])
        assert list(result) == ["audio", "duration", "text", "confidence", "segments", "model", "real_time_factor"]
        assert 0 <= result["confidence"] <= 1
        (segment,) = result["segments"]
        assert list(segment) == ["start", "end", "text", "confidence", "words"]
        assert [list(word) for word in segment["words"][:1]] == [["word", "start", "end", "confidence"]] * len(flags)
        assert [word["word"] for word in segment["words"]] == (segment["text"].split() if flags else [])


def test_nbest(run, files):
    result = json.loads(run("transcribe", "--format", "json", "--beam", "3", "--nbest", "2", files[0])[1])
    (segment,) = result["segments"]
    assert segment["nbest"][0]["text"] == segment["text"]
    assert len(segment["nbest"]) == 2


def test_standard_input(run, files, monkeypatch):
    expected = run("transcribe", files[0])[1]
    for data, code in ((files[0].read_bytes(), 0), (b"", 2), (b"no audio at all", 2)):
        stdin = io.TextIOWrapper(io.BufferedReader(_Pipe(data)))
        monkeypatch.setattr(sys, "stdin", stdin)
        result = run("transcribe", "-")
        assert result[0] == code
        if code:
            assert result[2].startswith("error: stdin: ")
        else:
            assert result[1] == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(files[0].read_bytes())))
    assert json.loads(run("transcribe", "-", "--format", "json")[1])["audio"] == "stdin"


def test_closed_standard_input(run, files, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, out, err = run("transcribe", "-", files[0])
    assert (code, out.count("\n"), err) == (2, 1, "error: stdin: cannot be read (it is closed)\n")
    assert run("transcribe", "-") == (2, "", err)


class _Pipe(io.RawIOBase):
    """Bytes that cannot seek."""

    def __init__(self, data):
        self.data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.data.readinto(buffer)


def test_folders(run, files, tmp_path):
    below = tmp_path / "talks" / "monday"
    below.mkdir(parents=True)
    files[0].rename(below.parent / "B.flac")
    files[1].rename(below / "C.FLAC")
    (below / "notes.txt").write_text("not audio")
    assert run("transcribe", below.parent)[1].count("\n") == 1
    assert run("transcribe", "--recursive", below.parent)[1].count("\n") == 2
    out = tmp_path / "out"
    run("transcribe", "--recursive", "--output-dir", out, below.parent)
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.txt")) == ["B.txt", "monday/C.txt"]
    (tmp_path / "none").mkdir()
    complaint = f"error: {tmp_path / 'none'}: no audio files in this folder; try --recursive\n"
    assert run("transcribe", tmp_path / "none") == (2, "", complaint)
    code, text, err = run("transcribe", tmp_path / "none", below.parent)
    assert (code, text.count("\n"), err) == (2, 1, complaint)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "monday").write_text("")
    code, _, err = run("transcribe", "--recursive", "--output-dir", tmp_path / "taken", below.parent)
    assert code == 2
    assert err == f"error: {tmp_path}/taken/monday: cannot write there (File exists); choose another --output-dir\n"


def test_a_folder_without_permission_is_reported(run, files, tmp_path, monkeypatch):
    (tmp_path / "talks" / "locked").mkdir(parents=True)
    files[0].rename(tmp_path / "talks" / "A.flac")
    files[1].rename(tmp_path / "talks" / "locked" / "C.flac")
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    code, out, err = run("transcribe", "--recursive", tmp_path / "talks")
    assert (code, out.count("\n")) == (2, 1)
    assert err == f"error: {tmp_path}/talks/locked: cannot be read (Permission denied)\n"


def test_whether_a_file_can_be_read_is_left_to_those_who_read_it(run, files, tmp_path, monkeypatch):
    (tmp_path / "ref.txt").write_text("u1 THE CAT\n")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert run("transcribe", *files)[0] == 0
    paths = [tmp_path / "ref.txt"] * 3
    (tmp_path / "page.html").write_text("")
    assert run("score", *paths, "--html", tmp_path / "page.html", "--output", tmp_path)[0] == 0


def test_a_name_that_is_too_long_does_not_stop_the_others(run, files):
    code, out, err = run("transcribe", "a" * 300, files[0])
    assert (code, out.count("\n")) == (2, 1)
    assert err.endswith(": cannot be opened (File name too long)\n")


def test_skip_existing(run, files, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run("transcribe", "--output-dir", out, files[0])
    before = (out / "A.txt").stat()
    assert run("transcribe", "--skip-existing", "--output-dir", out, *files)[0] == 0
    assert (out / "A.txt").stat().st_mtime_ns == before.st_mtime_ns
    assert (out / "C.txt").exists()
    run("transcribe", "--skip-existing", "--output-dir", out, "--format", "txt,srt", *files)  # srt is missing
    assert (out / "A.srt").exists()
    monkeypatch.setattr("asr.transcriber.load_model", None)  # nothing to do: no model is loaded
    assert run("transcribe", "--skip-existing", "--output-dir", out, *files) == (0, "", "")


def test_plot(run, files, tmp_path):
    run("transcribe", "--plot", "--output-dir", tmp_path / "out", files[0])
    (picture,) = (tmp_path / "out").glob("*.png")
    assert re.fullmatch(r"A\.\d{5}\.\d\d\.png", picture.name)
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_plot_without_output_dir(run, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "A.flac").write_bytes(files[0].read_bytes())
    assert run("transcribe", "--plot", "A.flac", "x/A.flac")[0] == 0
    first, second = sorted(path.name for path in tmp_path.glob("*.png"))
    assert (first[:7], second[:9]) == ("A.flac.", "x_A.flac.")


def test_a_drawing_that_cannot_be_written_does_not_stop_the_transcripts(run, files, tmp_path, monkeypatch):
    def full(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    code, _, err = run("transcribe", "--plot", "--output-dir", tmp_path / "out", *files)
    assert code == 2
    assert err.count("\n") == err.count(".png: cannot be written (No space left on device)\n") > 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["A.txt", "C.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "doc"), "no output format 'doc'; there are txt, json"),
        (("--format", ""), "no output format ''"),
        (("--format", "txt,srt"), "several formats need --output-dir"),
        (("--format", "srt"), "several files need --output-dir"),
        (("--skip-existing",), "--skip-existing looks for results in --output-dir; name one"),
        (("--nbest", "3"), "only json and jsonl have room"),
        (("--format", "json", "--beam", "2", "--nbest", "3"), "nbest must be 1 .. beam (2), got 3"),
        (("-", "-"), "standard input can be read once only"),
        (("--max-segment", "inf"), "--max-segment inf: "),
    ],
)
def test_options_that_cannot_work(run, files, options, message):
    code, out, err = run("transcribe", *options, *files)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_voice_for_each_file_or_for_all(run, files, monkeypatch):
    heard = []
    adapt = Transcriber.adapt

    def adapting(self, groups, on_progress):
        heard.append(sum(map(len, groups)))
        return adapt(self, groups, on_progress)

    monkeypatch.setattr(Transcriber, "adapt", adapting)
    for options, counts in (((), []), (("--adapt", "file"), [1, 1]), (("--adapt", "all"), [2])):
        code, out, err = run("transcribe", *options, *files)
        assert (code, err, out.count("\n")) == (0, "", 2)
        assert heard == counts
        heard.clear()


def test_vad_can_be_turned_off(run, files, monkeypatch):
    def absent(*_):
        raise AssertionError("the detector is not wanted")

    monkeypatch.setattr("asr.transcriber.SileroVad.__init__", absent)
    assert run("transcribe", "--no-vad", files[0])[0] == 0


@pytest.fixture
def microphone(monkeypatch):
    """A sounddevice that hears toy speech and then Ctrl-C."""
    samples = np.concatenate([speak("ABLE BIRD"), np.zeros(16000, np.float32), speak("CAVE"), np.zeros(1600)])

    class InputStream:
        def __init__(self, samplerate, blocksize, device, channels, dtype, callback):
            if device == "broken":
                raise ValueError("No input device matching 'broken'")
            assert (samplerate, channels, dtype) == (16000, 1, "float32")
            for start in range(0, len(samples), blocksize):
                callback(samples[start : start + blocksize, None].astype(np.float32), blocksize, None, None)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    class SimpleQueue:
        def __init__(self):
            self.items = []

        def put(self, item):
            self.items.append(item)

        def get(self):
            if not self.items:
                raise KeyboardInterrupt
            return self.items.pop(0)

    fake = types.ModuleType("sounddevice")
    fake.InputStream, fake.PortAudioError = InputStream, OSError
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr("queue.SimpleQueue", SimpleQueue)
    return samples


def test_listen(run, microphone, tmp_path):
    soundfile.write(tmp_path / "same.wav", microphone, 16000, subtype="FLOAT")
    segments = json.loads(run("transcribe", "--format", "json", "--words", tmp_path / "same.wav")[1])["segments"]
    code, out, err = run("listen")
    assert (code, err) == (0, "")
    assert out.splitlines() == [segment["text"] for segment in segments]
    assert [json.loads(line) for line in run("listen", "--json")[1].splitlines()] == segments
    code, out, err = run("listen", "--input-device", "broken")
    assert (code, out) == (2, "")
    assert err.startswith("error: microphone: No input device matching 'broken'")


def test_ctrl_c_while_listening_leaves_nothing_unwritten(run, microphone, monkeypatch):
    whole = run("listen")[1]
    feed = Segmenter.feed
    before = signal.getsignal(signal.SIGINT)

    def interrupted(self, block):  # as it is most of the time: while something else than the queue is at work
        if signal.getsignal(signal.SIGINT) != before:
            signal.raise_signal(signal.SIGINT)
        return feed(self, block)

    monkeypatch.setattr(Segmenter, "feed", interrupted)
    assert run("listen") == (0, whole, "")
    assert signal.getsignal(signal.SIGINT) == before


def test_ctrl_c_that_is_ignored_is_ignored(microphone):
    """As it is of a program that a script has put into the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        heard = blocks(16000)
        next(heard)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        heard.close()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_is_scored_is_read_before_anything_is_written(run, tmp_path):
    for name, text in (("ref.trn", "HELLO (u1)"), ("new.trn", "HELLO (u1)"), ("out/hyp.trn", "BYE MOON (u1)")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    ref, new, old = (tmp_path / name for name in ("ref.trn", "new.trn", "out/hyp.trn"))
    for options in ((new, old, "--output", tmp_path / "out"), (new, "--html", ref), (new, old, "--html", old)):
        code, _, err = run("score", ref, *options)
        assert code == 2
        assert "is what is scored, and would be overwritten; choose another place to write to" in err
    assert ref.read_text() == "HELLO (u1)\n"
    assert old.read_text() == "BYE MOON (u1)\n"
    assert run("score", ref, new, old, "--output", tmp_path / "there")[0] == 0


def test_info_in_a_pipe_is_a_line_a_fact(run):
    lines = run("info")[1].splitlines()
    assert len(lines) == len({line.split("  ")[0] for line in lines}) > 10
    assert not any(line != line.rstrip() for line in lines)


def test_listen_without_its_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert run("listen") == (2, "", "error: listening needs the extra `listen`: pip install 'asr[listen]'\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("transcribe", "--model", "/no/model", "a.wav"), "error: /no/model: no such model folder"),
        (("transcribe", "/no/such.wav"), "error: /no/such.wav: no such file"),
        (("score", "/no/ref", "/no/hyp"), "error: /no/ref"),
        (("info", "--model", "a" * 300), f"error: {'a' * 300}: no such model folder"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["transcribe", "listen"])
def test_more_threads_than_there_can_be(run, command):
    code, _, err = run(command, "--threads", 3_000_000_000, *["a.wav"] * (command == "transcribe"))
    assert code == 2
    assert "1024" in err


@pytest.mark.parametrize("command", ["transcribe", "score", "info"])
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errno.ENOSPC, 2, "error: standard output: cannot be written (No space left on device)\n"),
        (errno.EPIPE, 1, ""),  # asr ... | head
    ],
)
def test_output_that_cannot_be_written(run, files, tmp_path, monkeypatch, command, error, code, message):
    class Output(io.StringIO):
        def flush(self):
            raise OSError(error, os.strerror(error))

    (tmp_path / "ref.txt").write_text("u1 THE CAT\n")
    arguments = {"transcribe": files, "score": [tmp_path / "ref.txt"] * 2, "info": ["--json"]}[command]
    monkeypatch.setattr(sys, "stdout", Output())
    assert run(command, *arguments)[::2] == (code, message)


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
    assert err.startswith(f"error: {hyp}: 1 of 2 utterances of {ref} have no hypothesis: u2; ")
    assert run("score", ref, ref, hyp) == (code, out, err)
    assert run("score", ref, hyp, "--output", tmp_path / "out") == (code, out, err)


def test_info(run, toy_bundle):
    code, out, _ = run("info", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["parameters"] > 10_000
    assert facts["training"]["dev_wer"] == 0.5
    assert facts["search"]["beam"] == 1
    assert "train-toy" in run("info")[1]
    settings = toy_bundle / "config.yaml"
    settings.write_text(settings.read_text() + "  date: 2026-12-01\n")  # which YAML takes for a date, not for text
    assert json.loads(run("info", "--json")[1])["training"]["date"] == "2026-12-01"


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
    search = json.loads(run("info", "--json")[1])["search"]
    assert search["beam"] == choose_decoding(load_bundle(toy_bundle)).beam > 1
    assert search["lm_weight"] > 0
    assert "search: lm_weight" in run("info")[1]
    assert "word n-gram" in run("info")[1]


@pytest.mark.parametrize("command", [(), ("transcribe",), ("listen",), ("score",), ("info",)])
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


def test_an_unforeseen_error_of_the_system_is_not_taken_for_one_of_the_output(run, monkeypatch, files):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("asr.transcriber.load_model", fail)
    error = PermissionError(errno.EACCES, "Permission denied", "some.bin")
    assert run("transcribe", files[0]) == (2, "", "error: some.bin: Permission denied\n")
    error = OSError("libcudart.so: cannot open shared object file")
    with pytest.raises(OSError, match="libcudart"):
        run("transcribe", files[0])


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


def test_the_program_itself(toy_bundle, files):
    """Exit codes and flushed output, though the interpreter is not taken down."""
    program = [sys.executable, "-m", "asr.cli"]
    done = subprocess.run(
        [*program, "transcribe", "--no-vad", "--model", str(toy_bundle), str(files[1]), "/no/such.wav"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (2, "error: /no/such.wav: no such file\n")
    assert done.stdout.endswith("\n")
    assert subprocess.run([*program, "--version"], capture_output=True).returncode == 0
    assert subprocess.run([*program, "transcribe", "--beam", "x", "a.wav"], capture_output=True).returncode == 2


def test_closed_standard_output_and_error(tmp_path):
    (tmp_path / "ref.txt").write_text("u1 THE CAT\n")
    score = f"{sys.executable} -m asr.cli score ref.txt ref.txt"
    done = subprocess.run(f"{score} >&-", shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: standard output: cannot be written (Bad file descriptor)\n"
    done = subprocess.run(f"{score} 2>&-", shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout[:4], done.stderr) == (0, "WER ", "")
