"""Read a set of images through once and report what it holds."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import FeatlensError, UsageError
from featlens.inspection.report import DataReport, Duplicates, LabelCoverage
from featlens.inspection.statistics import FIRST, Spread, coverage, find_duplicates, pixel_digests
from featlens.samples import Progress, SampleSet, draw_rows
from featlens.seeds import derive
from featlens.sources import LazyImages, open_source
from featlens.sources.lazy import block_rows
from featlens.sources.picture import BOMB
from featlens.sources.pixels import Pixels
from featlens.sources.shapes import find_shapes

__all__ = ["inspect_data"]

WHY_SIGMA_DATA = (
    "standard deviation of all pixels: with it the preconditioning of EDM (arXiv 2206.00364, table 1) gives "
    "the network inputs and targets of variance 1 at every sigma"
)


@dataclass(frozen=True)
class _Opened:
    """Images to read: raw blocks, and what belongs to them."""

    name: str
    split: str
    total: int
    ids: NDArray[np.int64]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    raw: Callable[[NDArray[np.int64]], NDArray[Any]]
    labels: NDArray[np.int64] | None
    classes: int
    names: Sequence[str] | None
    close: Callable[[], None]

    def told(self, row: int) -> str:
        """Name of an image, or its number."""
        number = int(self.ids[row])
        return str(number) if self.names is None else self.names[number]


def inspect_data(
    location: os.PathLike[str] | str,
    n: int | None = None,
    split: str | None = None,
    seed: int = 0,
    values: str | None = None,
    holdout: int | None = None,
    progress: Progress | None = None,
) -> DataReport:
    """What the images at ``location`` hold; reads each once, in blocks, so memory hardly grows with them.

    Parameters
    ----------
    location, n, split, seed, values, holdout, progress
        As in :meth:`featlens.SampleSet.load`: the images read are those that it would load, but numbers that
        do not fit are reported and not refused. 16 bytes an image are kept to find duplicates.

    Raises
    ------
    FeatlensError
        Images that cannot be read at all: damaged files, unequal sizes, an empty folder.
    UsageError
        No such source, split or number of images.

    Examples
    --------
    >>> report = inspect_data("digits", split="train")
    >>> report.read, report.shape, report.range, round(report.sigma_data, 2), report.labels.classes
    (1198, (1, 8, 8), (-1.0, 1.0), 0.75, 10)
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=BOMB)
        opened = _open(location, n, split, seed, values, holdout)
        try:
            return _report(opened, values, progress)
        finally:
            opened.close()


def _open(
    location: os.PathLike[str] | str,
    n: int | None,
    split: str | None,
    seed: int,
    values: str | None,
    holdout: int | None,
) -> _Opened:
    if location == "digits" or find_shapes(location) is not None:
        samples = SampleSet.load(location, n, seed, split, values, holdout=holdout)
        images = samples.images
        drawn = isinstance(images, LazyImages)
        return _Opened(
            samples.name,
            split or ("train" if drawn else ""),
            len(samples) if drawn or n is None else len(SampleSet.load(location, split=split)),
            samples.ids,
            samples.shape,
            np.dtype(np.uint8 if drawn else np.float32),
            images.raw if isinstance(images, LazyImages) else lambda rows: np.asarray(images[rows]),
            samples.labels,
            samples.num_labels,
            None,
            lambda: None,
        )
    source = open_source(location, split, holdout)
    rows = source.rows
    ids = rows[draw_rows(len(rows), n, derive(seed, "samples", "draw"), source.name, source.split)]
    reader, labels = source.reader, source.labels
    return _Opened(
        source.name,
        source.split,
        len(rows),
        ids,
        tuple(reader.shape[1:]),
        reader.dtype,
        lambda some: reader.read(ids[some]),
        None if labels is None else labels[ids],
        0 if labels is None else int(labels.max()) + 1,
        source.names,
        reader.close,
    )


def _report(opened: _Opened, values: str | None, progress: Progress | None) -> DataReport:
    pixels, advice = _pixels(opened, values)
    spread = Spread(opened.shape)
    low, high = math.inf, -math.inf
    digests = np.empty((len(opened.ids), 2), dtype=np.uint64)
    odd: list[int] = []
    for rows, raw in _blocks(opened, progress):
        digests[rows] = pixel_digests(raw)
        sound = np.isfinite(raw).reshape(len(raw), -1).all(axis=1)
        odd.extend(rows[~sound].tolist())
        kept = raw if sound.all() else raw[sound]
        if len(kept):
            low, high = min(low, float(kept.min())), max(high, float(kept.max()))
            spread.add(pixels.convert(kept))
    mean, std, sigma_data = spread.result()
    advice += _fit(pixels, low, high)
    labels = coverage(opened.labels, opened.classes)
    duplicates = find_duplicates(digests, opened.labels, opened.told)
    advice += _worries(labels, duplicates, odd, sigma_data)
    return DataReport(
        name=opened.name,
        split=opened.split,
        total=opened.total,
        read=len(opened.ids),
        shape=opened.shape,
        dtype=str(opened.dtype),
        values=pixels.values,
        range=(low, high),
        mean=mean,
        std=std,
        sigma_data=sigma_data,
        why=WHY_SIGMA_DATA,
        labels=labels,
        duplicates=duplicates,
        not_finite=len(odd),
        first_not_finite=tuple(opened.told(row) for row in odd[:FIRST]),
        advice=tuple(advice),
    )


def _blocks(opened: _Opened, progress: Progress | None) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    count = len(opened.ids)
    step = block_rows((count, *opened.shape))
    for start in range(0, count, step):
        rows = np.arange(start, min(start + step, count))
        yield rows, opened.raw(rows)
        if progress is not None:
            progress(start + len(rows), count)


def _pixels(opened: _Opened, values: str | None) -> tuple[Pixels, list[str]]:
    """How numbers become pixels; as they are, with advice, where that has to be said first."""
    try:
        return Pixels(opened.name, opened.dtype, values), []
    except UsageError as error:
        if values is not None or opened.dtype.kind not in "biuf":
            raise
        return Pixels(opened.name, opened.dtype, "any"), [str(error).removeprefix("samples: ")]


def _fit(pixels: Pixels, low: float, high: float) -> list[str]:
    """What loading would refuse in the range of the raw numbers."""
    if not low <= high:
        return []
    ends = pixels.convert(np.array([[low], [high]]).astype(pixels.dtype))
    try:
        pixels.check(ends, 0, np.arange(2))
        pixels.judge(float(ends.min()), float(ends.max()))
    except FeatlensError as error:
        said = str(error).removeprefix("samples: ")
        return [said.replace(" (image 0)", "").replace(" (image 1)", "")]
    return []


def _worries(
    labels: LabelCoverage | None, duplicates: Duplicates, odd: list[int], sigma_data: float
) -> list[str]:
    said = []
    if odd:
        said.append(f"images with NaN or infinite pixels: {len(odd)}; loading refuses them, clean them first")
    if labels is not None and labels.missing:
        said.append(
            f"{len(labels.missing)} of {labels.classes} classes have no image: a conditional model never "
            "learns them"
        )
    if labels is not None and labels.imbalance >= 2:
        said.append(
            f"the largest class has {labels.imbalance:.3g} times the images of the smallest: consider "
            "class-balanced batches"
        )
    if duplicates.count:
        said.append(
            f"exact duplicates of earlier images: {duplicates.count}; where a split shares them, held-out "
            "numbers flatter"
        )
    if duplicates.conflicting:
        said.append(f"duplicates with another label than the image they repeat: {duplicates.conflicting}")
    if sigma_data == 0:
        said.append("all pixels are equal: there is nothing to learn")
    return said
