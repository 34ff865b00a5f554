"""Configuration: frozen dataclasses, read from TOML with every typing error named."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from featlens.errors import UsageError, choices_hint

__all__ = ["config_difference", "from_mapping", "to_mapping"]

T = TypeVar("T")


def to_mapping(config: Any) -> dict[str, Any]:
    """Nested plain dict of a configuration; tuples become lists, None is left out (TOML has no null)."""
    out: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            out[entry.name] = to_mapping(value)
        elif isinstance(value, tuple):
            out[entry.name] = list(value)
        elif value is not None:
            out[entry.name] = value
    return out


def from_mapping(kind: type[T], mapping: Mapping[str, Any], base: T | None = None, where: str = "") -> T:
    """Build ``kind`` from a nested mapping on top of ``base`` (default: the class' own defaults).

    Raises
    ------
    UsageError
        For an unknown key (with the nearest match) or a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    names = [entry.name for entry in dataclasses.fields(kind)]  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in mapping.items():
        place = f"{where}{key}"
        if key not in names:
            raise UsageError(f"configuration: unknown key {place!r}: {choices_hint(key, names)}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise UsageError(f"configuration: {place} must be a table, got {value!r}")
            inner = getattr(base, key) if base is not None else None
            changes[key] = from_mapping(typing.cast(type[Any], hint), value, inner, where=f"{place}.")
        else:
            changes[key] = _checked(hint, value, place)
    if base is not None:
        return dataclasses.replace(base, **changes)  # type: ignore[type-var]
    return kind(**changes)


def _checked(hint: Any, value: Any, place: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        allowed = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else _checked(allowed[0], value, place)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"configuration: {place} must be a list, got {value!r}")
        return tuple(_checked(arguments[0], item, f"{place}[{index}]") for index, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UsageError(f"configuration: {place} must be of type {hint.__name__}, got {value!r}")
    return value


def config_difference(there: Mapping[str, Any], asked: Mapping[str, Any], where: str = "") -> list[str]:
    """One line for each key that differs between two nested mappings.

    >>> config_difference({"lr": 0.1, "net": {"blocks": 1}}, {"lr": 0.1, "net": {"blocks": 2}})
    ['net.blocks: 1 there, 2 asked for']
    """
    lines: list[str] = []
    for key in sorted(set(there) | set(asked)):
        old, new = there.get(key), asked.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += config_difference(old, new, where=f"{where}{key}.")
        elif old != new:
            lines.append(f"{where}{key}: {old!r} there, {new!r} asked for")
    return lines
