"""How the recipes end when something goes wrong: one line on stderr and an exit code, no traceback."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from asr.errors import AsrError

__all__ = ["friendly_errors"]

P = ParamSpec("P")
R = TypeVar("R")


def friendly_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: an AsrError becomes `error: ...` and exit code 2, Ctrl-C exit code 130.

    Put it *below* `@hydra.main`: hydra prints the traceback of any exception that leaves the task function,
    but lets SystemExit through.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except AsrError as error:
            print("error:", " ".join(str(error).split()), file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapper
