"""Measures without a plan of their own: states prepared once a site, combined pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.request import Handle
from featlens.measures.arrays import checked
from featlens.measures.declare import Bound

__all__ = ["combine_all", "prepare_all"]


def prepare_all(bound: Bound, handles: Sequence[Handle], rows: NDArray[np.int64] | None = None) -> list[Any]:
    """State of each site, of all rows or of those chosen."""
    out = []
    for handle in handles:
        x = checked(handle.read(), handle.label, bound.least, bound.measure.name)
        out.append(bound.method.prepare(x if rows is None else x[rows]))
    return out


def combine_all(bound: Bound, left: Sequence[Any], right: Sequence[Any]) -> NDArray[np.float64]:
    """Values (A, B)."""
    return np.array([[bound.method.combine(a, b) for b in right] for a in left], dtype=np.float64)
