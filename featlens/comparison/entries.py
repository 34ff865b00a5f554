"""Entries of kernels from inner products, less a constant, so that float32 spends its digits on differences.

Every formula of :mod:`featlens.comparison.forms` stays the same when one number is added to all entries of a
kernel matrix. Distances of many features are all about as large as their mean: what is taken from them is
their value at the mean squared distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.forms import Kernel

__all__ = ["Entries", "entries_of"]

EQUAL = 4
"""Squared distances below so many roundings of the squared norms are those of equal rows."""
NOISE = 16
"""Roundings of the squared norms that an entry may be wrong by."""
FLAT = 0.1
"""Mean exponents below which an exponential is taken as its difference from 1."""


@dataclass(frozen=True)
class Entries:
    """Entries of one kernel of one site.

    Attributes
    ----------
    kernel, width
        Kernel, and its bandwidth in units of the features.
    middle
        Mean squared distance of two samples.
    """

    kernel: Kernel
    width: float
    middle: float

    def tile(self, gram: Any, left: Any, right: Any, xp: Any) -> Any:
        """Entries (t, u) from inner products (t, u) and squared norms (t, 1) and (1, u) of centred rows."""
        if self.kernel.kind == "linear":
            return gram
        both = left + right
        squares = both - 2 * gram
        least = both * (EQUAL * float(xp.finfo(gram.dtype).eps))
        squares = xp.where(squares > least, squares, xp.zeros_like(squares))
        if self.kernel.kind == "distance":
            return xp.sqrt(squares) - math.sqrt(self.middle)
        factor = 0.5 / self.width**2
        if self._flat:
            return xp.expm1((self.middle - squares) * factor)
        return xp.exp(squares * -factor) - math.exp(-self.middle * factor)

    @property
    def diagonal(self) -> float:
        """Entry of a sample with itself, but for the linear kernel."""
        if self.kernel.kind == "distance":
            return -math.sqrt(self.middle)
        return math.expm1(self._exponent) if self._flat else -math.expm1(-self._exponent)

    def noise(self, dtype: str) -> float:
        """What rounding may change an entry by; 0 for the linear kernel, where it depends on the sample."""
        eps = NOISE * float(np.finfo(dtype).eps)
        if self.kernel.kind == "linear":
            return 0.0
        if self.kernel.kind == "distance":
            return eps * math.sqrt(self.middle)
        return eps * self._exponent * (1.0 if self._flat else math.exp(-self._exponent))

    @property
    def _exponent(self) -> float:
        return 0.5 * self.middle / self.width**2

    @property
    def _flat(self) -> bool:
        return self._exponent < FLAT


def entries_of(kernel: Kernel, width: float, norms: NDArray[np.float64]) -> Entries:
    """Entries from squared norms (n,) of centred rows."""
    return Entries(kernel, float(width), 2 * float(norms.mean()))
