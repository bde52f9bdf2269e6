import io
import os
import re

import numpy as np
import pytest
from rich.console import Console

from asr import progress
from asr.progress import AudioProgress


@pytest.fixture
def screen(monkeypatch):
    """What a terminal of 120 columns gets to see on standard error."""
    shown = io.StringIO()

    def console(stderr):
        assert stderr
        return Console(file=shown, force_terminal=True, width=120, color_system=None)

    monkeypatch.setattr(progress, "Console", console)
    return shown


def test_minutes_done_speed_and_name(screen, tmp_path):
    sources = [np.zeros(16000 * 3700, np.float32), tmp_path / "missing.wav"]
    with AudioProgress(sources) as bar:
        bar.advance("talk.wav", 61.5)
        bar.advance("talk.wav", 0.5)
        with bar.hidden():
            pass
    seen = screen.getvalue()
    assert "talk.wav" in seen
    assert "0:01:02/1:01:40" in seen
    assert re.search(r"\d+x", seen)


def test_names_are_no_markup(screen):
    with AudioProgress([np.zeros(16000, np.float32)]) as bar:
        bar.advance("x[/y].wav", 1.0)
    assert "x[/y].wav" in screen.getvalue()


def test_pipes_are_left_to_be_read(screen):
    end, start = os.pipe()
    os.write(start, b"audio")
    os.close(start)
    AudioProgress([f"/dev/fd/{end}"])
    assert os.read(end, 9) == b"audio"
    os.close(end)


def test_nothing_is_written_where_nobody_watches(capsys):
    with AudioProgress([np.zeros(16000, np.float32)]) as bar:
        bar.advance("talk.wav", 1.0)
        with bar.hidden():
            print("text")
    assert capsys.readouterr() == ("text\n", "")
