"""What a machine runs out of, as one line that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from asr.errors import AsrError, is_out_of_memory

__all__ = ["TrainingStoppedError", "readable_failures"]


class TrainingStoppedError(AsrError):
    """Training cannot usefully go on."""


@contextmanager
def readable_failures(output: Any, out_of_memory: Callable[[], str]) -> Iterator[None]:
    """Raise TrainingStoppedError where memory, or the disk that `output` is on, is full.

    out_of_memory: asked then; what happened, and what to lower
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingStoppedError(out_of_memory()) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TrainingStoppedError(
            f"{output}: {error.strerror}; free space, and the same command goes on from the last checkpoint"
        ) from error
