"""Plain mappings (YAML, Hydra) <-> the frozen dataclasses that the library takes."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from asr.errors import ConfigError

__all__ = ["from_mapping", "to_mapping"]

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
            value = tuple(value)
        elif hint is float and type(value) is int:
            value = float(value)
        elif hint in (int, bool, str, float) and type(value) is not hint:
            raise ConfigError(f"{prefix}{key} should be {hint.__name__}, not {value!r}")
        arguments[key] = value
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name or cls.__name__}: {error}") from error


def to_mapping(config: Any) -> dict[str, Any]:
    """A dataclass -> nested dicts and lists that YAML can hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(dataclasses.asdict(config))
