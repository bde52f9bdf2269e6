"""Plain mappings (YAML, Hydra) <-> the frozen dataclasses that the library takes."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from asr.errors import ConfigError

__all__ = ["as_list", "check_kinds", "from_mapping", "to_mapping"]

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], name: str = "") -> T:
    """Build the dataclass `cls`, nested ones included; ConfigError names a key that does not exist or fit."""
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{name}." if name else ""
    arguments = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"unknown setting {prefix}{key}; there are: {', '.join(sorted(known))}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            value = from_mapping(typing.cast(type, hint), value, f"{prefix}{key}")
        elif typing.get_origin(hint) is tuple:
            if not isinstance(value, list | tuple):
                raise ConfigError(f"{prefix}{key} should be a list, not {value!r}")
            kind = typing.get_args(hint)[0]
            value = tuple(_scalar(kind, item, f"{prefix}{key}: each") for item in value)
        else:
            value = _scalar(hint, value, f"{prefix}{key}")
        arguments[key] = value
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name or cls.__name__}: {error}") from error


def _scalar(kind: Any, value: Any, name: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind in (int, bool, str, float) and type(value) is not kind:
        hint = "; quote yes, no, on and off in YAML" if kind is str and isinstance(value, bool) else ""
        raise ConfigError(f"{name} should be {kind.__name__}, not {value!r}{hint}")
    return value


def check_kinds(values: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """ConfigError where a value is not of its kind (int, bool, str; float, which whole numbers are too)."""
    for name, kind in kinds.items():
        _scalar(kind, values[name], name)


def as_list(value: Any) -> list[Any]:
    """One name or path, which Hydra gives as a string where it has no brackets, as a list of one; None: empty."""
    if value is None:
        return []
    return [value] if isinstance(value, str | os.PathLike) else list(value)


def to_mapping(config: Any) -> dict[str, Any]:
    """A dataclass -> nested dicts and lists that YAML can hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(dataclasses.asdict(config))
