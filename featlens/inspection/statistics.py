"""Statistics of images that come in blocks: spread of the pixels, exact duplicates, coverage of labels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from featlens.inspection.report import Duplicates, LabelCoverage

__all__ = ["FIRST", "Spread", "coverage", "find_duplicates", "pixel_digests"]

FIRST = 5
"""Duplicates and damaged images that are named."""


class Spread:
    """Mean and variance of each channel of images that come in blocks.

    References
    ----------
    Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance, The American Statistician 37,
    equation 2.1.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._count = 0.0
        self._mean = np.zeros(shape[0])
        self._squares = np.zeros(shape[0])

    def add(self, block: NDArray[np.float32]) -> None:
        """Take in (rows, C, H, W) pixels."""
        flat = block.reshape(len(block), block.shape[1], -1).astype(np.float64)
        count = float(flat.shape[0] * flat.shape[2])
        mean = flat.mean(axis=(0, 2))
        squares = ((flat - mean[:, None]) ** 2).sum(axis=(0, 2))
        total = self._count + count
        self._squares += squares + (mean - self._mean) ** 2 * (self._count * count / total)
        self._mean += (mean - self._mean) * (count / total)
        self._count = total

    def result(self) -> tuple[tuple[float, ...], tuple[float, ...], float]:
        """Means and standard deviations of the channels, and the standard deviation of all pixels."""
        if not self._count:
            unknown = (math.nan,) * len(self._mean)
            return unknown, unknown, math.nan
        variance = self._squares / self._count
        # All channels have equally many pixels.
        whole = float(variance.mean() + self._mean.var())
        return tuple(self._mean.tolist()), tuple(np.sqrt(variance).tolist()), math.sqrt(whole)


def pixel_digests(images: NDArray[np.generic]) -> NDArray[np.uint64]:
    """BLAKE2b of the pixels of each image (n, ...), cut to 16 bytes: (n, 2) uint64."""
    out = np.empty((len(images), 2), dtype=np.uint64)
    for row, image in enumerate(images):
        told = hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
        out[row] = np.frombuffer(told, dtype=np.uint64)
    return out


def coverage(labels: NDArray[np.int64] | None, classes: int) -> LabelCoverage | None:
    """Counts of the labels (n,) over ``classes`` classes."""
    if labels is None:
        return None
    counts = np.bincount(labels, minlength=classes)
    there = counts[counts > 0]
    return LabelCoverage(
        labelled=len(labels),
        classes=classes,
        counts=tuple(counts.tolist()),
        missing=tuple(np.flatnonzero(counts == 0).tolist()),
        imbalance=float(there.max() / there.min()),
    )


def find_duplicates(
    digests: NDArray[np.uint64], labels: NDArray[np.int64] | None, told: Callable[[int], str]
) -> Duplicates:
    """Images of equal digests (n, 2); ``told`` names a row."""
    # Stable: within a group of equal digests the first image comes first.
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ranked = digests[order]
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    group = np.cumsum(fresh) - 1
    heads = order[fresh]
    again = np.flatnonzero(~fresh)
    conflicting = 0
    if labels is not None:
        conflicting = int((labels[order[again]] != labels[heads[group[again]]]).sum())
    shown = np.unique(group[again])
    shown = shown[np.argsort(heads[shown], kind="stable")][:FIRST]
    edges = np.append(np.flatnonzero(fresh), len(order))
    first = tuple(
        tuple(told(int(row)) for row in order[edges[g] : min(edges[g] + FIRST, edges[g + 1])]) for g in shown
    )
    return Duplicates(len(again), conflicting, first)
