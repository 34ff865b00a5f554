"""One measure between two models: an array per quantity over (level, site of A, site of B)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["QUANTITIES", "STARS", "Panel", "stars"]

QUANTITIES = ("value", "ci_low", "ci_high", "null", "null_high", "p", "p_family", "q", "ceiling")
"""What is known of each cell; NaN where it was not asked for or is undefined.

``value``; ``ci_low`` and ``ci_high``, the ends of its confidence interval; ``null``, the mean under
permutations of the samples; ``null_high``, the value that 5 % of the permutations exceed (for distances: fall
below); ``p``, the permutation p-value of the cell; ``p_family``, the same against the most extreme value of
the whole site grid of its level (family-wise); ``q``, the smallest false discovery rate at which the cell is
significant (Benjamini and Hochberg 1995) over all cells of the panel; ``ceiling``, the noise ceiling from
other noise draws.
"""

STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
"""Marks of family-wise p-values up to a level."""


def stars(p_family: float) -> str:
    """``***``, ``**`` or ``*`` for p up to 0.001, 0.01 or 0.05; nothing where it is larger or unknown.

    >>> stars(0.001), stars(0.04), stars(0.2)
    ('***', '*', '')
    """
    return next((mark for most, mark in STARS if p_family <= most), "")


@dataclass(frozen=True)
class Panel:
    """One measure between model A and model B."""

    measure: str
    """Name with options, as :func:`featlens.measures.resolve` takes it."""
    direction: Literal["similarity", "distance"]
    title: str
    """A few words for axes."""
    bounds: tuple[float, float]
    """Range of the measure."""
    a: str
    b: str
    """Names of the models."""
    sites_a: tuple[str, ...]
    sites_b: tuple[str, ...]
    arrays: Mapping[str, NDArray[np.float64]]
    """By quantity, each (levels, sites of A, sites of B); see :data:`QUANTITIES`."""
    flags: NDArray[np.int64]
    """(levels, sites of A, sites of B): bit i is set where warning i of :attr:`remarks` concerns the cell."""
    remarks: tuple[str, ...]
    """Warnings that concern cells."""
    how: Mapping[str, str]
    """How values, intervals and null level were computed, in words, by "plan", "interval" and "null"."""

    def __post_init__(self) -> None:
        shape = (*self.flags.shape,)
        for name in QUANTITIES:
            if self.arrays[name].shape != shape:
                raise ValueError(f"{name} has shape {self.arrays[name].shape}, expected {shape}")
        for array in (*self.arrays.values(), self.flags):
            array.setflags(write=False)

    def best(self, level: int, site: int) -> int | None:
        """Position of the site of B most similar to a site of A; None where every value is undefined."""
        row = self.arrays["value"][level, site]
        if np.isnan(row).all():
            return None
        return int(np.nanargmax(row) if self.direction == "similarity" else np.nanargmin(row))

    def remarks_of(self, level: int, i: int, j: int) -> list[str]:
        """Warnings of one cell."""
        flags = int(self.flags[level, i, j])
        return [remark for bit, remark in enumerate(self.remarks) if flags >> bit & 1]
