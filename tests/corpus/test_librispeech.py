import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.corpus import librispeech
from asr.corpus.librispeech import Dropped, download, is_evaluation, prepare, scan
from asr.errors import ConfigError, CorpusError

REPOSITORY = Path(__file__).parents[2]


def reasons(result: librispeech.SubsetScan) -> dict[str, str]:
    return {d.id: d.reason for d in result.dropped}


def ids(result: librispeech.SubsetScan) -> list[str]:
    return [utterance.id for utterance in result.utterances]


# --- scanning


@pytest.mark.parametrize("check", ["full", "header"])
def test_scan_gives_exact_values(corpus, check):
    result = scan(corpus, "train-toy", check)
    assert ids(result) == ["19-198-0000", "19-198-0001", "26-495-0000"]
    first = result.utterances[0]
    assert (first.speaker, first.chapter, first.text) == ("19", "198", "HELLO WORLD")
    assert (first.duration, first.sample_rate, first.num_samples) == (1.0, 16000, 16000)
    assert first.path == corpus / "LibriSpeech/train-toy/19/198/19-198-0000.flac"
    assert result.dropped == []
    assert result.hours == 3.0 / 3600
    assert result.speakers == {"19", "26"}
    assert result.characters == len("HELLO WORLD") + len("GOOD DAY") + len("IT'S TEN O'CLOCK")


def test_root_may_be_the_librispeech_folder_or_hold_subsets_beside_it(corpus, chapter_writer):
    assert scan(corpus / "LibriSpeech", "dev-toy") == scan(corpus, "dev-toy")
    chapter_writer(corpus / "other", "7/1", {"7-1-0": (0.5, "A")})
    assert ids(scan(corpus, "other")) == ["7-1-0"]
    assert librispeech.available(corpus) == ["dev-toy", "other", "train-toy"]


def test_text_is_normalised_and_the_original_kept(corpus, chapter_writer):
    chapter_writer(corpus / "LibriSpeech/x", "1/2", {"1-2-0": (0.5, "Café — the 2nd, “don’t”!")})
    (utterance,) = scan(corpus, "x").utterances
    assert utterance.text == "CAFE THE SECOND DON'T"
    assert utterance.original_text == "Café — the 2nd, “don’t”!"


@pytest.mark.parametrize(
    ("chapter", "identity", "speaker", "name"),
    [
        ("19/198", "19-198-0", "19", "198"),
        ("p239/0", "p239_001", "p239", "0"),
        ("alice/0", "utt-alice-0001", "alice", "0"),
        ("lj", "LJ001-0001", "lj", ""),
        (".", "5-6-7", "5", ""),
        (".", "x1", "x", ""),
        ("part/19/198", "19-198-0", "19", "198"),
    ],
)
def test_speaker_and_chapter_at_every_depth(corpus, chapter_writer, chapter, identity, speaker, name):
    subset = corpus / "LibriSpeech/x"
    chapter_writer(subset, chapter, {identity: (0.5, "A")}).rename(subset / chapter / "lines.trans.txt")
    (utterance,) = scan(corpus, "x").utterances
    assert (utterance.speaker, utterance.chapter) == (speaker, name)


def test_suffixes_in_capitals(corpus, chapter_writer):
    subset = corpus / "LibriSpeech/train-toy/19/198"
    (subset / "19-198-0000.flac").rename(subset / "19-198-0000.FLAC")
    result = scan(corpus, "train-toy")
    assert "19-198-0000" in [utterance.id for utterance in result.utterances]
    assert not result.dropped


def test_a_folder_without_permission_is_named(corpus, monkeypatch):
    walk, folder = os.walk, corpus / "LibriSpeech/train-toy/26"

    def without(top, followlinks, onerror):  # as root may read everything
        for current, folders, files in walk(top, followlinks=followlinks):
            if Path(current) == folder:
                onerror(PermissionError(13, "Permission denied", str(folder)))
            else:
                yield current, folders, files

    monkeypatch.setattr(os, "walk", without)
    with pytest.raises(CorpusError, match=r"train-toy/26: cannot be read \(Permission denied\)"):
        scan(corpus, "train-toy")


def test_wav_links_and_dotted_ids_are_found_and_a_link_loop_ends(corpus, tmp_path, chapter_writer):
    elsewhere = tmp_path / "elsewhere"
    chapter_writer(elsewhere, "3/4", {"3-4-0.5": (0.5, "A")})
    soundfile.write(elsewhere / "3/4/3-4-1.wav", np.ones(800, np.int16), 16000)
    with (elsewhere / "3/4/3-4.trans.txt").open("a") as file:
        file.write("3-4-1\tTAB SEPARATED\r\n\n")
    (elsewhere / "3/4/._3-4-1.wav").write_bytes(b"junk of another system")
    subset = corpus / "LibriSpeech/linked"
    subset.mkdir()
    (subset / "3").symlink_to(elsewhere / "3")
    (elsewhere / "3/loop").symlink_to(elsewhere / "3")
    result = scan(corpus, "linked")
    assert [(u.id, u.text) for u in result.utterances] == [("3-4-0.5", "A"), ("3-4-1", "TAB SEPARATED")]
    assert result.dropped == []


# --- what is wrong with single utterances


def test_missing_audio_and_transcript_and_empty_text_are_named(corpus, chapter_writer):
    folder = corpus / "LibriSpeech/train-toy/19/198"
    (folder / "19-198-0000.flac").unlink()
    soundfile.write(folder / "19-198-0009.flac", np.ones(100, np.int16), 16000)
    chapter_writer(
        corpus / "LibriSpeech/train-toy", "30/1", {"30-1-0": (0.5, ""), "30-1-1": (0.5, "..."), "30-1-2": (0.5, "OK")}
    )
    result = scan(corpus, "train-toy")
    assert ids(result) == ["19-198-0001", "26-495-0000", "30-1-2"]
    assert result.dropped == [
        Dropped("19-198-0000", "audio is missing", folder / "19-198.trans.txt"),
        Dropped("19-198-0009", "transcript is missing", folder / "19-198-0009.flac"),
        Dropped("30-1-0", "transcript is empty", corpus / "LibriSpeech/train-toy/30/1/30-1-0.flac"),
        Dropped("30-1-1", "transcript is empty", corpus / "LibriSpeech/train-toy/30/1/30-1-1.flac"),
    ]


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "bit":
        content[len(content) // 2] ^= 4
    elif how == "checksum":
        content[30] ^= 1  # in STREAMINFO's MD5
    elif how == "text":
        content = bytearray(b"<html>not found</html>")
    elif how == "zero":
        content = bytearray()
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "bit", "checksum", "text", "zero"])
def test_corrupt_flac_is_dropped_by_the_full_check(corpus, how):
    damage(corpus / "LibriSpeech/train-toy/19/198/19-198-0000.flac", how)
    result = scan(corpus, "train-toy")
    assert ids(result) == ["19-198-0001", "26-495-0000"]
    assert list(reasons(result)) == ["19-198-0000"]
    assert reasons(result)["19-198-0000"].startswith("audio is corrupt: ")
    if how == "checksum":
        assert reasons(result)["19-198-0000"].endswith("the samples do not match the checksum in the file")


def test_header_check_trusts_the_header(corpus):
    damage(corpus / "LibriSpeech/train-toy/19/198/19-198-0000.flac", "truncated")
    damage(corpus / "LibriSpeech/train-toy/19/198/19-198-0001.flac", "text")
    result = scan(corpus, "train-toy", "header")
    assert ids(result) == ["19-198-0000", "26-495-0000"]
    assert result.utterances[0].duration == 1.0


def test_flac_without_checksum_and_24_bit_are_fine(corpus):
    folder = corpus / "LibriSpeech/train-toy/19/198"
    content = bytearray((folder / "19-198-0000.flac").read_bytes())
    content[26:42] = bytes(16)
    (folder / "19-198-0000.flac").write_bytes(content)
    soundfile.write(folder / "19-198-0001.flac", np.linspace(-0.5, 0.5, 4000), 16000, subtype="PCM_24")
    assert scan(corpus, "train-toy").dropped == []


def test_stereo_and_empty_audio_are_named(corpus):
    folder = corpus / "LibriSpeech/train-toy/19/198"
    soundfile.write(folder / "19-198-0000.flac", np.ones((100, 2), np.int16), 16000)
    (folder / "19-198-0001.flac").unlink()
    soundfile.write(folder / "19-198-0001.wav", np.ones(0, np.int16), 16000)
    assert reasons(scan(corpus, "train-toy")) == {
        "19-198-0000": "audio has 2 channels, expected 1",
        "19-198-0001": "audio is empty",
    }


def test_duplicate_ids_within_a_subset(corpus, chapter_writer):
    train = corpus / "LibriSpeech/train-toy"
    with (train / "19/198/19-198.trans.txt").open("a") as file:
        file.write("19-198-0000 SOMETHING ELSE\n19-198-0001 GOOD DAY\n")
    chapter_writer(train, "99/1", {"26-495-0000": (0.5, "COPY")})
    result = scan(corpus, "train-toy")
    assert ids(result) == ["19-198-0001", "26-495-0000"]
    assert result.utterances[1].text == "IT'S TEN O'CLOCK"
    assert reasons(result) == {
        "19-198-0000": "duplicate id, 2 transcripts that differ",
        "19-198-0001": "duplicate id, 2 equal lines, one is kept",
        "26-495-0000": "duplicate id, also 26/495/26-495-0000.flac",
    }


def test_transcript_that_is_not_utf8_and_byte_order_mark(corpus):
    path = corpus / "LibriSpeech/train-toy/19/198/19-198.trans.txt"
    path.write_bytes(b"\xef\xbb\xbf19-198-0000 HELLO\n19-198-0001 caf\xe9\n")
    result = scan(corpus, "train-toy")
    assert ids(result) == ["19-198-0000", "26-495-0000"]
    assert reasons(result) == {"19-198-0001": "transcript is not UTF-8 text"}


# --- what stops


def test_missing_folders_name_what_is_there(corpus, tmp_path):
    with pytest.raises(CorpusError, match=r"no subset dev-clean in .*LibriSpeech; found there: dev-toy, train-toy$"):
        scan(corpus, "dev-clean")
    with pytest.raises(CorpusError, match=r"nowhere; set corpus.root \(of augment.py and splice.py: root\)"):
        scan(tmp_path / "nowhere", "dev-clean")
    (tmp_path / "bare").mkdir()
    with pytest.raises(CorpusError, match=r"found there: no subset at all"):
        scan(tmp_path / "bare", "dev-clean")


def test_folder_without_transcripts(corpus):
    (corpus / "LibriSpeech/noise").mkdir()
    with pytest.raises(CorpusError, match=r"no \*.trans.txt below .*noise; expected <speaker>/<chapter>/"):
        scan(corpus, "noise")
    assert librispeech.available(corpus) == ["dev-toy", "train-toy"]


def test_nothing_usable(corpus):
    damage(corpus / "LibriSpeech/dev-toy/84/121/84-121-0000.flac", "truncated")
    with pytest.raises(CorpusError, match=r"subset dev-toy has no usable utterance: audio is corrupt \(1\)"):
        scan(corpus, "dev-toy")
    (corpus / "LibriSpeech/dev-toy/84/121/84-121-0000.flac").unlink()
    (corpus / "LibriSpeech/dev-toy/84/121/84-121.trans.txt").write_text("\n")
    with pytest.raises(CorpusError, match=r"no usable utterance: its transcript files are blank"):
        scan(corpus, "dev-toy")


@pytest.mark.parametrize("subset", ["../speech", "", ".", "a/b"])
def test_subset_must_be_a_name(corpus, subset):
    with pytest.raises(ConfigError, match=r"is not the name of a subset"):
        scan(corpus, subset)


def test_unknown_check(corpus):
    with pytest.raises(ConfigError, match=r"corpus.check is 'some'; it must be full or header"):
        scan(corpus, "dev-toy", "some")


def test_speaker_in_training_and_evaluation_stops_before_anything_is_written(corpus, tmp_path, chapter_writer):
    chapter_writer(corpus / "LibriSpeech/dev-toy", "19/5", {"19-5-0": (0.5, "A")})
    chapter_writer(corpus / "LibriSpeech/dev-toy", "26/5", {"26-5-0": (0.5, "A")})
    message = (
        r"speaker 19 is in both train-toy \(training\) and dev-toy \(evaluation\) \(and 1 more: 26\); "
        r"leave one subset out of corpus.subsets, or set corpus.eval_subsets$"
    )
    with pytest.raises(CorpusError, match=message):
        prepare(corpus, ["train-toy", "dev-toy"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(prepare(corpus, ["train-toy", "dev-toy"], tmp_path / "out", eval_subsets=[])) == 2
    with pytest.raises(CorpusError, match=r"speaker 19 is in both dev-toy \(training\) and train-toy \(evaluation\)"):
        prepare(corpus, ["train-toy", "dev-toy"], tmp_path / "out", eval_subsets=["train-toy"])
    with pytest.raises(ConfigError, match=r"corpus.eval_subsets names dev-tyo, which corpus.subsets does not"):
        prepare(corpus, ["train-toy"], tmp_path / "out", eval_subsets=["dev-tyo"])


def test_copies_of_evaluation_speech_in_a_training_subset_stop(corpus, tmp_path, chapter_writer):
    chapter_writer(corpus / "LibriSpeech/more-augmented", "A84/121", {"A84-121-0000": (2.0, "YES")})
    with pytest.raises(CorpusError, match=r"speaker 84 is in both more-augmented \(training\) and dev-toy"):
        prepare(corpus, ["train-toy", "more-augmented", "dev-toy"], tmp_path / "out", eval_subsets="dev-toy")
    prepare(corpus, ["train-toy", "more-augmented"], tmp_path / "out")
    chapter_writer(corpus / "LibriSpeech/more", "A84/121", {"A84-121-0000": (2.0, "YES")})  # somebody's name
    prepare(corpus, ["train-toy", "more", "dev-toy"], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"corpus.root should be the folder that holds LibriSpeech/, not None"):
        prepare(None, ["train-toy"], tmp_path / "out")


def test_same_speaker_in_two_training_subsets_is_fine(corpus, tmp_path, chapter_writer):
    chapter_writer(corpus / "LibriSpeech/train-extra", "19/5", {"19-5-0": (0.5, "A")})
    assert len(prepare(corpus, ["train-toy", "train-extra"], tmp_path / "out")) == 2


def test_id_in_two_training_subsets_stays_in_the_first(corpus, tmp_path, chapter_writer):
    chapter_writer(corpus / "LibriSpeech/more", "19/198", {"19-198-0000": (0.5, "A"), "19-198-0005": (0.5, "B")})
    first, second = prepare(corpus, ["train-toy", "more"], tmp_path / "out")
    assert len(first.utterances) == 3
    assert ids(second) == ["19-198-0005"]
    assert reasons(second) == {"19-198-0000": "duplicate id, also in train-toy"}
    first, second = prepare(corpus, ["more", "train-toy"], tmp_path / "out")
    assert reasons(second) == {"19-198-0000": "duplicate id, also in more"}


def test_id_in_an_evaluation_subset_too_stops(corpus, tmp_path, chapter_writer):
    chapter_writer(corpus / "LibriSpeech/test-toy", "84/121", {"84-121-0000": (0.5, "A")})
    with pytest.raises(CorpusError, match=r"utterance 84-121-0000 is in both dev-toy and test-toy; leave one"):
        prepare(corpus, ["dev-toy", "test-toy"], tmp_path / "out")


def test_training_subset_that_adds_nothing_stops(corpus, tmp_path, chapter_writer):
    chapter_writer(corpus / "LibriSpeech/copy", "19/198", {"19-198-0000": (0.5, "A")})
    with pytest.raises(CorpusError, match=r"every utterance of copy is in the subsets before it"):
        prepare(corpus, ["train-toy", "copy"], tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dev-clean", True),
        ("dev-2spk", True),
        ("test-other", True),
        ("an4-test", True),
        ("an4-dev", True),
        ("train-clean-5", False),
        ("machine-labelled", False),
        ("latest", False),
    ],
)
def test_evaluation_by_name(name, expected):
    assert is_evaluation(name) is expected
    assert is_evaluation(name, [name]) is True
    assert is_evaluation(name, []) is False


def test_no_subsets(corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"corpus.subsets is empty"):
        prepare(corpus, [], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"corpus.download=true needs names in corpus.subsets"):
        prepare(corpus, None, tmp_path / "out", fetch_missing=True)


def test_output_that_is_a_file(corpus, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(CorpusError, match=r"cannot write to .*out: File exists"):
        prepare(corpus, "dev-toy", tmp_path / "out")


# --- manifests


def test_manifests_load_and_audio_comes_back(corpus, tmp_path, chapter_writer):
    from lhotse import CutSet, RecordingSet, SupervisionSet

    chapter_writer(corpus / "LibriSpeech/train-toy", "30/1", {"30-1-0": (0.75, "Chapter 2.")})
    out = tmp_path / "out"
    prepare(corpus, ["train-toy", "dev-toy"], out)
    names = [
        f"{kind}_{s}.jsonl.gz" for kind in ("cuts", "recordings", "supervisions") for s in ("dev-toy", "train-toy")
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "summary.json"])
    cuts = CutSet.from_file(out / "cuts_train-toy.jsonl.gz")
    assert [cut.id for cut in cuts] == ["19-198-0000", "19-198-0001", "26-495-0000", "30-1-0"]
    by_id = {cut.id: cut for cut in cuts}
    cut = by_id["19-198-0000"]
    expected, _ = soundfile.read(corpus / "LibriSpeech/train-toy/19/198/19-198-0000.flac", dtype="float32")
    np.testing.assert_array_equal(cut.load_audio(), expected[None])
    assert (cut.duration, cut.sampling_rate, cut.num_samples) == (1.0, 16000, 16000)
    (supervision,) = cut.supervisions
    assert (supervision.text, supervision.speaker, supervision.custom) == ("HELLO WORLD", "19", None)
    (supervision,) = by_id["30-1-0"].supervisions
    assert supervision.text == "CHAPTER TWO"
    assert supervision.custom == {"original_text": "Chapter 2."}
    recordings = RecordingSet.from_file(out / "recordings_train-toy.jsonl.gz")
    supervisions = SupervisionSet.from_file(out / "supervisions_train-toy.jsonl.gz")
    assert sum(r.duration for r in recordings) == 3.75
    assert {s.recording_id for s in supervisions} == {r.id for r in recordings}
    assert all(Path(r.sources[0].source).is_absolute() for r in recordings)


def test_summary_and_a_second_run_with_the_same_bytes(corpus, tmp_path, monkeypatch):
    (corpus / "LibriSpeech/train-toy/19/198/19-198-0001.flac").unlink()
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    prepare("speech", None, "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    # A time of writing in the gzip header would make equal manifests differ.
    assert {content[4:8] for name, content in before.items() if name.endswith(".gz")} == {bytes(4)}
    summary = json.loads(before["summary.json"])
    assert summary == {
        "dev-toy": {
            "utterances": 1,
            "hours": 0.0006,
            "speakers": 1,
            "characters": 3,
            "evaluation": True,
            "dropped": [],
        },
        "train-toy": {
            "utterances": 2,
            "hours": 0.0007,
            "speakers": 2,
            "characters": 27,
            "evaluation": False,
            "dropped": [
                {
                    "id": "19-198-0001",
                    "reason": "audio is missing",
                    "path": str(corpus / "LibriSpeech/train-toy/19/198/19-198.trans.txt"),
                }
            ],
        },
    }
    prepare(corpus, ["train-toy"], out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "cuts_dev-toy.jsonl.gz").unlink()
    prepare(corpus, ["train-toy"], out)
    assert list(json.loads((out / "summary.json").read_text())) == ["train-toy"]
    (out / "summary.json").write_text("{")
    with pytest.raises(CorpusError, match=r"summary.json is not readable JSON; delete it"):
        prepare(corpus, ["train-toy"], out)


# --- download


@pytest.fixture
def archive(corpus, tmp_path, tar_writer) -> bytes:
    folder = corpus / "LibriSpeech"
    files = {f"LibriSpeech/{p.relative_to(folder)}": p.read_bytes() for p in sorted((folder / "dev-toy").rglob("*.*"))}
    return tar_writer(tmp_path / "made.tar.gz", {"LibriSpeech/README.TXT": b"read me", **files})


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(librispeech, "RETRY_WAIT", 0.0)


@pytest.mark.parametrize("root", ["data", "data/LibriSpeech"])
def test_download_unpacks_and_a_second_call_asks_for_nothing(tmp_path, server, archive, root):
    server.publish("dev-toy.tar.gz", archive)
    folder = download("dev-toy", tmp_path / root, server.url + "/")
    assert folder == tmp_path / "data/LibriSpeech/dev-toy"
    assert ids(scan(tmp_path / root, "dev-toy")) == ["84-121-0000"]
    assert (tmp_path / "data/LibriSpeech/README.TXT").read_bytes() == b"read me"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["LibriSpeech"]
    server.requests.clear()
    assert download("dev-toy", tmp_path / root, server.url) == folder
    assert server.requests == []


def test_download_resumes_a_partial_file(tmp_path, server, archive):
    server.publish("dev-toy.tar.gz", archive)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dev-toy.tar.gz.partial").write_bytes(archive[:1000])
    download("dev-toy", tmp_path / "data", server.url, keep_archive=True)
    assert server.requests == [("/md5sum.txt", None), ("/dev-toy.tar.gz", "bytes=1000-")]
    assert (tmp_path / "data/dev-toy.tar.gz").read_bytes() == archive


def test_download_starts_over_where_the_server_ignores_range(tmp_path, server, archive):
    server.publish("dev-toy.tar.gz", archive)
    server.ranges = False
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dev-toy.tar.gz.partial").write_bytes(archive[:1000])
    download("dev-toy", tmp_path / "data", server.url, keep_archive=True)
    assert (tmp_path / "data/dev-toy.tar.gz").read_bytes() == archive


@pytest.mark.parametrize("extra", [b"", b"too much"])
def test_download_with_a_partial_file_that_is_whole_or_too_long(tmp_path, server, archive, extra):
    server.publish("dev-toy.tar.gz", archive)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dev-toy.tar.gz.partial").write_bytes(archive + extra)
    download("dev-toy", tmp_path / "data", server.url)
    assert len(server.requests) == (3 if extra else 2)


def test_broken_connection_is_taken_up_again(tmp_path, server, archive):
    server.publish("dev-toy.tar.gz", archive)
    server.break_after = [1000, 500]
    download("dev-toy", tmp_path / "data", server.url)
    asked = [wanted for path, wanted in server.requests if path == "/dev-toy.tar.gz"]
    assert asked == [None, "bytes=1000-", "bytes=1500-"]


def test_connection_that_keeps_breaking_keeps_what_came(tmp_path, server, archive):
    server.publish("dev-toy.tar.gz", archive)
    server.break_after = [1000, 500, 200]
    message = rf"the connection broke after 1,700 of {len(archive):,} bytes; 1,700 bytes are kept, run again to go on"
    with pytest.raises(CorpusError, match=message):
        download("dev-toy", tmp_path / "data", server.url)
    assert (tmp_path / "data/dev-toy.tar.gz.partial").read_bytes() == archive[:1700]
    server.break_after = []
    download("dev-toy", tmp_path / "data", server.url)
    assert server.requests[-1] == ("/dev-toy.tar.gz", "bytes=1700-")


def test_wrong_checksum_names_the_file_and_removes_it(tmp_path, server, archive):
    server.publish("dev-toy.tar.gz", archive)
    server.files["/dev-toy.tar.gz"] = archive[:-1] + b"x"
    bad, good = (hashlib.md5(content).hexdigest() for content in (archive[:-1] + b"x", archive))
    message = rf"dev-toy.tar.gz from {server.url}/.*: MD5 is {bad}, expected {good}; the damaged file was removed"
    with pytest.raises(CorpusError, match=message):
        download("dev-toy", tmp_path / "data", server.url)
    assert list((tmp_path / "data").iterdir()) == []


def test_archive_put_there_by_hand_is_verified_and_used(tmp_path, server, archive):
    server.publish("dev-toy.tar.gz", archive)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dev-toy.tar.gz").write_bytes(b"bad")
    with pytest.raises(CorpusError, match=r"data/dev-toy.tar.gz: MD5 is \w+, expected \w+; delete the file"):
        download("dev-toy", tmp_path / "data", server.url)
    (tmp_path / "data/dev-toy.tar.gz").write_bytes(archive)
    download("dev-toy", tmp_path / "data", server.url)
    assert {path for path, _ in server.requests} == {"/md5sum.txt"}


def test_pinned_checksums_win_over_what_the_mirror_says(tmp_path, server, archive):
    server.publish("dev-clean.tar.gz", archive)
    with pytest.raises(CorpusError, match=r"expected 42e2234ba48799c1f50f24a7926300a1"):
        download("dev-clean", tmp_path / "data", server.url)
    assert librispeech.SUBSET_MD5.keys() == librispeech.SUBSET_URLS.keys()
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in librispeech.SUBSET_MD5.values())


def test_download_errors_name_the_address(tmp_path, server, archive):
    with pytest.raises(CorpusError, match=r"no download known for toy; known: dev-clean, dev-clean-2, dev-other"):
        download("toy", tmp_path / "data")
    with pytest.raises(
        CorpusError, match=rf"no checksum of toy.tar.gz: cannot read {server.url}/md5sum.txt \(HTTP 404"
    ):
        download("toy", tmp_path / "data", server.url)
    server.publish("dev-toy.tar.gz", archive)
    with pytest.raises(CorpusError, match=rf"no checksum of toy.tar.gz in {server.url}/md5sum.txt"):
        download("toy", tmp_path / "data", server.url)
    with pytest.raises(CorpusError, match=rf"cannot download {server.url}/dev-clean.tar.gz: HTTP 404 Not Found"):
        download("dev-clean", tmp_path / "data", server.url)
    with pytest.raises(CorpusError, match=r"cannot download http://127.0.0.1:9/.*: .*refused; check the connection"):
        download("dev-clean", tmp_path / "data", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"ftp://x/dev-clean.tar.gz is not an http"):
        download("dev-clean", tmp_path / "data", "ftp://x")


@pytest.mark.parametrize("python", ["3.11.3", "3.11.4"])
def test_archive_is_unpacked_safely(tmp_path, server, tar_writer, monkeypatch, python):
    if python == "3.11.3":  # which Debian 12 has
        for name in ("data_filter", "FilterError"):
            monkeypatch.delattr(tarfile, name, raising=False)
        extractall = tarfile.TarFile.extractall
        monkeypatch.setattr(tarfile.TarFile, "extractall", lambda tar, path: extractall(tar, path))
        server.publish("good.tar.gz", tar_writer(tmp_path / "made.tar.gz", {"LibriSpeech/good/a/b": b"x"}))
        assert (download("good", tmp_path / "good", server.url) / "a/b").read_bytes() == b"x"
    made = tar_writer(tmp_path / "made.tar.gz", {"LibriSpeech/toy/a": b"", "../escaped": b"x"})
    server.publish("toy.tar.gz", made)
    with pytest.raises(CorpusError, match=r"toy.tar.gz is not safe to unpack: .*escaped"):
        download("toy", tmp_path / "data/deep", server.url)
    assert not list(tmp_path.rglob("escaped"))
    assert [path.name for path in (tmp_path / "data/deep").iterdir()] == ["toy.tar.gz"]


def test_archive_that_is_cut_or_of_something_else(tmp_path, server, archive):
    server.publish("toy.tar.gz", archive)
    with pytest.raises(CorpusError, match=r"holds no folder LibriSpeech/toy; it is not the archive of toy"):
        download("toy", tmp_path / "data", server.url)
    server.publish("cut.tar.gz", archive[: len(archive) // 2])
    with pytest.raises(CorpusError, match=r"cut.tar.gz is damaged \(.*\); delete it and run again"):
        download("cut", tmp_path / "data", server.url)
    server.publish("html.tar.gz", b"<html>")
    with pytest.raises(CorpusError, match=r"html.tar.gz is damaged \(not a gzip file\)"):
        download("html", tmp_path / "data", server.url)


def test_prepare_downloads_what_is_missing(tmp_path, server, archive):
    server.publish("dev-toy.tar.gz", archive)
    (result,) = prepare(tmp_path / "new", ["dev-toy"], tmp_path / "out", fetch_missing=True, base_url=server.url)
    assert ids(result) == ["84-121-0000"]


# --- the command


def run_recipe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "recipes/librispeech/prepare.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_command_prints_the_table_and_names_what_was_dropped(corpus, tmp_path):
    (corpus / "LibriSpeech/train-toy/19/198/19-198-0001.flac").unlink()
    done = run_recipe(tmp_path, "corpus.root=speech", "corpus.subsets=[train-toy,dev-toy]", "output=data/mini")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [re.findall(r"[\w.-]+", line) for line in done.stdout.splitlines() if line.startswith("│")]
    assert rows == [
        ["train-toy", "2", "0.00", "2", "27", "1"],
        ["dev-toy", "1", "0.00", "1", "3", "0"],
        ["total", "3", "0.00", "3", "30", "1"],
    ]
    path = corpus / "LibriSpeech/train-toy/19/198/19-198.trans.txt"
    assert "train-toy: dropped 1 x audio is missing\n" in done.stdout
    assert f"  19-198-0001: audio is missing ({path})\n" in done.stdout
    with gzip.open(tmp_path / "data/mini/cuts_train-toy.jsonl.gz", "rt") as file:
        assert [json.loads(line)["id"] for line in file] == ["19-198-0000", "26-495-0000"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "speech"]  # hydra leaves nothing behind


def test_command_ends_with_one_line_and_code_2(corpus, tmp_path):
    done = run_recipe(tmp_path, "corpus.root=speech", "corpus.subsets=[nope]", "output=out")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (f"error: no subset nope in {corpus / 'LibriSpeech'}; found there: dev-toy, train-toy\n")


def test_many_dropped_are_cut_short_on_the_screen(capsys, tmp_path):
    dropped = [Dropped(f"[b]{i:03}", "audio is missing", Path("x")) for i in range(25)]
    librispeech.print_summary([librispeech.SubsetScan("toy", [], dropped)], tmp_path)
    out = capsys.readouterr().out
    assert "toy: dropped 25 x audio is missing\n" in out
    assert "  [b]019: audio is missing (x)\n" in out
    assert "[b]020" not in out
    assert f"... and 5 more, all in {tmp_path / 'summary.json'}\n" in out
