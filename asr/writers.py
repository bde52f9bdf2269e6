"""Results of recognition, and the files they can be written to: txt, json, jsonl, srt, vtt, ctm, trn.

    write_file(transcript, "talk.srt")               # the format is the suffix
    get_writer("jsonl").write(transcript, stdout)    # jsonl, ctm and trn hold any number of transcripts

Times are seconds from the start of the audio, confidences lie in 0..1.
"""

import json
import math
import os
import re
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

from asr.errors import AsrError, ConfigError

__all__ = [
    "WRITERS",
    "Alternative",
    "Segment",
    "Transcript",
    "Word",
    "Writer",
    "as_dict",
    "file_id",
    "file_ids",
    "get_writer",
    "in_place_of",
    "make_writable",
    "printable",
    "segment_as_dict",
    "write_atomically",
    "write_file",
]

LONGEST_NAME = 255  # bytes that file systems allow the name of a file

MAX_LINE = 42  # characters; what television subtitles and their players count on
MAX_LINES = 2
MIN_CUE, MAX_CUE = 0.8, 7.0  # s; shorter cannot be read, longer is read twice
LONG_PAUSE = 1.0  # s; a cue does not go on across one


@dataclass(frozen=True)
class Word:
    word: str
    start: float  # s
    end: float  # s
    confidence: float | None = None  # 0..1


@dataclass(frozen=True)
class Alternative:
    """One of the n best readings of a segment."""

    text: str
    score: float  # only to be compared within a segment


@dataclass(frozen=True)
class Segment:
    """A stretch of speech."""

    start: float  # s
    end: float  # s
    text: str
    confidence: float | None = None  # 0..1
    words: tuple[Word, ...] = ()  # empty: their times are not known
    nbest: tuple[Alternative, ...] = ()  # the best first; empty: not asked for


@dataclass(frozen=True)
class Transcript:
    """What was recognised in one audio source."""

    audio: str  # path or name of the source
    duration: float  # s
    text: str
    segments: tuple[Segment, ...] = ()
    confidence: float | None = None  # 0..1
    model: str | None = None
    real_time_factor: float | None = None  # seconds of computing per second of audio
    id: str | None = None  # in ctm and trn; None: the `file_id` of `audio`


def as_dict(transcript: Transcript) -> dict[str, Any]:
    """The JSON form; times are rounded to 1 ms, confidences and the real-time factor to 4 digits."""
    return {
        "audio": transcript.audio,
        "duration": _number(transcript.duration, 3),
        "text": transcript.text,
        "confidence": _number(transcript.confidence, 4),
        "segments": [segment_as_dict(segment) for segment in transcript.segments],
        "model": transcript.model,
        "real_time_factor": _number(transcript.real_time_factor, 4),
    }


def segment_as_dict(segment: Segment) -> dict[str, Any]:
    """The JSON form of a segment."""
    found = {
        **_times(segment),
        "text": segment.text,
        "confidence": _number(segment.confidence, 4),
        "words": [
            {"word": word.word, **_times(word), "confidence": _number(word.confidence, 4)} for word in segment.words
        ],
    }
    if segment.nbest:
        found["nbest"] = [{"text": n.text, "score": _number(n.score, 4)} for n in segment.nbest]
    return found


def _number(value: float | None, digits: int) -> float | None:
    return round(value, digits) if value is not None and math.isfinite(value) else None  # JSON knows no NaN


def _times(part: Word | Segment) -> dict[str, Any]:
    return {"start": _number(part.start, 3), "end": _number(part.end, 3)}


def printable(path: str | os.PathLike[str]) -> str:
    """The path as text that can be written anywhere, though its bytes need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")


def file_id(audio: str) -> str:
    """The name of `audio` as one token: no folder, no suffix, `_` for white space and parentheses."""
    return _token(Path(audio).stem)


def _token(name: str) -> str:
    return re.sub(r"[\s()]+", "_", name) or "audio"


def file_ids(audios: Sequence[str]) -> list[str]:
    """`file_id` of each or, for those that share one, their folders with it; a number, too, where these are shared."""
    ids = [file_id(audio) for audio in audios]
    times = Counter(ids)
    found: dict[str, None] = {}
    for plain, audio in zip(ids, audios, strict=True):
        full = plain if times[plain] == 1 else _token("_".join(Path(audio).with_suffix("").parts).lstrip("/_"))
        name, number = full, 1
        while name in found or (name != plain and name in times):
            number += 1
            name = f"{full}_{number}"
        found[name] = None
    return list(found)


# --- words and their times ---


def timed_words(segment: Segment) -> list[Word]:
    """The words of a segment in order of time; where it has no word times, shared out by characters."""
    if segment.words:
        return sorted((word for word in segment.words if word.word.strip()), key=lambda word: word.start)
    texts = segment.text.split()
    total = sum(len(text) + 1 for text in texts)
    words, passed = [], 0
    for text in texts:
        start, end = (_between(segment.start, segment.end, n / total) for n in (passed, passed + len(text) + 1))
        words.append(Word(text, start, end, segment.confidence))
        passed += len(text) + 1
    return words


def _between(start: float, end: float, fraction: float) -> float:
    return start + (max(end, start) - start) * fraction


# --- subtitles ---


@dataclass(frozen=True)
class Cue:
    start: float  # s
    end: float  # s
    lines: tuple[str, ...]


def cues(transcript: Transcript) -> list[Cue]:
    """Subtitles in order: at most two lines of 42 characters, none overlapping, none needlessly under 0.8 s."""
    groups: list[list[Word]] = []
    for segment in transcript.segments or (Segment(0.0, transcript.duration, transcript.text),):
        words = [part for word in timed_words(segment) for part in _split_long(word)]
        groups += _grouped(words)
    groups = _lengthened(_merged(groups, transcript.duration))
    spans = _readable([(group[0].start, group[-1].end) for group in groups], transcript.duration)
    return [Cue(*span, _lines(group)) for span, group in zip(spans, groups, strict=True)]


def _split_long(word: Word) -> list[Word]:
    """A word longer than a line, in pieces that fit; spaces inside a word become `_`."""
    text = "_".join(word.word.split())
    if len(text) <= MAX_LINE:
        return [replace(word, word=text)]
    edges = [*range(0, len(text), MAX_LINE), len(text)]
    return [
        replace(
            word,
            word=text[first:last],
            start=_between(word.start, word.end, first / len(text)),
            end=_between(word.start, word.end, last / len(text)),
        )
        for first, last in pairwise(edges)
    ]


def _grouped(words: list[Word]) -> list[list[Word]]:
    groups: list[list[Word]] = []
    for word in words:
        if groups and _joinable(groups[-1], [word]):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def _length(group: list[Word]) -> float:
    return group[-1].end - group[0].start


def _joinable(before: list[Word], after: list[Word]) -> bool:
    both = [*before, *after]
    near = after[0].start - before[-1].end < LONG_PAUSE
    return near and _length(both) <= MAX_CUE and len(_lines(both)) <= MAX_LINES


def _merged(groups: list[list[Word]], duration: float) -> list[list[Word]]:
    """Join a group that is over too soon, with no silence around it to grow into, to the one after or before it."""
    done: list[list[Word]] = []
    waiting = groups[::-1]
    while waiting:
        group = waiting.pop()
        room = (waiting[-1][0].start if waiting else duration) - (done[-1][-1].end if done else 0.0)
        if max(room, _length(group)) < MIN_CUE:
            if waiting and _joinable(group, waiting[-1]):
                waiting[-1] = [*group, *waiting[-1]]
                continue
            if done and _joinable(done[-1], group):
                done[-1] = [*done[-1], *group]
                continue
        done.append(group)
    return done


def _lengthened(groups: list[list[Word]]) -> list[list[Word]]:
    """Give a group that is over too soon words of the one before, as long as that stays long enough."""
    for before, group in pairwise(groups):
        while (
            _length(group) < MIN_CUE
            and len(before) > 1
            and _length(before[:-1]) >= MIN_CUE
            and _joinable(before[-1:], group)
        ):
            group.insert(0, before.pop())
    return groups


def _lines(words: list[Word]) -> tuple[str, ...]:
    """Lines of at most MAX_LINE characters; two of them as equal in length as can be."""
    texts = [word.word for word in words]
    whole = " ".join(texts)
    if len(whole) <= MAX_LINE:
        return (whole,)
    halves = [(" ".join(texts[:i]), " ".join(texts[i:])) for i in range(1, len(texts))]
    fitting = [half for half in halves if max(map(len, half)) <= MAX_LINE]
    if fitting:
        return min(fitting, key=lambda half: max(map(len, half)))
    return (whole, "", "")  # does not fit: one line too many


def _readable(spans: list[tuple[float, float]], duration: float) -> list[tuple[float, float]]:
    """Spans in order and apart, in whole ms; short ones grow into the silence after them, then before them."""
    starts: list[int] = []
    ends: list[int] = []
    for start, end in spans:
        start = max(round(1000 * start), ends[-1] if ends else 0)
        starts.append(start)
        ends.append(max(round(1000 * end), start + 1))  # a cue of no length is an error in VTT
    limit = max(round(1000 * duration), ends[-1] if ends else 0)
    for i in range(len(spans)):
        after = starts[i + 1] if i + 1 < len(spans) else limit
        before = ends[i - 1] if i else 0
        ends[i] = max(ends[i], min(after, starts[i] + round(1000 * MIN_CUE)))
        starts[i] = min(starts[i], max(before, ends[i] - round(1000 * MIN_CUE)))
    return [(start / 1000, end / 1000) for start, end in zip(starts, ends, strict=True)]


def _clock(seconds: float, point: str) -> str:
    total = round(1000 * seconds)
    return f"{total // 3_600_000:02}:{total // 60_000 % 60:02}:{total // 1000 % 60:02}{point}{total % 1000:03}"


# --- formats ---


class Writer(ABC):
    """One output format."""

    extension: str  # without the dot
    appendable = False  # whether several transcripts written one after the other make a file of the format

    @abstractmethod
    def write(self, transcript: Transcript, file: TextIO) -> None:
        """Write all of `transcript` to `file`, opened as text."""


class TxtWriter(Writer):
    """The text and a line break."""

    extension = "txt"
    appendable = True

    def write(self, transcript: Transcript, file: TextIO) -> None:
        file.write(transcript.text + "\n")


class JsonWriter(Writer):
    """Everything, indented."""

    extension = "json"

    def write(self, transcript: Transcript, file: TextIO) -> None:
        file.write(json.dumps(as_dict(transcript), ensure_ascii=False, indent=2, allow_nan=False) + "\n")


class JsonlWriter(Writer):
    """Everything, on one line."""

    extension = "jsonl"
    appendable = True

    def write(self, transcript: Transcript, file: TextIO) -> None:
        file.write(json.dumps(as_dict(transcript), ensure_ascii=False, allow_nan=False) + "\n")


class SrtWriter(Writer):
    """SubRip subtitles."""

    extension = "srt"

    def write(self, transcript: Transcript, file: TextIO) -> None:
        for number, cue in enumerate(cues(transcript), start=1):
            text = "\n".join(cue.lines).replace("-->", "->")  # the arrow would read as a time line
            file.write(f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{text}\n\n")


class VttWriter(Writer):
    """WebVTT subtitles."""

    extension = "vtt"

    def write(self, transcript: Transcript, file: TextIO) -> None:
        file.write("WEBVTT\n\n")
        for cue in cues(transcript):
            text = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            file.write(f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{text}\n\n")


class CtmWriter(Writer):
    """NIST CTM: `FILE-ID 1 START DURATION WORD CONFIDENCE`; a confidence that is not known is left out."""

    extension = "ctm"
    appendable = True

    def write(self, transcript: Transcript, file: TextIO) -> None:
        name = transcript.id or file_id(transcript.audio)
        for segment in transcript.segments or (Segment(0.0, transcript.duration, transcript.text),):
            for word in timed_words(segment):
                start = round(word.start, 3)  # start and duration make the end as it is rounded, not one beyond it
                fields = [name, "1", f"{start:.3f}", f"{max(round(word.end, 3) - start, 0):.3f}"]
                fields.append("_".join(word.word.split()))
                if word.confidence is not None and math.isfinite(word.confidence):
                    fields.append(f"{word.confidence:.4f}")
                file.write(" ".join(fields) + "\n")


class TrnWriter(Writer):
    """NIST TRN: `TEXT (FILE-ID)`."""

    extension = "trn"
    appendable = True

    def write(self, transcript: Transcript, file: TextIO) -> None:
        file.write(" ".join([*transcript.text.split(), f"({transcript.id or file_id(transcript.audio)})"]) + "\n")


WRITERS: dict[str, type[Writer]] = {
    writer.extension: writer
    for writer in (TxtWriter, JsonWriter, JsonlWriter, SrtWriter, VttWriter, CtmWriter, TrnWriter)
}


def get_writer(name: str) -> Writer:
    """The writer of a format, by its name or suffix: "srt", ".SRT".

    Raises:
        ConfigError: there is no such format.
    """
    key = name.lower().removeprefix(".")
    if key not in WRITERS:
        raise ConfigError(f"no output format {name!r}; there are {', '.join(WRITERS)}")
    return WRITERS[key]()


def make_writable(folder: Path, name: str) -> None:
    """Make a folder that the setting `name` gave.

    Raises:
        ConfigError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write there ({error.strerror}); choose another {name}=") from error


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """Where to write what takes the place of `path` when the block ends; it leaves nothing when that fails.

    Raises:
        AsrError: the file cannot be written.
    """
    if not path.name:
        raise AsrError(f"{path}: cannot be written (a folder); name a file")
    # A pipe or a device cannot be replaced, nor what the shell has opened.
    opened = path.is_relative_to("/dev/fd") or path in (Path("/dev/stdout"), Path("/dev/stderr"))
    if opened or (os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))):
        try:
            yield path
        except OSError as error:
            raise AsrError(f"{path}: cannot be written ({error.strerror or error})") from error
        return
    target = Path(os.path.realpath(path))  # a link stays one
    name = target.name + ".partial"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f"{zlib.crc32(os.fsencode(target.name)):08x}.partial"
    partial = target.with_name(name)
    try:
        yield partial
        os.replace(partial, target)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise AsrError(f"{path}: cannot be written ({error.strerror or error})") from error
        raise


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A text file (UTF-8) that takes the place of `path` when the block ends, and leaves nothing when it fails.

    Raises:
        AsrError: the file cannot be written.
    """
    with in_place_of(Path(path)) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        yield file


def write_file(transcript: Transcript, path: str | os.PathLike[str], format: str | None = None) -> Path:
    """Write `transcript` to `path` so that the file is there whole or not at all. `format`: by default the suffix.

    Raises:
        ConfigError: there is no such format.
        AsrError: the file cannot be written.
    """
    path = Path(path)
    writer = get_writer(path.suffix if format is None else format)
    with write_atomically(path) as file:
        writer.write(transcript, file)
    return path
