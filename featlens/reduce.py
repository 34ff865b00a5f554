"""Reductions of activations on the device they are on, (B, ...) -> (B, D): what is kept of a big map."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from featlens.errors import UsageError, choices_hint

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Reducer", "flatten", "gap", "grid", "resolve"]

Reducer = Callable[["Tensor"], "Tensor"]


def gap(x: Tensor) -> Tensor:
    """Mean over positions: maps (B, C, H, W) -> (B, C), tokens (B, T, D) -> (B, D), vectors as they are."""
    if x.ndim == 3:
        return x.mean(dim=1)
    return x.flatten(2).mean(dim=2) if x.ndim > 3 else x.reshape(len(x), -1)


def flatten(x: Tensor) -> Tensor:
    """Everything, (B, ...) -> (B, product of the rest)."""
    return x.flatten(1)


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
        return functional.adaptive_avg_pool2d(x, k).flatten(1)

    reduce_grid.__qualname__ = f"grid({k})"
    return reduce_grid


def _fingerprint(function: Reducer) -> str:
    """Name of a function with a digest of what it computes, so that two lambdas are not taken for one."""
    import hashlib

    name = getattr(function, "__qualname__", type(function).__name__)
    code = getattr(function, "__code__", None)
    if code is None:
        return f"{name}#{hashlib.sha256(repr(function).encode()).hexdigest()[:8]}"
    cells = [repr(cell.cell_contents) for cell in getattr(function, "__closure__", None) or ()]
    parts = (code.co_code.hex(), repr(code.co_consts), repr(code.co_names), repr(cells))
    defaults = repr((getattr(function, "__defaults__", None), getattr(function, "__kwdefaults__", None)))
    return f"{name}#{hashlib.sha256('|'.join((*parts, defaults)).encode()).hexdigest()[:8]}"


def resolve(name: str | Reducer) -> tuple[str, Reducer]:
    """Name and function of a reduction given as ``"gap"``, ``"flatten"``, ``"grid(2)"`` or a function.

    The name of a function of one's own ends in a digest of its code, defaults and closure.
    """
    if callable(name):
        own = getattr(name, "__module__", "") == __name__
        return (name.__qualname__ if own else _fingerprint(name)), name
    found = re.fullmatch(r"grid\((\d+)\)", name)
    if found:
        return name, grid(int(found[1]))
    known: dict[str, Reducer] = {"gap": gap, "mean": gap, "flatten": flatten}
    if name not in known:
        raise UsageError(f"unknown reduction {name!r}: {choices_hint(name, ['gap', 'flatten', 'grid(2)'])}")
    return name, known[name]
