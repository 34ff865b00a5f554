"""Kernel distance (KID): the unbiased squared MMD, whole, in blocks and of many half-samples at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError
from featlens.seeds import derive
from featlens_trainers.evaluation.sets import Features, block_rows, checked

__all__ = ["BlockDistance", "kernel_distance", "kernel_distance_blocks", "kernel_distance_parts"]

Array = NDArray[np.float64]


def kernel_distance(x: Features, y: Features) -> float:
    """Unbiased squared MMD with the kernel ``(x.y / d + 1)^3`` (KID, arXiv 1801.01401); may be negative.

    ``x`` (n, d), ``y`` (m, d), at least two rows each; in float64, in blocks of bounded size.

    >>> import numpy as np
    >>> kernel_distance(np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]]))
    -3.5
    """
    x, y = checked(x, y)
    n, m = len(x), len(y)
    (xx, x_diagonal), (yy, y_diagonal), (xy, _) = (_sums(a, b) for a, b in ((x, x), (y, y), (x, y)))
    within = (xx - x_diagonal) / (n * (n - 1)) + (yy - y_diagonal) / (m * (m - 1))
    return float(within - 2.0 * (xy / (n * m)))


def _kernel(a: Array, b: Array) -> Array:
    return np.asarray((a @ b.T / a.shape[1] + 1.0) ** 3)


def _sums(a: Array, b: Array) -> tuple[float, float]:
    """Sum of the kernel over all pairs, and over the pairs of equal numbers."""
    total = diagonal = 0.0
    step = block_rows(len(b))
    for start in range(0, len(a), step):
        block = _kernel(a[start : start + step], b)
        total += block.sum()
        diagonal += np.trace(block[:, start:])
    return total, diagonal


@dataclass(frozen=True)
class BlockDistance:
    """Mean of the kernel distances of disjoint blocks, and its standard error (NaN for a single block)."""

    value: float
    error: float
    block: int
    blocks: int


def kernel_distance_blocks(
    x: Features, y: Features, block: int | None = None, seed: int = 0
) -> BlockDistance:
    """Mean of :func:`kernel_distance` over disjoint random blocks of rows, with its standard error.

    Blocks share no row, so their distances are independent and the error is that of a mean. Papers mostly
    report blocks of 1,000 rows that overlap, whose scatter is no error of the mean.

    Parameters
    ----------
    x, y
        (n, d) and (m, d).
    block
        Rows a block on either side; by default a tenth of the smaller set, from 2 to 1,000.
    seed
        Seed of the blocks.
    """
    x, y = checked(x, y)
    smaller = min(len(x), len(y))
    size = min(1000, max(2, smaller // 10)) if block is None else block
    if not 2 <= size <= smaller:
        raise UsageError(f"KID: a block must have 2 to {smaller} rows, got {size}; give another block size")
    numbers = np.random.default_rng(derive(seed, "kernel blocks"))
    orders = numbers.permutation(len(x)), numbers.permutation(len(y))
    count = smaller // size
    values = np.array(
        [
            kernel_distance(
                *(side[order[i * size : (i + 1) * size]] for side, order in zip((x, y), orders, strict=True))
            )
            for i in range(count)
        ]
    )
    error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return BlockDistance(float(values.mean()), error, size, count)


def kernel_distance_parts(x: Features, y: Features, x_parts: Features, y_parts: Features) -> Array:
    """Kernel distances (parts,) of many parts of both sets, in one pass over the kernel.

    Parameters
    ----------
    x, y
        (n, d) and (m, d).
    x_parts, y_parts
        (parts, n) and (parts, m) bool: which rows belong to each part, at least two.
    """
    x, y = checked(x, y)
    rows = np.asarray(x_parts, dtype=np.float64), np.asarray(y_parts, dtype=np.float64)
    counts = [part.sum(1) for part in rows]
    if min(float(count.min()) for count in counts) < 2:
        raise UsageError("KID: every part needs at least two rows of either set; draw larger parts")
    xx = _part_sums(x, x, rows[0], rows[0], within=True) / (counts[0] * (counts[0] - 1))
    yy = _part_sums(y, y, rows[1], rows[1], within=True) / (counts[1] * (counts[1] - 1))
    xy = _part_sums(x, y, *rows, within=False) / (counts[0] * counts[1])
    return np.asarray(xx + yy - 2.0 * xy)


def _part_sums(a: Array, b: Array, a_parts: Array, b_parts: Array, within: bool) -> Array:
    total = np.zeros(len(a_parts))
    step = block_rows(len(b))
    for start in range(0, len(a), step):
        block = _kernel(a[start : start + step], b)
        if within:
            own = np.arange(len(block))
            block[own, start + own] = 0.0
        total += ((a_parts[:, start : start + step] @ block) * b_parts).sum(1)
    return total
