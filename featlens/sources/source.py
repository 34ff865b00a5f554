"""What a source offers, whatever it is: raw pixels by number, labels, and the range of its split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError

__all__ = ["Reader", "Source", "check_label_shape", "checked_labels"]


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
    first, stop
        Range of the numbers that belong to the split.
    split
        Name of the split, or an empty string where there are none.
    labels
        (N,) int64 of all images, or None.
    """

    name: str
    reader: Reader
    first: int
    stop: int
    split: str = ""
    labels: NDArray[np.int64] | None = None


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
