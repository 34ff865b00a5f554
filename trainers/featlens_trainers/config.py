"""Configuration: frozen dataclasses, read from TOML with every typing error named."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from featlens.errors import UsageError, choices_hint

__all__ = ["config_difference", "from_mapping", "one_of", "to_mapping"]

T = TypeVar("T")


def to_mapping(config: Any) -> dict[str, Any]:
    """Nested plain dict of a configuration, which :func:`from_mapping` reads back to an equal one.

    Tuples become lists, tables in them dicts. None is left out where it is the default (TOML has no null).

    Examples
    --------
    >>> from featlens_trainers import DiTConfig
    >>> to_mapping(DiTConfig(depth=2))["kind"]
    'dit'
    """
    out: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if value is not None or entry.default is not None:
            out[entry.name] = _plain(value)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return to_mapping(value) if dataclasses.is_dataclass(value) else value


def from_mapping(kind: type[T], mapping: Mapping[str, Any], base: T | None = None, where: str = "") -> T:
    """Build ``kind`` from a nested mapping on top of ``base`` (default: the class' own defaults).

    A field that holds one of several dataclasses is a table whose key ``kind`` says which, by default the one
    of ``base``. A table of another kind than the base starts from its own defaults, but for fields marked as
    shared. A tuple of dataclasses is an array of tables, which replaces the one of the base.

    Raises
    ------
    UsageError
        For an unknown key or kind (with the nearest match), a value of the wrong type, a key that is missing.

    Examples
    --------
    >>> from featlens_trainers import UNetConfig
    >>> from_mapping(UNetConfig, {"channels": 16}, UNetConfig(blocks=2)).blocks
    2
    """
    if not isinstance(mapping, Mapping):
        raise UsageError(f"configuration: {where.rstrip('.') or 'it'} must be a table, got {mapping!r}")
    hints = typing.get_type_hints(kind)
    fields = {entry.name: entry for entry in dataclasses.fields(kind) if entry.init}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in mapping.items():
        place = f"{where}{key}"
        if key not in fields:
            raise UsageError(f"configuration: unknown key {place!r}: {choices_hint(str(key), fields)}")
        inner = getattr(base, key) if base is not None else _default(fields[key])
        changes[key] = _checked(hints[key], value, place, inner)
    if base is not None:
        return dataclasses.replace(base, **changes)  # type: ignore[type-var]
    missing = [name for name, entry in fields.items() if name not in changes and _required(entry)]
    if missing:
        raise UsageError(
            f"configuration: {where.rstrip('.') or 'it'} needs {', '.join(map(repr, missing))}; add "
            f"{'it' if len(missing) == 1 else 'them'}"
        )
    return kind(**changes)


def one_of(kinds: Any, mapping: Mapping[str, Any], base: Any = None, where: str = "") -> Any:
    """As :func:`from_mapping` for one of several dataclasses, chosen by the key ``kind`` of ``mapping``.

    Parameters
    ----------
    kinds
        A union of dataclasses, each with a field ``kind`` whose default is its tag; the first is the default.
    mapping, base, where
        As there.

    Examples
    --------
    >>> from featlens_trainers.networks import NetworkConfig
    >>> one_of(NetworkConfig, {"kind": "dit", "depth": 2}).encoder_depth
    1
    """
    if not isinstance(mapping, Mapping):
        raise UsageError(f"configuration: {where.rstrip('.') or 'it'} must be a table, got {mapping!r}")
    members = {_tag(member): member for member in typing.get_args(kinds) if dataclasses.is_dataclass(member)}
    asked = mapping.get("kind", next(iter(members)) if base is None else _tag(type(base)))
    if not isinstance(asked, str) or asked not in members:
        raise UsageError(
            f"configuration: unknown {where}kind {asked!r}: {choices_hint(str(asked), map(str, members))}"
        )
    kind: Any = members[asked]
    if base is None or isinstance(base, kind):
        return from_mapping(kind, mapping, base, where)
    names = {entry.name for entry in dataclasses.fields(kind)}
    shared = {
        entry.name: getattr(base, entry.name)
        for entry in dataclasses.fields(base)
        if entry.metadata.get("shared") and entry.name in names
    }
    # Together with what is asked for, so that a size is not judged against one that is about to change.
    return from_mapping(kind, {**shared, **mapping}, None, where)


def _tag(kind: Any) -> Any:
    return kind.__dataclass_fields__["kind"].default


def _required(entry: dataclasses.Field[Any]) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def _default(entry: dataclasses.Field[Any]) -> Any:
    """Default of a field, None if there is none."""
    if entry.default is not dataclasses.MISSING:
        return entry.default
    return None if entry.default_factory is dataclasses.MISSING else entry.default_factory()


def _checked(hint: Any, value: Any, place: str, base: Any = None) -> Any:
    """``value`` as the type that ``hint`` asks for; tables on top of ``base``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_allowed(hint, arguments, value, place, base)
    if dataclasses.is_dataclass(hint):
        table = typing.cast(type[Any], hint)
        return from_mapping(table, value, base if isinstance(base, table) else None, where=f"{place}.")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"configuration: {place} must be a list, got {value!r}")
        each = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(each) != len(value):
            raise UsageError(f"configuration: {place} must have {len(each)} entries, got {len(value)}")
        return tuple(
            _checked(item_hint, item, f"{place}[{index}]")
            for index, (item_hint, item) in enumerate(zip(each, value, strict=True))
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UsageError(f"configuration: {place} must be of type {hint.__name__}, got {value!r}")
    return value


def _one_allowed(hint: Any, arguments: tuple[Any, ...], value: Any, place: str, base: Any) -> Any:
    """``value`` as one of the types of a union."""
    allowed = [argument for argument in arguments if argument is not type(None)]
    if value is None and len(allowed) < len(arguments):
        return None
    tables = [argument for argument in allowed if dataclasses.is_dataclass(argument)]
    if len(tables) > 1 and (len(tables) == len(allowed) or isinstance(value, Mapping)):
        known = base if isinstance(base, tuple(typing.cast(Any, tables))) else None
        return one_of(hint, value, known, where=f"{place}.")
    # A table or a list says itself which of several is meant; a number or a word may be any of them.
    fitting = [one for one in allowed if _may_be(one, value)]
    if len(fitting) == 1 or len(allowed) == 1:
        return _checked((fitting or allowed)[0], value, place, base)
    for one in fitting:
        try:
            return _checked(one, value, place, base)
        except UsageError:
            continue
    names = " or ".join(getattr(one, "__name__", str(one)) for one in allowed)
    raise UsageError(f"configuration: {place} must be of type {names}, got {value!r}")


def _may_be(hint: Any, value: Any) -> bool:
    """Whether ``value`` looks like the type, whatever is in it."""
    if dataclasses.is_dataclass(hint):
        return isinstance(value, Mapping)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, (list, tuple))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


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
