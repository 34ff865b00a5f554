"""Tensors inside what modules take and give: tuples, lists, dicts, named tuples, dataclasses, nested."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from featlens.errors import SiteError

__all__ = ["Inputs", "bracketed", "leaves", "parameter_names", "pick", "replace"]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Arguments of one call; ``names`` are those of the positional parameters of the module's forward."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...] = ()

    def children(self) -> list[tuple[str, Any]]:
        """Positional arguments by index, then keyword arguments by name."""
        return [(str(i), value) for i, value in enumerate(self.args)] + list(self.kwargs.items())

    def canonical(self, key: str) -> str:
        """Where an argument is, asked for by name or index, however the caller passed it."""
        if key in self.kwargs:
            return key
        if key in self.names and self.names.index(key) < len(self.args):
            return str(self.names.index(key))
        if key.isdecimal() and len(self.args) <= int(key) < len(self.names):
            return self.names[int(key)]
        return key


def parameter_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the positional parameters of a module's forward; empty where they cannot be known."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in positional)


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Inputs):
        return value.children()
    if isinstance(value, Mapping):
        return [(str(key), child) for key, child in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return [(str(index), child) for index, child in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    return []


def leaves(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Every tensor in ``value`` with the keys that lead to it, in order.

    Examples
    --------
    >>> import torch
    >>> x = torch.zeros(1)
    >>> [keys for keys, _ in leaves((x, {"state": [x, None], "name": "text"}))]
    [('0',), ('1', 'state', '0')]
    """
    if isinstance(value, Tensor):
        yield keys, value
    else:
        for key, child in _children(value):
            yield from leaves(child, (*keys, key))


def _child(value: Any, key: str) -> tuple[str, Any] | None:
    """The child that ``key`` means, under the key by which `_children` lists it."""
    found = dict(_children(value))
    if isinstance(value, Inputs):
        key = value.canonical(key)
    if key not in found and isinstance(value, (tuple, list)) and key.removeprefix("-").isdecimal():
        listed = list(found)
        position = int(key)
        key = listed[position] if -len(listed) <= position < len(listed) else key
    return (key, found[key]) if key in found else None


def bracketed(keys: tuple[str, ...]) -> str:
    """Keys as they stand in the name of a site.

    >>> bracketed(("1", "state"))
    '[1][state]'
    """
    return "".join(f"[{key}]" for key in keys)


def pick(value: Any, keys: tuple[str, ...], base: str) -> tuple[tuple[str, ...], Tensor]:
    """The tensor that ``keys`` lead to, with its full keys; they may stop where only one tensor is left.

    Raises
    ------
    SiteError
        If a key is not there, or if several tensors or none are; names the choices. ``base`` is the name of
        the site without keys.
    """
    if isinstance(value, Tensor) and not keys:
        return (), value
    path: tuple[str, ...] = ()
    inner = value
    for key in keys:
        found = _child(inner, key)
        if found is None:
            raise SiteError(_refusal(value, base, keys, f"there is no [{key}] in"))
        path, inner = (*path, found[0]), found[1]
    tensors = list(leaves(inner, path))
    if len(tensors) != 1:
        raise SiteError(_refusal(value, base, keys, f"{len(tensors) or 'no'} tensors are in"))
    return tensors[0]


def _refusal(value: Any, base: str, keys: tuple[str, ...], said: str, most: int = 8) -> str:
    name = base + bracketed(keys)
    what = "its input" if isinstance(value, Inputs) else f"its output, a {type(value).__name__}"
    found = [f"{base + bracketed(path)!r} {tuple(tensor.shape)}" for path, tensor in leaves(value)]
    if not found:
        return f"site {name!r}: no tensor is in {what}; leave this site out"
    more = f", ... ({len(found)} in all)" if len(found) > most else ""
    place = what if not keys or said.startswith("there") else f"that part of {what}"
    return f"site {name!r}: {said} {place}; choose from {', '.join(found[:most])}{more}"


def replace(value: Any, keys: tuple[str, ...], new: Tensor) -> Any:
    """A copy of ``value`` with the tensor that ``keys`` lead to replaced; what is not on the way is shared.

    Examples
    --------
    >>> replace(("a", {"b": 1, "c": 2}), ("1", "c"), 3)
    ('a', {'b': 1, 'c': 3})
    """
    if not keys:
        return new
    found = _child(value, keys[0])
    if found is None:
        raise SiteError(f"no key [{keys[0]}] in a {type(value).__name__}")
    return _with(value, found[0], replace(found[1], keys[1:], new))


def _with(value: Any, key: str, child: Any) -> Any:
    if isinstance(value, Inputs):
        if key in value.kwargs:
            return dataclasses.replace(value, kwargs={**value.kwargs, key: child})
        at = int(key)
        return dataclasses.replace(value, args=(*value.args[:at], child, *value.args[at + 1 :]))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        copied = copy.copy(value)
        frozen = type(value).__dataclass_params__.frozen  # type: ignore[attr-defined]
        # Outputs of diffusers keep items and attributes in step in __setattr__; frozen ones refuse it.
        (object.__setattr__ if frozen else setattr)(copied, key, child)
        return copied
    if isinstance(value, Mapping):
        mapping: Any = copy.copy(value)
        mapping[next(own for own in value if str(own) == key)] = child
        return mapping
    if hasattr(value, "_fields"):
        return value._replace(**{key: child})
    items = list(value)
    items[int(key)] = child
    return type(value)(items)
