"""CKA from minibatches, for features of which not all rows can be had at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

from featlens.errors import FeatlensWarning, UsageError
from featlens.measures.arrays import Array, centred, checked, namespace, same_rows
from featlens.measures.cka import _pair_hsic
from featlens.measures.kernels import sized

__all__ = ["MinibatchCKA", "cka_minibatch"]

LEAST = 4


class MinibatchCKA:
    """Debiased linear CKA over batches: a ratio of sums of HSIC, never a mean of ratios.

    Each batch is centred by itself. What the sums estimate does not depend on the size of the batches, only
    how much they scatter does.

    Attributes
    ----------
    batches, samples
        Batches and samples that count.
    skipped
        Samples in batches of fewer than 4, which have no unbiased HSIC and are left out.

    References
    ----------
    arXiv 2010.15327, equations 4 and 5.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(96, 8))
    >>> accumulated = MinibatchCKA()
    >>> for rows in np.split(x, 6):
    ...     accumulated.update(rows, 3 * rows[:, ::-1] + 1)
    >>> round(accumulated.value, 6), accumulated.samples
    (1.0, 96)
    """

    def __init__(self) -> None:
        self.batches = self.samples = self.skipped = 0
        self._sums = [0.0, 0.0, 0.0]
        self._widths: list[int] = []
        self._like: list[Any] = [None, None]

    def update(self, x: Array, y: Array) -> None:
        """Add a batch: features (b, d1) and (b, d2) of the same samples.

        Warns
        -----
        FeatlensWarning
            If the batch has fewer than 4 samples; it is skipped.
        """
        self._update(x, y, level=3)

    def _update(self, x: Array, y: Array, level: int) -> None:
        namespace(x, y, measure="cka_minibatch")
        a, b = (checked(side, name, 0, "cka_minibatch") for side, name in ((x, "x"), (y, "y")))
        same_rows(a, b, "cka_minibatch")
        widths = [a.shape[1], b.shape[1]]
        if self._widths and widths != self._widths:
            raise UsageError(
                f"cka_minibatch: features of widths {widths} after others of {self._widths}; "
                "all batches must be of the same two sites"
            )
        self._widths = widths
        count = int(a.shape[0])
        if count < LEAST:
            self.skipped += count
            warnings.warn(
                f"cka_minibatch: a batch of {count} samples was skipped, at least {LEAST} are needed; "
                "choose a batch size that leaves no such rest",
                FeatlensWarning,
                stacklevel=level,
            )
            return
        a, b = self._sized(centred(a), 0), self._sized(centred(b), 1)
        for index, pair in enumerate(((a, b), (a, a), (b, b))):
            self._sums[index] += _pair_hsic(*pair, "debiased")
        self.batches += 1
        self.samples += count

    def _sized(self, x: Array, side: int) -> Array:
        """Features by one scale for all batches, that of the first which varies."""
        if self._like[side] is None and float(namespace(x).max(namespace(x).abs(x))) > 0:
            self._like[side] = x
        return sized(x, like=self._like[side])

    @property
    def value(self) -> float:
        """CKA of the batches so far; NaN if either side has no self-similarity."""
        if not self.batches:
            raise UsageError(
                f"cka_minibatch: no batch of at least {LEAST} samples so far; add some with update(x, y)"
            )
        cross, own_x, own_y = self._sums
        return cross / math.sqrt(own_x) / math.sqrt(own_y) if own_x > 0 and own_y > 0 else math.nan


def cka_minibatch(batches: Iterable[tuple[Array, Array]]) -> float:
    """Debiased linear CKA of batches ``(x, y)``, features (b, d1) and (b, d2): :class:`MinibatchCKA`.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(96, 8))
    >>> round(cka_minibatch((rows, -rows) for rows in np.split(x, 6)), 6)
    1.0
    """
    accumulated = MinibatchCKA()
    for x, y in batches:
        accumulated._update(x, y, level=3)
    return accumulated.value
