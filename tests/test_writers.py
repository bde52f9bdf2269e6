import io
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from asr.errors import AsrError, ConfigError
from asr.scoring import read_transcripts
from asr.writers import (
    WRITERS,
    Segment,
    Transcript,
    Word,
    cues,
    file_id,
    file_ids,
    get_writer,
    write_atomically,
    write_file,
)


def spoken(text, start=0.0, step=0.4, confidence=0.9):
    """A segment with a word every `step` seconds, each 0.1 s shorter than that."""
    words = tuple(
        Word(word, round(start + i * step, 3), round(start + (i + 1) * step - 0.1, 3), confidence)
        for i, word in enumerate(text.split())
    )
    return Segment(words[0].start, words[-1].end, text, confidence, words)


def transcript(*segments, audio="talks/my talk.flac", duration=None):
    duration = segments[-1].end if duration is None else duration
    return Transcript(audio, duration, " ".join(segment.text for segment in segments), segments)


def written(format, *transcripts):
    file = io.StringIO()
    for one in transcripts:
        get_writer(format).write(one, file)
    return file.getvalue()


def seconds(hours, minutes, secs, millis):
    assert int(minutes) < 60
    assert int(secs) < 60
    return 3600 * int(hours) + 60 * int(minutes) + int(secs) + int(millis) / 1000


def check_cues(parsed):
    last = 0.0
    for start, end, lines in parsed:
        assert last <= start < end
        assert 1 <= len(lines) <= 2
        assert all(0 < len(line) <= 42 and line == line.strip() for line in lines)
        last = end
    return parsed


def parse_srt(text):
    """[(start, end, lines)]; strict: numbers from 1, comma, blank line after every cue."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    parsed = []
    for number, block in enumerate(blocks, start=1):
        head, times, *lines = block.split("\n")
        assert head == str(number)
        match = re.fullmatch(r"(\d\d+):(\d\d):(\d\d),(\d{3}) --> (\d\d+):(\d\d):(\d\d),(\d{3})", times)
        assert match
        parsed.append((seconds(*match.groups()[:4]), seconds(*match.groups()[4:]), lines))
    return check_cues(parsed)


def parse_vtt(text):
    """[(start, end, lines)]; strict: header, dot, no bare & or <, nothing that looks like an arrow in text."""
    head, *blocks = text.split("\n\n")
    assert head == "WEBVTT"
    assert blocks.pop() == ""
    parsed = []
    for block in blocks:
        times, *lines = block.split("\n")
        match = re.fullmatch(r"(\d\d+):(\d\d):(\d\d)\.(\d{3}) --> (\d\d+):(\d\d):(\d\d)\.(\d{3})", times)
        assert match
        for line in lines:
            assert not re.search(r"[<>]|&(?!(amp|lt|gt);)", line)
        plain = [line.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for line in lines]
        parsed.append((seconds(*match.groups()[:4]), seconds(*match.groups()[4:]), plain))
    return check_cues(parsed)


LONG = (
    "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG AND THEN GOES ON TO TELL A VERY LONG STORY ABOUT IT "
    "TO ANYBODY WHO WILL LISTEN FOR AS LONG AS IT TAKES AND THAT IS THE END"
)


@pytest.fixture
def talk():
    return Transcript(
        audio="talks/my talk.flac",
        duration=3.5,
        text="HELLO THERE WORLD",
        segments=(
            Segment(0.5, 1.5, "HELLO THERE", 0.75, (Word("HELLO", 0.5, 0.9, 0.8), Word("THERE", 1.0, 1.5, 0.7))),
            Segment(2.0, 3.0, "WORLD"),
        ),
        confidence=0.7654321,
        model="small",
        real_time_factor=0.05,
    )


# --- plain formats ---


def test_txt(talk):
    assert written("txt", talk) == "HELLO THERE WORLD\n"


def test_json(talk):
    expected = {
        "audio": "talks/my talk.flac",
        "duration": 3.5,
        "text": "HELLO THERE WORLD",
        "confidence": 0.7654,
        "segments": [
            {
                "start": 0.5,
                "end": 1.5,
                "text": "HELLO THERE",
                "confidence": 0.75,
                "words": [
                    {"word": "HELLO", "start": 0.5, "end": 0.9, "confidence": 0.8},
                    {"word": "THERE", "start": 1.0, "end": 1.5, "confidence": 0.7},
                ],
            },
            {"start": 2.0, "end": 3.0, "text": "WORLD", "confidence": None, "words": []},
        ],
        "model": "small",
        "real_time_factor": 0.05,
    }
    assert json.loads(written("json", talk)) == expected
    lines = written("jsonl", talk, talk).splitlines()
    assert [json.loads(line) for line in lines] == [expected, expected]
    assert list(json.loads(lines[0])) == list(expected)


def test_json_without_nan():
    text = written("json", Transcript("é.wav", 1.0, "", confidence=float("nan")))
    assert json.loads(text, parse_constant=pytest.fail)["confidence"] is None
    assert '"é.wav"' in text


def test_ctm(talk):
    assert written("ctm", talk).splitlines() == [
        "my_talk 1 0.500 0.400 HELLO 0.8000",
        "my_talk 1 1.000 0.500 THERE 0.7000",
        "my_talk 1 2.000 1.000 WORLD",
    ]


def test_ctm_shares_time_out_by_characters():
    lines = written("ctm", transcript(Segment(1.0, 3.0, "A BCDE FG", 0.5))).splitlines()
    # 2 + 5 + 3 characters with the space after each
    assert lines == [
        "my_talk 1 1.000 0.400 A 0.5000",
        "my_talk 1 1.400 1.000 BCDE 0.5000",
        "my_talk 1 2.400 0.600 FG 0.5000",
    ]


def test_ctm_of_words_that_follow_each_other_do_not_overlap_by_rounding():
    words = (Word("A", 0.0006, 1.0014, 0.5), Word("B", 1.0014, 2.0, 0.5))
    lines = written("ctm", transcript(Segment(0.0, 2.0, "A B", words=words))).splitlines()
    (start, duration), (then, _) = (map(float, line.split()[2:4]) for line in lines)
    assert start + duration <= then


def test_ctm_in_order_of_time():
    words = (Word("B", 1.0, 0.9), Word("A", 0.5, 0.6))
    lines = written("ctm", transcript(Segment(0.5, 1.0, "A B", words=words))).splitlines()
    assert lines == ["my_talk 1 0.500 0.100 A", "my_talk 1 1.000 0.000 B"]


def test_trn(tmp_path, talk):
    empty = Transcript("/x/silent.wav", 1.0, "")
    text = written("trn", talk, empty)
    assert text == "HELLO THERE WORLD (my_talk)\n(silent)\n"
    (tmp_path / "hyp.trn").write_text(text)
    assert read_transcripts(tmp_path / "hyp.trn") == {"my_talk": "HELLO THERE WORLD", "silent": ""}


@pytest.mark.parametrize(
    ("audio", "name"),
    [("a/b/c.wav", "c"), ("my  talk (1).x.mp3", "my_talk_1_.x"), ("", "audio"), ("audio bytes", "audio_bytes")],
)
def test_file_id(audio, name):
    assert file_id(audio) == name


def test_files_of_one_name_have_their_folders_in_their_ids():
    assert file_ids(["a/1.flac", "b/1.flac", "/c d/1.wav", "2.wav"]) == ["a_1", "b_1", "c_d_1", "2"]
    assert file_ids(["x/a.flac", "x/a.wav", "x/a.mp3"]) == ["x_a", "x_a_2", "x_a_3"]
    assert file_ids(["x/a.flac", "y/a.wav", "x_a.wav"]) == ["x_a_2", "y_a", "x_a"]
    assert len(set(file_ids(["a b.wav", "a_b.wav", "a b_2.wav", "(a_b).wav"]))) == 4


def test_a_link_stays_one_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/a.txt").write_text("before")
    (tmp_path / "a.txt").symlink_to(tmp_path / "there/a.txt")
    with write_atomically(tmp_path / "a.txt") as file:
        file.write("after")
    assert (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "there/a.txt").read_text() == "after"
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        with write_atomically(tmp_path / "pipe") as file:
            file.write("through")
        assert reader.communicate(timeout=20)[0] == "through"
    descriptor, end = os.pipe()
    with write_atomically(f"/dev/fd/{end}") as file:
        file.write("through")
    os.close(end)
    with open(descriptor) as pipe:
        assert pipe.read() == "through"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "pipe", "there"]


def test_a_name_as_long_as_can_be(tmp_path):
    path = tmp_path / ("語" * 83 + ".txt")
    with write_atomically(path) as file:
        file.write("x")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(AsrError, match=r"cannot be written \(File name too long\)"):
        write_file(Transcript("a", 1.0, ""), tmp_path / ("n" * 300 + ".txt"))


# --- subtitles ---


def test_subtitles_by_hand(talk):
    assert written("srt", talk) == (
        "1\n00:00:00,500 --> 00:00:01,500\nHELLO THERE\n\n2\n00:00:02,000 --> 00:00:03,000\nWORLD\n\n"
    )
    assert written("vtt", talk) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.500\nHELLO THERE\n\n00:00:02.000 --> 00:00:03.000\nWORLD\n\n"
    )


@pytest.mark.parametrize("segment", [spoken(LONG), Segment(0.0, 14.0, LONG)], ids=["words", "no words"])
def test_long_text_is_broken_at_words(segment):
    parsed = parse_srt(written("srt", transcript(segment)))
    assert parsed == parse_vtt(written("vtt", transcript(segment)))
    assert " ".join(" ".join(lines) for _, _, lines in parsed) == LONG
    assert len(parsed) > 1
    assert all(0.8 <= end - start <= 7.0 for start, end, _ in parsed)


def test_cue_times_are_word_times():
    segment = spoken(LONG)
    starts = {word.start: word.word for word in segment.words}
    ends = {word.end: word.word for word in segment.words}
    for start, end, lines in parse_srt(written("srt", transcript(segment))):
        assert starts[start] == lines[0].split()[0]
        assert ends[end] == lines[-1].split()[-1]


def test_lines_are_balanced():
    (cue,) = cues(transcript(Segment(0.0, 4.0, "A " * 25 + "B")))
    assert len(cue.lines) == 2
    assert abs(len(cue.lines[0]) - len(cue.lines[1])) <= 2


def test_long_pause_starts_a_cue():
    words = (Word("A", 0.0, 1.0), Word("B", 1.5, 3.0), Word("C", 4.5, 5.5))
    parsed = parse_srt(written("srt", transcript(Segment(0.0, 5.5, "A B C", words=words))))
    assert parsed == [(0.0, 3.0, ["A B"]), (4.5, 5.5, ["C"])]


def test_short_cue_grows_into_silence():
    first, last = Segment(1.0, 1.2, "YES"), Segment(4.8, 5.0, "NO")
    parsed = parse_vtt(written("vtt", transcript(first, last, duration=5.0)))
    assert parsed == [(1.0, 1.8, ["YES"]), (4.2, 5.0, ["NO"])]


def test_short_cue_without_silence_is_joined():
    parsed = parse_srt(written("srt", transcript(Segment(0.0, 0.3, "WELL"), Segment(0.35, 2.0, "YES INDEED"))))
    assert parsed == [(0.0, 2.0, ["WELL YES INDEED"])]
    parsed = parse_srt(written("srt", transcript(Segment(0.0, 2.0, "YES INDEED"), Segment(2.05, 2.2, "SO"))))
    assert parsed == [(0.0, 2.2, ["YES INDEED SO"])]


def test_last_word_is_not_left_alone():
    text = " ".join(["SEVENTH"] * 11)  # ten fill two lines
    segment = spoken(text, step=0.5)
    parsed = parse_srt(written("srt", transcript(segment)))
    assert len(parsed) == 2
    assert all(end - start >= 0.8 for start, end, _ in parsed)


def test_what_cannot_be_helped_is_still_valid():
    parsed = parse_srt(written("srt", transcript(Segment(0.0, 0.3, "HI"))))
    assert parsed == [(0.0, 0.3, ["HI"])]
    parsed = parse_srt(written("srt", transcript(Segment(2.0, 2.0, LONG), duration=2.0)))
    assert " ".join(" ".join(lines) for _, _, lines in parsed) == LONG


def test_overlapping_times_are_set_apart():
    parsed = parse_srt(written("srt", transcript(Segment(0.0, 3.0, "A B"), Segment(2.0, 4.0, "C D"))))
    assert parsed == [(0.0, 3.0, ["A B"]), (3.0, 4.0, ["C D"])]


def test_word_longer_than_a_line():
    parsed = parse_srt(written("srt", transcript(Segment(0.0, 9.0, "A " + "X" * 100 + " B"))))
    assert "".join("".join(lines) for _, _, lines in parsed).replace(" ", "") == "A" + "X" * 100 + "B"


def test_markup_is_harmless():
    segment = Segment(0.0, 3.0, "A --> B <i> & C")
    assert parse_vtt(written("vtt", transcript(segment))) == [(0.0, 3.0, ["A --> B <i> & C"])]
    assert parse_srt(written("srt", transcript(segment))) == [(0.0, 3.0, ["A -> B <i> & C"])]


def test_hours():
    parsed = parse_srt(written("srt", transcript(Segment(3 * 3600 + 25 * 60 + 45.678, 12_347.9999, "LATE"))))
    assert parsed == [(12_345.678, 12_348.0, ["LATE"])]


def test_nothing_said():
    empty = Transcript("a.wav", 2.0, "")
    assert written("srt", empty) == ""
    assert parse_vtt(written("vtt", empty)) == []
    assert written("ctm", empty) == ""
    assert written("txt", empty) == "\n"


def test_text_without_segments():
    whole = Transcript("a.wav", 2.0, "HELLO")
    assert parse_srt(written("srt", whole)) == [(0.0, 2.0, ["HELLO"])]
    assert written("ctm", whole) == "a 1 0.000 2.000 HELLO\n"


# --- files ---


def test_writers_go_by_their_extension():
    assert list(WRITERS) == ["txt", "json", "jsonl", "srt", "vtt", "ctm", "trn"]
    for name, writer in WRITERS.items():
        assert writer.extension == name
        assert type(get_writer(f".{name.upper()}")) is writer


@pytest.mark.parametrize("name", ["docx", ""])
def test_unknown_format(name):
    with pytest.raises(ConfigError) as error:
        get_writer(name)
    assert str(error.value) == f"no output format '{name}'; there are txt, json, jsonl, srt, vtt, ctm, trn"


def test_write_file(tmp_path, talk):
    path = write_file(talk, tmp_path / "talk.vtt")
    assert path.read_text(encoding="utf-8") == written("vtt", talk)
    write_file(talk, str(path), "txt")
    assert path.read_text() == "HELLO THERE WORLD\n"
    assert [p.name for p in tmp_path.iterdir()] == ["talk.vtt"]


def test_write_file_that_fails_leaves_the_old_one(tmp_path, talk, monkeypatch):
    path = write_file(talk, tmp_path / "talk.txt")

    def fail(self, transcript, file):
        file.write("HALF")
        raise RuntimeError("stop")

    monkeypatch.setattr(WRITERS["txt"], "write", fail)
    with pytest.raises(RuntimeError, match="stop"):
        write_file(talk, path)
    assert path.read_text() == "HELLO THERE WORLD\n"
    assert [p.name for p in tmp_path.iterdir()] == ["talk.txt"]


def test_write_file_into_a_missing_folder(tmp_path, talk):
    path = Path(tmp_path / "none" / "talk.txt")
    with pytest.raises(AsrError) as error:
        write_file(talk, path)
    assert str(error.value) == f"{path}: cannot be written (No such file or directory)"


@pytest.mark.parametrize("path", [".", ""])
def test_write_file_without_a_name(talk, path):
    with pytest.raises(AsrError, match=r"^\.: cannot be written \(a folder\); name a file$"):
        write_file(talk, path, "txt")
