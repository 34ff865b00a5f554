"""Sample sets: images, their labels, and the noise that belongs to each of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError, choices_hint
from featlens.seeds import derive, sample_noise

__all__ = ["HELD_OUT", "SPLITS", "SampleSet"]

HELD_OUT = 599
"""Number of digits that no network of a study is ever trained on (of 1,797)."""

SPLITS = ("all", "train", "held-out")


@dataclass(frozen=True)
class SampleSet:
    """Images with labels and identity; a sample's noise depends only on (seed, sample id, sigma).

    Attributes
    ----------
    name
        Where the images come from, such as ``"digits"``.
    images
        (N, C, H, W) float32 in [-1, 1].
    ids
        (N,) int64, the number of each sample in its source.
    labels
        (N,) int64 or None.
    seed
        Seed of the noise.
    digest
        SHA-256 (16 hex digits) over images, ids, labels and seed: two feature files with the same digest were
        made from the same images under the same noise.

    Examples
    --------
    >>> samples = SampleSet.load("digits", n=4)
    >>> samples.images.shape, float(samples.images.min()), float(samples.images.max())
    ((4, 1, 8, 8), -1.0, 1.0)
    """

    name: str
    images: NDArray[np.float32]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None
    seed: int = 0
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if self.images.ndim < 2 or len(self.images) != len(self.ids):
            raise UsageError(
                f"samples: expected images (N, ...) and N ids, got {self.images.shape} and "
                f"{len(self.ids)} ids"
            )
        if not np.isfinite(self.images).all():
            row = int(np.argmin(np.isfinite(self.images).reshape(len(self.images), -1).all(axis=1)))
            raise UsageError(
                f"samples: image {row} of {self.name!r} holds NaN or infinite pixels; clean the data first"
            )
        sha = hashlib.sha256(f"{self.images.shape}|{self.seed}|{self.labels is not None}".encode())
        for array in (self.images, self.ids, self.labels):
            if array is not None:
                sha.update(np.ascontiguousarray(array).tobytes())
        object.__setattr__(self, "digest", sha.hexdigest()[:16])

    @classmethod
    def load(cls, name: str = "digits", n: int | None = None, seed: int = 0, split: str = "all") -> SampleSet:
        """Load an embedded sample set.

        Parameters
        ----------
        name
            ``"digits"``: scikit-learn's 1,797 handwritten digits, (1, 8, 8) pixels.
        n
            Number of samples, drawn without replacement by ``seed``; all of the split if None.
        seed
            Seed of the noise and of the draw.
        split
            ``"train"`` (1,198 images), ``"held-out"`` (599) or ``"all"``. The split is fixed.
        """
        if name != "digits":
            raise UsageError(f"unknown sample set {name!r}: {choices_hint(name, ['digits'])}")
        if split not in SPLITS:
            raise UsageError(f"unknown split {split!r} of {name}: {choices_hint(split, SPLITS)}")
        images, labels = _digits()
        ids = _digits_split(labels, split)
        if n is not None:
            if not 1 <= n <= len(ids):
                raise UsageError(
                    f"samples: {name} ({split}) has {len(ids)} images, {n} asked for; ask for 1 to {len(ids)}"
                )
            ids = np.sort(np.random.default_rng(derive(seed, name, "draw")).choice(ids, n, replace=False))
        return cls(name=name, images=images[ids], ids=ids, labels=labels[ids], seed=seed)

    @classmethod
    def from_arrays(
        cls, images: NDArray[Any], labels: NDArray[Any] | None = None, seed: int = 0, name: str = "arrays"
    ) -> SampleSet:
        """Wrap one's own images (N, ...) and labels (N,)."""
        if labels is not None and len(labels) != len(images):
            raise UsageError(
                f"samples: {len(images)} images but {len(labels)} labels; give one label an image"
            )
        kept = None if labels is None else np.asarray(labels, dtype=np.int64)
        return cls(name, np.asarray(images, dtype=np.float32), np.arange(len(images)), kept, seed)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.images.shape[1:])

    def noise(self, sigma: float, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Standard normal noise of the given rows at ``sigma``, (rows, *shape) float32."""
        return sample_noise(self.seed, self.ids[rows], sigma, self.shape)

    def noised(self, sigma: float, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Noised images ``x0 + sigma * eps`` of the given rows, (rows, *shape) float32."""
        return np.asarray(self.images[rows] + np.float32(sigma) * self.noise(sigma, rows))


def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images.astype(np.float32) / 8.0 - 1.0)[:, None]
    return images, data.target.astype(np.int64)


def _digits_split(labels: NDArray[np.int64], split: str) -> NDArray[np.int64]:
    """Fixed split, every class in the same proportion; ids in ascending order."""
    if split == "all":
        return np.arange(len(labels))
    order = np.random.default_rng(derive("digits", "split")).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    # Every third image of the class-sorted random order is held out.
    held = np.zeros(len(labels), dtype=bool)
    held[by_class[::3]] = True
    return np.flatnonzero(held if split == "held-out" else ~held)
