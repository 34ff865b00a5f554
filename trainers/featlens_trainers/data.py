"""Training data as the loops see it: numbered images, read in batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

__all__ = ["ImageData", "TensorData", "as_data"]


class ImageData(Protocol):
    """Numbered images of one shape, in [-1, 1], with or without labels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of one image."""

    @property
    def num_labels(self) -> int:
        """Number of classes, 0 without labels."""

    def __len__(self) -> int:
        """Number of images."""

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B,) int64 row numbers on the CPU -> (B, C, H, W) float32 images and (B,) int64 labels or None."""


@dataclass(frozen=True)
class TensorData:
    """Images (N, C, H, W) and labels (N,) or None that are in memory, on any device."""

    images: Tensor
    labels: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of one image."""
        return tuple(self.images.shape[1:])

    @property
    def num_labels(self) -> int:
        """Number of classes, 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images and labels of the given rows."""
        there = rows.to(self.images.device)
        return self.images[there], None if self.labels is None else self.labels[there]


def as_data(images: ImageData | Tensor, labels: Tensor | None = None) -> ImageData:
    """``images`` itself if it is data, a tensor wrapped with its labels."""
    return TensorData(images, labels) if isinstance(images, Tensor) else images
