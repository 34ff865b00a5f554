"""What is found in a set of images, as plain values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["DataReport", "Duplicates", "LabelCoverage"]


@dataclass(frozen=True)
class LabelCoverage:
    """Labels of the images that were read.

    Attributes
    ----------
    labelled
        Number of images with a label.
    classes
        Number of classes: the largest label of the whole source plus 1.
    counts
        Images of each class, from class 0.
    missing
        Classes without an image.
    imbalance
        Images of the largest class over those of the smallest that has any.
    """

    labelled: int
    classes: int
    counts: tuple[int, ...]
    missing: tuple[int, ...]
    imbalance: float


@dataclass(frozen=True)
class Duplicates:
    """Images whose pixels are equal to those of an earlier one.

    Attributes
    ----------
    count
        Their number.
    conflicting
        How many of them have another label than the earlier one.
    first
        Names, or numbers, of the first few groups of equal images.
    """

    count: int
    conflicting: int
    first: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class DataReport:
    """What a set of images holds; ``to_dict`` gives plain numbers for JSON.

    Attributes
    ----------
    name, split
        Where the images come from, and which part of them; an empty split means all.
    total, read
        Images of the part, and how many of them were read.
    shape, dtype
        (C, H, W) of an image, and the type of its stored numbers.
    values
        What the stored numbers were taken for, as in ``SampleSet.load``.
    range
        Smallest and largest stored number.
    mean, std
        Of each channel, in the pixels that a network sees.
    sigma_data
        Standard deviation of all these pixels, the suggestion for ``sigma_data``; ``why`` says why.
    labels
        Coverage of the labels, or None without labels.
    duplicates
        Exact duplicates among the images read.
    not_finite
        Number of images with NaN or infinite pixels, which are left out of all statistics.
    first_not_finite
        Names, or numbers, of the first few of these.
    advice
        What to look at before training, one line each.
    """

    name: str
    split: str
    total: int
    read: int
    shape: tuple[int, ...]
    dtype: str
    values: str
    range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sigma_data: float
    why: str
    labels: LabelCoverage | None
    duplicates: Duplicates
    not_finite: int
    first_not_finite: tuple[str, ...]
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    # JSON knows no NaN: of no image nothing is known.
    return None if isinstance(value, float) and not math.isfinite(value) else value
