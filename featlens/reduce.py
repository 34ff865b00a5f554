"""Reductions of activations on the device they are on: what is kept of a big map.

Those defined here compute in float32 where activations are in half precision, and return float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from featlens.errors import UsageError, choices_hint
from featlens.projection import projection

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Reducer", "fingerprint", "flatten", "gap", "grid", "is_own", "project", "resolve", "tokens"]

Reducer = Callable[["Tensor"], "Tensor"]


def _full(x: Tensor) -> Tensor:
    """``x`` in float32 at least."""
    return x if x.is_floating_point() and x.element_size() >= 4 else x.float()


def _rows(x: Tensor) -> Tensor:
    """(B, ...) -> (B, product of the rest)."""
    if x.ndim == 0:
        raise UsageError("a reduction needs activations (B, ...), got a single number; leave this site out")
    return x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)


def gap(x: Tensor) -> Tensor:
    """Mean over positions: maps (B, C, H, W) -> (B, C), tokens (B, T, D) -> (B, D), vectors as they are.

    Three axes are read as tokens; for those of 1-D convolutions, (B, C, L), give a function of your own.
    """
    if x.ndim < 3:
        return flatten(x)
    # The sum is kept in float32 without a float32 copy of the map.
    dtype = x.dtype if x.is_floating_point() and x.element_size() >= 4 else _full(x[:0]).dtype
    return x.mean(dim=1, dtype=dtype) if x.ndim == 3 else x.mean(dim=tuple(range(2, x.ndim)), dtype=dtype)


def flatten(x: Tensor) -> Tensor:
    """Everything, (B, ...) -> (B, product of the rest)."""
    return _full(_rows(x))


def tokens(x: Tensor) -> Tensor:
    """Positions apart: maps (B, C, H, W) -> (B, H * W, C), tokens as they are, vectors (B, D) -> (B, 1, D).

    Examples
    --------
    >>> import torch
    >>> tuple(tokens(torch.zeros(2, 3, 4, 4)).shape)
    (2, 16, 3)
    """
    if x.ndim > 3:
        return _full(x.flatten(2).transpose(1, 2))
    return _full(x if x.ndim == 3 else _rows(x).unsqueeze(1))


def grid(k: int) -> Reducer:
    """Mean over each cell of a k x k grid: (B, C, H, W) -> (B, C * k * k)."""
    if k < 1:
        raise UsageError(f"reduction grid({k}): k must be at least 1")

    def reduce_grid(x: Tensor) -> Tensor:
        from torch.nn import functional

        if x.ndim != 4:
            raise UsageError(
                f"reduction grid({k}) needs maps (B, C, H, W), got {tuple(x.shape)}; use 'gap' or 'flatten'"
            )
        return functional.adaptive_avg_pool2d(_full(x), k).flatten(1)

    reduce_grid.__qualname__ = f"grid({k})"
    return reduce_grid


def project(d: int, seed: int = 0) -> Reducer:
    """Random projection of everything, (B, ...) -> (B, d), that keeps inner products on average.

    For x, y of P > d numbers and the random matrix S, ``<Sx, Sy>`` has mean ``<x, y>`` and a variance of at
    most ``(|x|^2 |y|^2 + <x, y>^2) / d``; up to d numbers are kept whole. S depends on (d, seed, P) alone:
    two models are projected alike, on every device.

    References
    ----------
    Kane and Nelson, arXiv 1012.1577 (sparse blocks); Weinberger et al., arXiv 0902.2206 (signed hashing).

    Examples
    --------
    >>> import torch
    >>> tuple(project(256)(torch.zeros(2, 64, 16, 16)).shape)
    (2, 256)
    """
    if d < 1:
        raise UsageError(f"reduction project({d}): the number of features must be at least 1")
    apply = projection(d, seed)

    def reduce_project(x: Tensor) -> Tensor:
        flat = _rows(x)
        return _full(flat) if flat.shape[1] <= d else apply(flat)

    reduce_project.__qualname__ = f"project({d}, {seed})" if seed else f"project({d})"
    return reduce_project


def fingerprint(function: Reducer) -> str:
    """Name of a function with a digest of what it computes, so that two lambdas are not taken for one."""
    import hashlib

    name = getattr(getattr(function, "func", function), "__qualname__", type(function).__name__)
    return f"{name}#{hashlib.sha256(_told(function).encode()).hexdigest()[:8]}"


def _told(value: object, inside: tuple[object, ...] = ()) -> str:
    """What an object is, the same in every process; two that compute something else differ."""
    import functools
    import hashlib
    import types

    import numpy as np
    import torch

    def told(*parts: object) -> str:
        return "|".join("itself" if part in held else _told(part, held) for part in parts)

    held = _Held((*inside, value))
    if isinstance(value, functools.partial):
        return told(value.func, value.args, sorted(value.keywords.items()))
    if isinstance(value, torch.nn.Module):
        return f"{value!r}|{told(*value.state_dict().items())}"
    if isinstance(value, torch.Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(raw.tobytes()).hexdigest()}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, (tuple, list)):
        return f"({told(*value)})"
    if isinstance(value, frozenset):
        return f"{sorted(map(repr, value))}"
    if isinstance(value, types.CodeType):
        return told(value.co_code, value.co_consts, value.co_names)
    code = getattr(value, "__code__", None)
    if code is None:
        return repr(value)
    cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    return told(code, cells, getattr(value, "__defaults__", None), getattr(value, "__kwdefaults__", None))


class _Held(tuple[object, ...]):
    """Objects that others are inside of, known by identity."""

    def __contains__(self, one: object) -> bool:
        return any(one is other for other in self)


def is_own(function: Reducer) -> bool:
    """True for a function of the user's, False for one of this module."""
    return getattr(function, "__module__", "") != __name__


def resolve(name: str | Reducer) -> tuple[str, Reducer]:
    """Name and function of a reduction given by name or as a function.

    Names are ``"gap"`` or ``"mean"``, ``"flatten"``, ``"tokens"``, ``"grid(2)"``, ``"project(256)"``, and
    ``"project(256, 3)"`` with seed 3. The name of a function of one's own ends in a digest of its code,
    defaults and closure.

    >>> resolve("project(256, 0)")[0]
    'project(256)'
    """
    if callable(name):
        return (fingerprint(name) if is_own(name) else name.__qualname__), name
    found = re.fullmatch(r"grid\((\d+)\)", name)
    if found:
        return name, grid(int(found[1]))
    found = re.fullmatch(r"project\((\d+)(?:, *(\d+))?\)", name)
    if found:
        reducer = project(int(found[1]), int(found[2] or 0))
        return reducer.__qualname__, reducer
    known: dict[str, Reducer] = {"gap": gap, "mean": gap, "flatten": flatten, "tokens": tokens}
    if name not in known:
        choices = ["gap", "flatten", "tokens", "grid(2)", "project(256)"]
        raise UsageError(f"unknown reduction {name!r}: {choices_hint(name, choices)}")
    return name, known[name]
