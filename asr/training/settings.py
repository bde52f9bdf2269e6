"""What `corpus` and `trainer` of a training run must be: mappings that recipes may add settings of their own to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from asr.config import as_list
from asr.errors import ConfigError

__all__ = ["check_batch_seconds", "check_count", "check_resume", "check_trainer", "checked_settings", "use_threads"]

WHOLE = {  # of `trainer`, with the least that works
    "max_epochs": 1,
    "max_steps": -1,
    "validate_every": 1,
    "early_stop_epochs": 0,
    "accumulate": 1,
    "devices": 1,
    "num_nodes": 1,
    "plots": 0,
    "log_every": 1,
    "measurements": 1,
    "measured_sentences": 1,
}


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """ConfigError where a limit, a number of processes or the like cannot work."""
    for name, least in WHOLE.items():
        value = trainer.get(name, least)
        if type(value) is not int or value < least:
            more = "; torchrun or Slurm start more processes" if name == "devices" else ""
            raise ConfigError(f"trainer.{name} must be a whole number of at least {least}, got {value!r}{more}")
    for name in ("checkpoint_minutes", "max_minutes"):
        value = trainer.get(name, 1)
        if not (is_positive(value) or (name == "max_minutes" and value is None)):
            raise ConfigError(f"trainer.{name} must be a number above 0, got {value!r}")


def check_resume(resume: Any) -> None:
    if not isinstance(resume, str):
        raise ConfigError(f"resume must be auto, never or the path of a checkpoint, got {resume!r}")


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with the name of one subset as a list of one.

    Raises:
        ConfigError: `corpus`, `trainer` or `resume` has a value that cannot work.
    """
    check_trainer(settings["trainer"])
    check_resume(settings["resume"])
    corpus = dict(settings["corpus"])
    for name in ("train", "dev"):
        corpus[name] = as_list(corpus[name])
        if not corpus[name]:
            raise ConfigError(f"corpus.{name} should be a list of subsets such as [{name}-clean], not {corpus[name]!r}")
    for name in ("batch_seconds", "max_duration"):
        check_batch_seconds(corpus[name], f"corpus.{name}")
    check_count(corpus.get("workers"), "corpus.workers", 0, optional=True)
    speeds = corpus["speeds"]
    if not isinstance(speeds, list | tuple) or not speeds or not all(map(is_positive, speeds)):
        raise ConfigError(f"corpus.speeds should be a list of factors such as [0.9, 1.0, 1.1], not {speeds!r}")
    return {**settings, "corpus": corpus}


def check_batch_seconds(value: Any, name: str = "batch_seconds") -> None:
    if not is_positive(value):
        raise ConfigError(f"{name} must be a number of seconds above 0, got {value!r}")


def check_count(value: Any, name: str, least: int = 1, *, optional: bool = False) -> None:
    """ConfigError where it is no whole number of at least so many; None will do where it is `optional`."""
    if value is None and optional:
        return
    if type(value) is not int or value < least:
        null = " or null" if optional else ""
        raise ConfigError(f"{name} must be a whole number of at least {least}{null}, got {value!r}")


def use_threads(threads: Any, name: str = "threads") -> None:
    """Compute in so many; None leaves PyTorch's choice.

    Raises:
        ConfigError: it is no number of threads.
    """
    check_count(threads, name, optional=True)
    if threads:
        torch.set_num_threads(threads)


def is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
