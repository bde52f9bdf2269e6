import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile

from asr.corpus import an4, librispeech
from asr.errors import ConfigError, CorpusError

REPOSITORY = Path(__file__).parents[2]
# speaker -> utterances: (prompt, text)
TRAIN = {
    "fash": [("an251", "YES"), ("an253", "GO"), ("cen7", "TWO SIX EIGHT")],
    "mblb": [("an31", "RUBOUT G M E F"), ("an32", "HELP")],
    "mtxj": [("cen1", "JULY FOURTEENTH")],
}
TEST = {"fcaw": [("an406", "NO"), ("an407", "ENTER FIVE")]}


def speech(identity: str) -> np.ndarray:
    """A slow sine with a little noise, (T,) int16, different for each id: like speech, neighbours are close."""
    seed = sum(map(ord, identity))
    noise = np.random.default_rng(seed).normal(0, 20, 4000 + 16 * seed)
    return (3000 * np.sin(np.arange(len(noise)) / (20 + seed % 7)) + noise).astype(np.int16)


def encode(samples: np.ndarray, suffix: str) -> bytes:
    if suffix == "sph":
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, 16000, format="NIST", subtype="PCM_16")
        return buffer.getvalue()
    return samples.astype(">i2" if suffix == "big" else "<i2").tobytes()


def official_files(suffix: str = "sph") -> dict[str, bytes]:
    """Name -> content of a small archive in the official layout."""
    files = {}
    for part, folder, speakers in (("train", "an4_clstk", TRAIN), ("test", "an4test_clstk", TEST)):
        lines, places = [], []
        for speaker, utterances in speakers.items():
            for prompt, text in utterances:
                identity = f"{prompt}-{speaker}-b"
                # The test transcripts come without sentence marks.
                lines.append(f"<s> {text} </s> ({identity})" if part == "train" else f"{text} ({identity})")
                places.append(f"{folder}/{speaker}/{identity}")
                ending = "sph" if suffix == "sph" else "raw"
                files[f"an4/wav/{places[-1]}.{ending}"] = encode(speech(identity), suffix)
        files[f"an4/etc/an4_{part}.transcription"] = ("\n".join(lines) + "\n").encode()
        files[f"an4/etc/an4_{part}.fileids"] = ("\n".join(places) + "\n").encode()
    return files


def lay_out(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "corpora", official_files())


def texts(result: librispeech.SubsetScan) -> dict[str, str]:
    return {utterance.id: utterance.text for utterance in result.utterances}


@pytest.mark.parametrize("suffix", ["sph", "big", "little"])
def test_official_archive_in_every_audio_format(tmp_path, suffix):
    root = lay_out(tmp_path / "corpora", official_files(suffix))
    train, test = an4.prepare(root, tmp_path / "out", dev_utterances=0)
    assert texts(train) == {
        "fash-0-an251-fash-b": "YES",
        "fash-0-an253-fash-b": "GO",
        "fash-0-cen7-fash-b": "TWO SIX EIGHT",
        "mblb-0-an31-mblb-b": "RUBOUT G M E F",
        "mblb-0-an32-mblb-b": "HELP",
        "mtxj-0-cen1-mtxj-b": "JULY FOURTEENTH",
    }
    assert texts(test) == {"fcaw-0-an406-fcaw-b": "NO", "fcaw-0-an407-fcaw-b": "ENTER FIVE"}
    assert (train.name, train.speakers, train.dropped) == ("an4-train", {"fash", "mblb", "mtxj"}, [])
    for utterance in train.utterances:
        assert utterance.path.suffix == ".flac"
        samples, rate = soundfile.read(utterance.path, dtype="int16")
        assert rate == 16000
        np.testing.assert_array_equal(samples, speech(utterance.id.split("-", 2)[2]))


def test_root_may_be_the_an4_folder_itself(official, tmp_path):
    assert an4.prepare(official / "an4", tmp_path / "a", dev_utterances=1)[2].utterances[0].text == "NO"


def test_dev_split_takes_whole_speakers_and_the_same_ones_again(official, tmp_path):
    out = tmp_path / "out"
    train, dev, test = an4.prepare(official, out, dev_utterances=3)
    assert [s.name for s in (train, dev, test)] == ["an4-train", "an4-dev", "an4-test"]
    assert len(dev.utterances) >= 3
    assert not train.speakers & dev.speakers
    assert train.speakers | dev.speakers == set(TRAIN)
    again = an4.prepare(official, out, dev_utterances=3)
    assert [texts(s) for s in again] == [texts(s) for s in (train, dev, test)]
    summary = json.loads((out / "summary.json").read_text())
    assert {name: item["evaluation"] for name, item in summary.items()} == {
        "an4-train": False,
        "an4-dev": True,
        "an4-test": True,
    }
    # Without a dev set its speakers train, so its manifests must not stay.
    an4.prepare(official, out, dev_utterances=0)
    assert not list(out.glob("*an4-dev*"))
    assert set(json.loads((out / "summary.json").read_text())) == {"an4-train", "an4-test"}


@pytest.mark.parametrize("kind", ["augmented", "spliced"])
def test_changed_copies_are_split_like_what_they_were_made_of(official, tmp_path, chapter_writer, kind):
    out = tmp_path / "out"
    plain = an4.prepare(official, out, dev_utterances=2)
    copies = tmp_path / f"copies/LibriSpeech/an4-train-{kind}"
    for utterances in (scan.utterances for scan in plain[:2]):
        for speaker in {u.speaker for u in utterances}:
            lines = {f"A{u.id}": (0.5, u.text) for u in utterances if u.speaker == speaker}
            chapter_writer(copies, f"A{speaker}/0", lines)
    train, dev, _, more, held = an4.prepare(official, out, dev_utterances=2, **{kind: tmp_path / "copies"})
    assert (more.name, held.name) == (f"an4-train-{kind}", f"an4-dev-{kind}")
    for scan, changed in ((train, more), (dev, held)):
        assert {f"A{u.id}" for u in scan.utterances} == {u.id for u in changed.utterances}
    *_, everything = an4.prepare(official, out, dev_utterances=0, **{kind: tmp_path / "copies"})
    assert len(everything.utterances) == len(more.utterances) + len(held.utterances)
    assert not list(out.glob("*an4-dev*"))
    # Those copies are of an4-dev's speakers too: with an4-dev held out again they must not lie about as training data.
    assert list(out.glob(f"*an4-train-{kind}*"))
    an4.prepare(official, out, dev_utterances=2)
    assert not list(out.glob(f"*-{kind}*"))


def test_hold_out_stops_at_the_first_speaker_that_is_enough():
    utterances = [
        librispeech.Utterance(f"{s}-{i}", s, "", "A", Path("x"), 1.0, 16000, "A")
        for s in ("fa", "fb", "fc", "ma", "mb", "mc")
        for i in range(10)
    ]
    scan = librispeech.SubsetScan("an4-train", utterances, [])
    for wanted, expected in ((1, 10), (10, 10), (11, 20), (50, 50)):
        train, dev = an4.hold_out(scan, wanted)
        assert len(dev.utterances) == expected
        assert len(train.utterances) == 60 - expected
    # Pinned: figures on an4-dev are only comparable while it is the same speakers.
    assert an4.hold_out(scan, 30)[1].speakers == {"fa", "ma", "fb"}
    with pytest.raises(
        ConfigError, match=r"dev_utterances=51 leaves nothing to train on: an4-train has 60 .* 6 speakers"
    ):
        an4.hold_out(scan, 51)


def test_negative_dev_utterances(official, tmp_path):
    with pytest.raises(ConfigError, match=r"corpus.dev_utterances is -1; it must be 0 or more"):
        an4.prepare(official, tmp_path / "out", dev_utterances=-1)
    with pytest.raises(ConfigError, match=r"corpus.dev_utterances should be int, not 'abc'"):
        an4.prepare(official, tmp_path / "out", dev_utterances="abc")


def test_second_run_converts_only_what_changed(official, tmp_path):
    out = tmp_path / "out"
    an4.prepare(official, out, dev_utterances=1)
    files = {path: path.stat().st_ctime_ns for path in out.rglob("*.flac")}
    manifests = {path: path.read_bytes() for path in out.glob("*.gz")}
    assert len(files) == 8
    an4.prepare(official, out, dev_utterances=1)
    assert {path: path.stat().st_ctime_ns for path in out.rglob("*.flac")} == files
    assert {path: path.read_bytes() for path in out.glob("*.gz")} == manifests
    (gone,) = out.rglob("fcaw-0-an406-fcaw-b.flac")
    gone.unlink()
    an4.prepare(official, out, dev_utterances=1)
    changed = [path for path in out.rglob("*.flac") if path.stat().st_ctime_ns != files[path]]
    assert changed == [gone]


def test_what_was_mended_is_converted_again_though_it_is_older(tmp_path):
    """As tar restores it."""
    files = official_files("raw")
    name = next(path for path in files if path.endswith(".raw"))
    official, out = lay_out(tmp_path / "root", files | {name: files[name][:8000]}), tmp_path / "out"
    an4.prepare(official, out, dev_utterances=1)
    (broken,) = (path for path in out.rglob("*.flac") if path.name.endswith(f"{Path(name).stem}.flac"))
    assert soundfile.info(broken).frames == 4000
    (source,) = tmp_path.glob(f"root/**/{Path(name).name}")
    source.write_bytes(files[name])
    os.utime(source, (0, 0))
    an4.prepare(official, out, dev_utterances=1)
    assert soundfile.info(broken).frames == len(files[name]) // 2


def test_nothing_stays_of_a_speaker_whose_audio_is_gone(official, tmp_path):
    out = tmp_path / "out"
    train, *_ = an4.prepare(official, out, dev_utterances=0)
    speaker = min(train.speakers)
    (out / "audio/an4-train/notes").mkdir()
    (out / "audio/an4-train/notes/mine.txt").write_text("")
    (out / "audio/an4-train/link").symlink_to(out / "audio/an4-train/notes")
    for path in list(official.rglob("*")):
        if path.is_file() and path.parent.name == speaker:
            path.unlink()
    train, *_ = an4.prepare(official, out, dev_utterances=0)
    assert speaker not in train.speakers
    assert not {u.id for u in train.utterances} & {d.id for d in train.dropped}
    assert train.dropped
    assert (out / "audio/an4-train/notes/mine.txt").is_file()
    kept = sorted(out.rglob("*.flac"))
    shutil.move(official / "an4/wav", tmp_path / "elsewhere")
    with pytest.raises(CorpusError, match="has no usable utterance"):
        an4.prepare(official, out, dev_utterances=0)
    assert sorted(out.rglob("*.flac")) == kept


def test_librispeech_layout_is_used_as_it_is(tmp_path, chapter_writer):
    for root in (tmp_path / "a", tmp_path / "b/LibriSpeech"):
        chapter_writer(root / "an4-train", "fash/0", {"fash-0-an251-fash-b": (0.5, "YES"), "fash-0-x": (0, "LOST")})
        chapter_writer(root / "an4-train", "mblb/0", {"mblb-0-an31-mblb-b": (0.5, "GO")})
        chapter_writer(root / "an4-test", "fcaw/0", {"fcaw-0-an406-fcaw-b": (0.5, "NO")})
    for root in (tmp_path / "a", tmp_path / "b", tmp_path / "b/LibriSpeech"):
        train, dev, test = an4.prepare(root, tmp_path / "out", dev_utterances=1)
        assert len(train.utterances) == len(dev.utterances) == len(test.utterances) == 1
        assert [(d.id, d.reason) for d in train.dropped] == [("fash-0-x", "audio is missing")]
        assert not (tmp_path / "out/audio").exists()


def test_speaker_in_train_and_test_stops(tmp_path, chapter_writer):
    chapter_writer(tmp_path / "an4-train", "fash/0", {"fash-0-a": (0.5, "YES")})
    chapter_writer(tmp_path / "an4-test", "fash/0", {"fash-0-b": (0.5, "NO")})
    with pytest.raises(
        CorpusError, match=r"speaker fash is in both an4-train \(training\) and an4-test \(evaluation\)"
    ):
        an4.prepare(tmp_path, tmp_path / "out", dev_utterances=0)


def test_what_is_wrong_with_single_utterances_is_named(official, tmp_path):
    wav = official / "an4/wav/an4_clstk"
    (wav / "fash/an251-fash-b.sph").unlink()
    content = (wav / "fash/an253-fash-b.sph").read_bytes()
    (wav / "fash/an253-fash-b.sph").write_bytes(content[:2024])
    (wav / "fash/cen7-fash-b.sph").write_bytes(b"NIST_1A\n junk")
    soundfile.write(wav / "mblb/an31-mblb-b.sph", np.ones(80, np.int16), 8000, format="NIST", subtype="PCM_16")
    test = official / "an4/wav/an4test_clstk/fcaw"
    (test / "an406-fcaw-b.sph").rename(test / "an406-fcaw-b.raw")
    (test / "an406-fcaw-b.raw").write_bytes(b"odd")
    etc = official / "an4/etc/an4_test.transcription"
    etc.write_text(etc.read_text() + "<s> </s> (an999-none-b)\n\n")
    train, held_out = an4.prepare(official, tmp_path / "out", dev_utterances=0)
    assert list(texts(train)) == ["mblb-0-an32-mblb-b", "mtxj-0-cen1-mtxj-b"]
    samples = len(speech("an253-fash-b"))
    reasons = {d.id: d.reason for d in train.dropped}
    assert reasons.pop("fash-0-cen7-fash-b").startswith("audio is corrupt: ")
    assert reasons == {
        "fash-0-an251-fash-b": "audio is missing",
        "fash-0-an253-fash-b": f"audio is corrupt: 500 of {samples} samples can be decoded",
        "mblb-0-an31-mblb-b": "audio is not 16000 Hz mono",
    }
    assert {d.id: d.reason for d in held_out.dropped} == {
        "fcaw-0-an406-fcaw-b": "audio is corrupt: half a sample at the end",
        "none-0-an999-none-b": "audio is missing",
    }


def test_nothing_usable_in_a_part(official, tmp_path):
    for path in (official / "an4/wav/an4test_clstk/fcaw").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CorpusError, match=r"an4-test in .*an4 has no usable utterance: audio is corrupt: .* \(2\)"):
        an4.prepare(official, tmp_path / "out")


def test_an_output_that_cannot_be_written(official, tmp_path, monkeypatch):
    with pytest.raises(CorpusError, match=r"x/audio.*: an4-train cannot be converted \(Not a directory\); mend that"):
        an4.prepare(official, Path(__file__) / "x")
    monkeypatch.setattr(soundfile, "write", Mock(side_effect=soundfile.LibsndfileError(2, "full: ")))
    with pytest.raises(CorpusError, match=r"an4-train cannot be converted \(full: System error.\); mend that"):
        an4.prepare(official, tmp_path / "out")


def test_what_is_not_an4_stops(official, tmp_path):
    with pytest.raises(CorpusError, match=r"no folder .*nowhere; set corpus.root, or corpus.download=true"):
        an4.prepare(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "bare").mkdir()
    with pytest.raises(CorpusError, match=r"no AN4 in .*bare: neither an4/etc/an4_train.transcription nor folders"):
        an4.prepare(tmp_path / "bare", tmp_path / "out")
    etc = official / "an4/etc"
    (etc / "an4_train.transcription").write_text("<s> YES </s> (an251-fash-b)\nNO ID\n")
    with pytest.raises(CorpusError, match=r"an4_train.transcription, line 2: expected .* found 'NO ID'"):
        an4.prepare(official, tmp_path / "out")
    (etc / "an4_train.fileids").unlink()
    with pytest.raises(CorpusError, match=r"no file .*an4_train.fileids; AN4 is not complete"):
        an4.prepare(official, tmp_path / "out")


def test_download(tmp_path, server, tar_writer, monkeypatch):
    server.publish("an4_sphere.tar.gz", tar_writer(tmp_path / "made.tar.gz", official_files()), checksum=False)
    url = f"{server.url}/an4_sphere.tar.gz"
    with pytest.raises(CorpusError, match=r"an4_sphere.tar.gz has the audio of 6 an4_train utterances, expected 948"):
        an4.prepare(tmp_path / "data", tmp_path / "out", fetch_missing=True, url=url)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["an4_sphere.tar.gz"]
    monkeypatch.setattr(an4, "SIZES", {"train": 6, "test": 2})
    # The manifests' folder may be the one that the archive unpacks to.
    output = tmp_path / "data/an4"
    output.mkdir()
    for _ in range(2):
        scans = an4.prepare(tmp_path / "data", output, dev_utterances=1, fetch_missing=True, url=url)
        assert sum(len(s.utterances) for s in scans) == 8
    assert [path for path, _ in server.requests] == ["/an4_sphere.tar.gz"]  # the first archive was kept and used
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["an4"]
    assert (output / "summary.json").is_file()


def test_download_does_not_overwrite(tmp_path, server, tar_writer, monkeypatch):
    monkeypatch.setattr(an4, "SIZES", {"train": 6, "test": 2})
    server.publish("an4_sphere.tar.gz", tar_writer(tmp_path / "made.tar.gz", official_files()), checksum=False)
    (tmp_path / "data/an4/wav").mkdir(parents=True)
    with pytest.raises(CorpusError, match=r"data/an4/wav is in the way of unpacking AN4; move it away"):
        an4.download(tmp_path / "data", f"{server.url}/an4_sphere.tar.gz")


def run_recipe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "recipes/an4/prepare.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_command(official, tmp_path):
    from lhotse import CutSet

    done = run_recipe(tmp_path, "corpus.root=corpora", "corpus.dev_utterances=1", "output=out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("│ an4-") == 3
    cuts = CutSet.from_file(tmp_path / "out/cuts_an4-test.jsonl.gz")
    assert [(cut.id, cut.supervisions[0].text, cut.supervisions[0].speaker) for cut in cuts] == [
        ("fcaw-0-an406-fcaw-b", "NO", "fcaw"),
        ("fcaw-0-an407-fcaw-b", "ENTER FIVE", "fcaw"),
    ]
    assert next(iter(cuts)).load_audio().shape == (1, len(speech("an406-fcaw-b")))
    done = run_recipe(tmp_path, "corpus.root=nowhere", "output=out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: no folder {tmp_path / 'nowhere'}; set corpus.root")
    assert done.stderr.count("\n") == 1
