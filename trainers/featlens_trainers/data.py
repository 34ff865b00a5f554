"""Training data as the loops see it: numbered images, read in batches."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from featlens.errors import FeatlensError, UsageError
from featlens.files import human_bytes
from featlens.samples import Progress, SampleSet
from featlens.sources import LazyImages
from featlens_trainers.ahead import ReadAhead

__all__ = [
    "ImageData",
    "LazyData",
    "TensorData",
    "as_data",
    "load_data",
    "read_ahead",
    "require_labels",
]

HELD_BYTES = 2**30
"""Images that take at most this much in float32 are held in memory."""


class ImageData(Protocol):
    """Numbered images of one shape, in [-1, 1], with or without labels."""

    @property
    def name(self) -> str:
        """Where the images come from."""

    @property
    def digest(self) -> str:
        """What the images are, 16 hex digits; empty where nobody knows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of one image."""

    @property
    def labels(self) -> Tensor | None:
        """(N,) int64 labels of all images, or None."""

    @property
    def num_labels(self) -> int:
        """Number of classes, 0 without labels."""

    def __len__(self) -> int:
        """Number of images."""

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B,) int64 row numbers on the CPU -> (B, C, H, W) float32 images and (B,) int64 labels or None."""


@dataclass(frozen=True)
class TensorData:
    """Images (N, C, H, W) and labels (N,) or None that are in memory, on any device.

    Attributes
    ----------
    images, labels
        On the same device.
    name, digest
        Where they come from and what they are.
    classes
        Number of classes, where it is known; else that of the labels.

    Examples
    --------
    >>> data = TensorData(torch.zeros(4, 1, 8, 8), torch.tensor([0, 2, 1, 0]))
    >>> len(data), data.shape, data.num_labels, data.batch(torch.tensor([1, 2]))[1].tolist()
    (4, (1, 8, 8), 3, [2, 1])
    """

    images: Tensor
    labels: Tensor | None = None
    name: str = "tensor"
    digest: str = ""
    classes: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of one image."""
        return tuple(self.images.shape[1:])

    @property
    def num_labels(self) -> int:
        """Number of classes, 0 without labels."""
        if self.labels is None:
            return 0
        return self.classes or int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images and labels of the given rows."""
        there = rows.to(self.images.device)
        return self.images[there], None if self.labels is None else self.labels[there]

    def to(self, device: torch.device | str) -> TensorData:
        """The same data on ``device``."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)


@dataclass(frozen=True)
class LazyData:
    """Images that are read, or drawn, when a batch asks for them; memory does not grow with their number.

    Attributes
    ----------
    samples
        The images.
    device
        Where batches go.
    """

    samples: SampleSet
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _ahead: ReadAhead = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ahead", ReadAhead(self.samples))

    @property
    def name(self) -> str:
        """Where the images come from."""
        return self.samples.name

    @property
    def digest(self) -> str:
        """Digest of the sample set."""
        return self.samples.digest

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of one image."""
        return self.samples.shape

    @property
    def labels(self) -> Tensor | None:
        """(N,) int64 labels of all images, or None."""
        found = self.samples.labels
        return None if found is None else torch.from_numpy(found).to(self.device)

    @property
    def num_labels(self) -> int:
        """Number of classes, 0 without labels."""
        return self.samples.num_labels

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images and labels of the given rows, read now unless :meth:`ahead` has had the same rows read."""
        chosen = rows.cpu().numpy()
        images = torch.from_numpy(self._ahead.take(chosen))
        labels = None if self.samples.labels is None else torch.from_numpy(self.samples.labels[chosen])
        return self._placed(images), None if labels is None else self._placed(labels)

    def _placed(self, values: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return values.to(self.device)
        return values.pin_memory().to(self.device, non_blocking=True)

    def ahead(self, *rows: Tensor) -> None:
        """Have batches read in the background, for :meth:`batch` to take by the same row numbers.

        The batches of this call and of the one before it wait in memory until they are taken; what was
        planned earlier is dropped. What goes wrong in the background is raised by :meth:`batch`.
        """
        self._ahead.plan([part.cpu().numpy() for part in rows])

    def to(self, device: torch.device | str) -> LazyData:
        """The same data, its batches on ``device``."""
        moved = replace(self, device=torch.device(device))
        # What is being read is not on any device yet.
        object.__setattr__(moved, "_ahead", self._ahead)
        return moved


def load_data(
    location: os.PathLike[str] | str,
    split: str = "train",
    n: int | None = None,
    seed: int = 0,
    values: str | None = None,
    holdout: int | None = None,
    progress: Progress | None = None,
    hold: int = HELD_BYTES,
) -> TensorData | LazyData:
    """Images of a sample set for a training loop: in memory if they are small, else read batch by batch.

    Parameters
    ----------
    location, split, n, seed, values, holdout, progress
        As in :meth:`featlens.SampleSet.load`; every source has the splits ``"train"`` and ``"held-out"``.
    hold
        Bytes of float32 images that are held in memory, by default 1 GiB.

    Returns
    -------
    TensorData or LazyData
        On the CPU; ``.to(device)`` places it, or its batches.

    Raises
    ------
    FeatlensError
        Damaged, unequal, infinite or out-of-range images; an empty folder; too many images in a file that
        can only be read forwards.
    UsageError
        No such source, split or number of images.

    Examples
    --------
    >>> data = load_data("digits")
    >>> len(data), data.shape, data.num_labels
    (1198, (1, 8, 8), 10)
    """
    samples = SampleSet.load(location, n, seed, split, values, progress, holdout)
    images = samples.images
    size = 4 * math.prod(images.shape)
    if size > hold:
        if isinstance(images, LazyImages) and images.forwards:
            raise FeatlensError(
                f"data: {samples.name} holds {human_bytes(size)} of images and can only be read forwards, "
                "training reads them in random order; save them as .npy, or as .h5 with chunks of few images"
            )
        return LazyData(samples)
    labels = None if samples.labels is None else torch.from_numpy(samples.labels)
    held = torch.from_numpy(np.ascontiguousarray(images[:]))
    return TensorData(held, labels, samples.name, samples.digest, samples.num_labels)


def as_data(images: ImageData | Tensor, labels: Tensor | None = None) -> ImageData:
    """``images`` itself if it is data, a tensor wrapped with its labels.

    Raises
    ------
    UsageError
        No images, not finite, labels of another number, or labels beside data that brings its own.
    """
    if not isinstance(images, Tensor):
        if labels is not None:
            raise UsageError(f"data: {images.name} brings its own labels; give labels with tensors only")
        return images
    if images.ndim < 2 or not len(images):
        raise UsageError(f"data: expected images (N, C, H, W), N at least 1, got {tuple(images.shape)}")
    if labels is not None and labels.shape != images.shape[:1]:
        raise UsageError(
            f"data: {len(images)} images but labels of shape {tuple(labels.shape)}; give one label an image"
        )
    sound = torch.isfinite(images).flatten(1).all(dim=1)
    if not bool(sound.all()):
        row = int(torch.argmin(sound.to(torch.uint8)))
        raise UsageError(f"data: image {row} holds NaN or infinite pixels; clean the data first")
    return TensorData(images, labels)


def require_labels(data: ImageData, classes: int, who: str) -> None:
    """Check that ``data`` has labels for a network of ``classes`` classes, where it has any.

    Raises
    ------
    UsageError
        The data has no labels, or labels beyond the classes.
    """
    if not classes:
        return
    if data.labels is None:
        raise UsageError(
            f"{who}: expected labels of {classes} classes, but {data.name} has none; give labelled images, "
            "or make the network unconditional (labels = 0)"
        )
    if data.num_labels > classes:
        raise UsageError(
            f"{who}: the network has {classes} classes, but {data.name} has labels up to "
            f"{data.num_labels - 1}; set labels = {data.num_labels}"
        )


# --- reading ahead ------------------------------------------------------------------------------------------


def read_ahead(
    data: ImageData,
    rows_at: Callable[[int], Tensor],
    start: int,
    end: int,
    places: Sequence[slice] | None = None,
) -> None:
    """Have the next step's images read in the background, where the data is read as asked for.

    To be called once a step, by loops and by one's own. It changes when images are read, never which.

    Parameters
    ----------
    data
        What the step will take its batch from; of data in memory nothing is read.
    rows_at
        Row numbers of the batch that starts after a number of images, such as
        :class:`~featlens_trainers.batches.Batches`.
    start
        Images seen when the next step begins.
    end
        Images after which no step begins.
    places
        Parts in which the step will ask for its batch; by default all at once.

    Examples
    --------
    >>> rows_at = lambda images: torch.arange(images, images + 2)
    >>> read_ahead(TensorData(torch.zeros(4, 1, 8, 8)), rows_at, start=2, end=4)
    """
    if not isinstance(data, LazyData) or start >= end:
        return
    rows = rows_at(start)
    data.ahead(*([rows] if places is None else [rows[place] for place in places]))
