"""Samples from a microphone as they are heard (sounddevice, an extra)."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Iterator

from asr.audio import Samples
from asr.errors import ConfigError

__all__ = ["blocks"]

BLOCK_SECONDS = 0.1


def blocks(sample_rate: int, device: int | str | None = None) -> Iterator[Samples]:
    """Blocks of mono samples (T,) until Ctrl-C, all that was heard by then; a second one breaks off.

    Args:
        sample_rate: Hz.
        device: number or part of the name of an input; by default the system's.

    Raises:
        ConfigError: sounddevice is not installed, or there is no such microphone.
    """
    try:
        import sounddevice
    except ImportError:
        raise ConfigError("listening needs the extra `listen`: pip install 'asr[listen]'") from None
    except OSError as error:  # the package is there, the system's library is not
        raise ConfigError(f"listening needs PortAudio ({error}); on Debian: apt install libportaudio2") from error
    heard: queue.SimpleQueue[Samples | None] = queue.SimpleQueue()
    on_interrupt = signal.getsignal(signal.SIGINT) or signal.SIG_DFL

    def stop(*_: object) -> None:  # wherever it comes, most likely while what was heard is searched
        signal.signal(signal.SIGINT, on_interrupt)
        heard.put(None)

    handles = threading.current_thread() is threading.main_thread() and on_interrupt is not signal.SIG_IGN
    if handles:
        signal.signal(signal.SIGINT, stop)
    try:
        with sounddevice.InputStream(
            sample_rate,
            blocksize=int(BLOCK_SECONDS * sample_rate),
            device=device,
            channels=1,
            dtype="float32",
            callback=lambda samples, *_: heard.put(samples[:, 0].copy()),
        ):
            while (samples := heard.get()) is not None:
                yield samples
    except KeyboardInterrupt:
        return
    except (sounddevice.PortAudioError, ValueError) as error:
        raise ConfigError(f"microphone: {error}; `python -m sounddevice` lists the devices") from error
    finally:
        if handles:
            signal.signal(signal.SIGINT, on_interrupt)
