"""A progress bar over audio time, on standard error where that is a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from asr import audio
from asr.errors import AudioError

__all__ = ["AudioProgress"]


class AudioProgress:
    """How many minutes of audio are done, how many times faster than it plays, and how long the rest will take."""

    def __init__(self, sources: Sequence[Any]) -> None:
        console = Console(stderr=True)
        self.shown = console.is_terminal
        name = TextColumn("{task.description}", markup=False)
        columns = (name, BarColumn(), _AudioTime(), _Speed(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not self.shown, redirect_stdout=False)
        self.task = self.bar.add_task("", total=sum(map(_seconds, sources)) if self.shown else None)

    def __enter__(self) -> AudioProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, name: str, seconds: float) -> None:
        self.bar.update(self.task, advance=seconds, description=name[-40:])

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Make room for lines on the terminal."""
        if self.shown:
            self.bar.stop()
        yield
        if self.shown:
            sys.stdout.flush()
            self.bar.start()


class _AudioTime(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{_clock(task.completed)}/{_clock(task.total or 0)}", style="progress.download")


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed / task.elapsed:.0f}x" if task.elapsed else "", style="progress.data.speed")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def _seconds(source: Any) -> float:
    if isinstance(source, str | os.PathLike) and not os.path.isfile(source):
        return 0.0  # a pipe can be read once only
    try:
        return audio.duration(source)
    except AudioError:  # is reported when its turn comes
        return 0.0
