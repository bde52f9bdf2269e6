"""Writing speech into a folder laid out like LibriSpeech, chapter by chapter, in a way that can be gone on with.

A chapter's transcript is written last, so a chapter that has one is complete.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray
from rich.progress import MofNCompleteColumn, TimeRemainingColumn

from asr.corpus.librispeech import COPY, progress_bar
from asr.errors import ConfigError
from asr.writers import write_atomically

__all__ = ["COPY", "SAMPLE_RATE", "Range", "Samples", "check_ranges", "claim_folder", "write_chapter", "write_chapters"]

SAMPLE_RATE = 16000  # Hz
BYTES_PER_SECOND = 25e3  # of FLAC, more than was seen

Samples = NDArray[np.float32]
Range = tuple[float, float]
Job = TypeVar("Job")


def check_ranges(ranges: Mapping[str, Range]) -> None:
    """ValueError where one is not two numbers, the lower first."""
    for name, limits in ranges.items():
        if len(limits) != 2 or limits[0] > limits[1]:
            raise ValueError(f"{name} must be two numbers, the lower first; got {list(limits)}")


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder and note in it what it is made with.

    Raises:
        ConfigError: it was made with other settings, or cannot be written to.
    """
    text = json.dumps(settings, indent=2) + "\n"
    path = folder / "settings.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.read_text() != text:
            raise ConfigError(f"{path}: was made with other settings; set them back or choose another output")
        with write_atomically(path) as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write there ({error.strerror}); choose another output") from error


def write_chapters(
    title: str,
    folder: Path,
    jobs: Sequence[Job],
    done: int,
    seconds: float,
    write: Callable[[Job], None],
    processes: int,
) -> None:
    """Call `write` with each job, in so many processes, under a progress bar.

    done: jobs that were done before
    seconds: of speech that will be written, about

    Raises:
        ConfigError: the disk is too full.
    """
    needs, free = seconds * BYTES_PER_SECOND, shutil.disk_usage(folder).free
    if needs > free:
        raise ConfigError(f"{folder}: {free / 1e9:.1f} GB free, but {needs / 1e9:.1f} GB needed; free space there")
    with progress_bar(MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(title, total=done + len(jobs), completed=done)
        if processes == 1:
            for job in jobs:
                write(job)
                progress.advance(task)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(write,)) as pool:
            try:
                for _ in pool.map(_work, jobs):
                    progress.advance(task)
            except BrokenProcessPool as error:
                raise ConfigError(
                    f"{folder}: a process has ended, perhaps for lack of memory; lower processes and go on"
                ) from error
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


_write: Callable[[Any], None]  # in a process of the pool, what it is there for: it may load a voice, and keeps it


def _start(write: Callable[[Any], None]) -> None:
    global _write
    _write = write


def _work(job: Any) -> None:
    _write(job)


def write_chapter(transcript: Path, utterances: Iterable[tuple[str, str, Samples]]) -> None:
    """Write (id, text, samples at 16 kHz) as FLAC files beside `transcript`, and that last.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    lines = []
    try:
        transcript.parent.mkdir(parents=True, exist_ok=True)
        for name, text, samples in utterances:
            soundfile.write(transcript.parent / f"{name}.flac", samples, SAMPLE_RATE)
            lines.append(f"{name} {text}\n")
        with write_atomically(transcript) as file:
            file.writelines(lines)
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{transcript.parent}: cannot write there ({reason}); free space and run again") from error
