"""What every distance asks of two feature sets, and how large its blocks may be."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError

__all__ = ["AT_ONCE", "Features", "block_rows", "checked"]

Features = NDArray[Any]

AT_ONCE = 2**24
"""Numbers of an intermediate matrix that are in memory at a time: 134 MB in float64."""


def checked(x: Features, y: Features, least: int = 2) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both feature sets, (n, d) and (m, d), as float64.

    Raises
    ------
    UsageError
        Unequal widths, fewer than ``least`` rows, NaN or infinity (names the row).
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < least:
        raise UsageError(
            f"distance: expected features (n, d) and (m, d) with n, m >= {least}, got {x.shape} and "
            f"{y.shape}; give more images, and features of one extractor"
        )
    for name, array in (("first", x), ("second", y)):
        row = first_not_finite(array)
        if row is not None:
            raise UsageError(
                f"distance: row {row} of the {name} feature set holds NaN or infinity; "
                "look at that image, or at what extracted its features"
            )
    return x, y


def first_not_finite(array: Features) -> int | None:
    """Number of the first row that holds NaN or infinity, or None."""
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    return None if finite.all() else int(np.argmin(finite))


def block_rows(columns: int, at_once: int = AT_ONCE) -> int:
    """Rows of a matrix of that many columns that may be in memory at a time, at least one.

    >>> block_rows(2**20), block_rows(2**30)
    (16, 1)
    """
    return max(1, at_once // max(columns, 1))
