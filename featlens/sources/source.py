"""What a source offers, whatever it is: raw pixels by number, labels, and the images of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError, choices_hint
from featlens.seeds import derive

__all__ = ["SPLITS", "Reader", "Source", "check_label_shape", "checked_labels", "parted"]

SPLITS = ("all", "train", "held-out")
"""Splits that every source has."""


class Reader(Protocol):
    """Raw pixels of numbered images of one shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W) of all images of the source."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the raw pixels."""

    def read(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Raw pixels of the given images, (len(ids), C, H, W), in the order of ``ids``."""

    def close(self) -> None:
        """Give back the file handle; the next :meth:`read` opens it again."""


@dataclass(frozen=True)
class Source:
    """Images that can be drawn from.

    Attributes
    ----------
    name
        Last part of the location; no digest depends on it.
    reader
        Raw pixels of all images.
    labels
        (N,) int64 of all images, or None.
    part
        Ascending numbers of the images that belong to the split; None for all.
    split
        Name of the split, or an empty string where the source has none of its own.
    names
        File names of all images, or None.
    """

    name: str
    reader: Reader
    labels: NDArray[np.int64] | None = None
    part: NDArray[np.int64] | None = None
    split: str = ""
    names: Sequence[str] | None = None

    @property
    def rows(self) -> NDArray[np.int64]:
        """Ascending numbers of the images of the split."""
        return np.arange(self.reader.shape[0]) if self.part is None else self.part


def parted(source: Source, split: str | None, holdout: int | None = None) -> Source:
    """The split of a source that has none of its own: a fixed random part of its images is held out.

    Parameters
    ----------
    source
        All images.
    split
        ``"train"``, ``"held-out"``, or ``"all"`` (or None).
    holdout
        Images to hold out, by default a sixth, at most 10,000. Which ones depends on the number of images
        alone; a smaller number is a part of a larger one.

    Examples
    --------
    >>> class Ten:
    ...     shape = (10, 1, 2, 2)
    >>> held = parted(Source("x", Ten()), "held-out", 3).rows
    >>> sorted({*held, *parted(Source("x", Ten()), "train", 3).rows}) == list(range(10)), len(held)
    (True, 3)
    """
    if split not in (None, *SPLITS):
        raise UsageError(f"unknown split {split!r} of {source.name}: {choices_hint(split, SPLITS)}")
    total = source.reader.shape[0]
    count = min(10_000, total // 6) if holdout is None else holdout
    if holdout is not None and not 1 <= holdout < total:
        raise UsageError(
            f"samples: expected a hold-out of 1 to {total - 1} images of {source.name}, got {holdout}"
        )
    if split in (None, "all"):
        return source
    if not count:
        raise UsageError(
            f"samples: {source.name} has {total} images, too few to hold a sixth out; "
            "say how many with holdout, or take all"
        )
    # Not the seed of the noise: what was held out in training has to be so in every evaluation.
    order = np.random.default_rng(derive("samples", "held-out", total)).permutation(total)
    rows = np.sort(order[:count] if split == "held-out" else order[count:])
    return replace(source, part=rows, split=split)


def check_label_shape(shape: tuple[int, ...], count: int, where: str) -> None:
    """Refuse labels of another shape than (count,) or (count, 1), before they are read."""
    if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
        raise UsageError(
            f"{where}: expected one integer label an image, got labels {shape}; "
            "turn one-hot labels into integers with labels.argmax(1)"
        )
    had = shape[0] if shape else 1
    if had != count or not shape:
        raise UsageError(f"{where}: {count} images but {had} labels; give one label an image")


def checked_labels(labels: Any, count: int, where: str) -> NDArray[np.int64]:
    """``labels`` as (count,) int64, all at least 0.

    Raises
    ------
    UsageError
        Another number of labels than of images, one-hot labels, fractions, negative numbers, text.

    Examples
    --------
    >>> checked_labels([3.0, 1.0], 2, "samples")
    array([3, 1])
    """
    found = np.asarray(labels)
    check_label_shape(found.shape, count, where)
    found = found.reshape(count)
    if found.dtype.kind not in "biuf":
        raise UsageError(f"{where}: expected integer labels, got {found.dtype}; number the classes from 0")
    # NaN and infinity have no integer; the comparison below would warn of them.
    sound = np.isfinite(found) & (found >= 0) & (found < 2**62)
    kept = np.where(sound, found, 0).astype(np.int64)
    if not (sound & (kept == found)).all():
        row = int(np.argmin(sound & (kept == found)))
        raise UsageError(
            f"{where}: expected integer labels from 0, got {found[row]} for image {row}; "
            "number the classes from 0"
        )
    return kept
