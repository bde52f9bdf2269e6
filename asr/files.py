"""Which audio to read and which files to write: what people name on the command line."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from asr.audio import audio_below
from asr.errors import AudioError, ConfigError
from asr.writers import get_writer, printable

__all__ = ["STDIN", "AudioFile", "find_audio", "open_audio", "output_paths", "parse_formats"]

STDIN = Path("-")


@dataclass(frozen=True)
class AudioFile:
    """An audio file that was named, or found in a folder that was."""

    path: Path  # or STDIN
    below: Path = Path()  # its folder, seen from the one that was named

    @property
    def name(self) -> str:
        """What messages and results call it."""
        return "stdin" if self.path == STDIN else printable(self.path)


def find_audio(named: Iterable[Path], recursive: bool = False) -> tuple[list[AudioFile], list[AudioError]]:
    """The files in order, and what is wrong with folders that hold none or cannot be read.

    A folder stands for the audio files in it, or with `recursive` also for those further down.

    Raises:
        ConfigError: standard input is named twice.
    """
    files: list[AudioFile] = []
    errors: list[AudioError] = []
    for path in named:
        if path == STDIN or not os.path.isdir(path):  # unlike Path.is_dir, never raises
            files.append(AudioFile(path))
            continue
        unread: list[OSError] = []
        inside = audio_below(path, recursive, unread.append)
        files += [AudioFile(p, p.parent.relative_to(path)) for p in inside]
        errors += [AudioError(f"{error.filename}: cannot be read ({error.strerror})") for error in unread]
        if not inside and not unread:
            hint = "" if recursive else "; try --recursive"
            errors.append(AudioError(f"{path}: no audio files in this folder{hint}"))
    if sum(file.path == STDIN for file in files) > 1:
        raise ConfigError("-: standard input can be read once only")
    return files, errors


def open_audio(file: AudioFile) -> Path | BinaryIO:
    """What to read: the path, or standard input, put aside on disk so that it need not fit into memory.

    Raises:
        AudioError: standard input cannot be read or put aside.
    """
    if file.path != STDIN:
        return file.path
    if sys.stdin is None:
        raise AudioError("stdin: cannot be read (it is closed)")
    try:
        spool = tempfile.TemporaryFile(prefix="asr-stdin-")  # noqa: SIM115 - is gone when nobody reads it any more
        shutil.copyfileobj(sys.stdin.buffer, spool)
    except OSError as error:
        raise AudioError(f"stdin: cannot be read ({error.strerror or error})") from error
    return spool


def parse_formats(formats: str) -> list[str]:
    """ "txt,srt" -> ["txt", "srt"].

    Raises:
        ConfigError: there is no such format.
    """
    names = list(dict.fromkeys(name.strip() for name in formats.split(",") if name.strip()))
    return list(dict.fromkeys(get_writer(name).extension for name in names or [formats]))


def output_paths(files: Sequence[AudioFile], folder: Path) -> list[Path]:
    """`folder/NAME` without a suffix for each file, NAME being the file's own; those found in folders keep theirs.

    The folder is made, so that it is known before any work is done whether it can be written.

    Raises:
        ConfigError: the folder cannot be written, or a file is named twice.
    """
    stems = [file.below / ("stdin" if file.path == STDIN else file.path.stem) for file in files]
    times = Counter(stems)
    taken: dict[Path, AudioFile] = {}
    for stem, file in zip(stems, files, strict=True):
        # a.wav and a.mp3, or x/a.wav and y/a.wav, must not overwrite each other, nor x_y/a.wav and x/y/a.wav.
        full = stem if times[stem] == 1 else stem.parent / "_".join(file.path.parts).replace("/", "")
        name, number = full, 1
        while name in taken:
            if taken[name].path == file.path:
                raise ConfigError(f"{file.name}: named more than once; name each file once")
            number += 1
            name = full.with_name(f"{full.name}_{number}")
        taken[name] = file
    outputs = [folder / name for name in taken]
    for place in dict.fromkeys([folder, *(output.parent for output in outputs)]):
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{place}: cannot write there ({error.strerror}); choose another --output-dir") from error
        if not os.access(place, os.W_OK | os.X_OK):
            raise ConfigError(f"{place}: cannot write there (no permission); choose another --output-dir")
    return outputs
