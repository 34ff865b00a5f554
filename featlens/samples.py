"""Sample sets: images, their labels, and the noise that belongs to each of them."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError, choices_hint
from featlens.seeds import derive, sample_noise
from featlens.sources import LazyImages, NoImages, open_source
from featlens.sources.lazy import block_rows
from featlens.sources.picture import BOMB
from featlens.sources.pixels import Pixels
from featlens.sources.shapes import Shapes, find_shapes
from featlens.sources.source import SPLITS, checked_labels

__all__ = ["HELD_OUT", "SPLITS", "SampleSet", "draw_rows"]

HELD_OUT = 599
"""Number of digits that no network of a study is ever trained on (of 1,797)."""

Progress = Callable[[int, int], None]
"""Called with (images read, images in all)."""

Rows = slice | NDArray[np.integer[Any]]


@dataclass(frozen=True)
class SampleSet:
    """Images with labels and identity; a sample's noise depends only on (seed, sample id, sigma).

    Attributes
    ----------
    name
        Where the images come from, such as ``"digits"``.
    images
        (N, C, H, W) float32 in [-1, 1]: an array, or for files :class:`~featlens.sources.LazyImages`, indexed
        like an array and read at that moment.
    ids
        (N,) int64, the number of each sample in its source.
    labels
        (N,) int64 or None.
    seed
        Seed of the noise.
    classes
        Number of classes of the whole source, where these images are a part of it; else 0.
    factors
        What is known of each image, by name, each (N,) numbers: of drawn shapes, or one's own; else None.
    digest
        SHA-256 (16 hex digits) over images, ids, labels, seed and, where there are any, factors: two feature
        files with the same digest were made from the same images under the same noise.

    Examples
    --------
    >>> samples = SampleSet.load("digits", n=4)
    >>> samples.images.shape, float(samples.images.min()), float(samples.images.max())
    ((4, 1, 8, 8), -1.0, 1.0)
    """

    name: str
    images: NDArray[np.float32] | LazyImages | NoImages
    ids: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None
    seed: int = 0
    digest: str = field(init=False)
    progress: InitVar[Progress | None] = None
    factors: Mapping[str, NDArray[Any]] | None = field(default=None, kw_only=True)
    classes: int = field(default=0, kw_only=True)

    def __post_init__(self, progress: Progress | None) -> None:
        if self.images.ndim < 2 or len(self.images) != len(self.ids):
            raise UsageError(
                f"samples: expected images (N, ...) and N ids, got {self.images.shape} and "
                f"{len(self.ids)} ids"
            )
        if self.labels is not None and np.shape(self.labels) != (len(self.ids),):
            raise UsageError(f"samples: {len(self.ids)} images but labels of shape {np.shape(self.labels)}")
        object.__setattr__(self, "factors", _checked_factors(self.factors, len(self.ids)))
        sha = hashlib.sha256(f"{self.images.shape}|{self.seed}|{self.labels is not None}".encode())
        self._read_through(sha.update, progress)
        for array in (self.ids, self.labels):
            if array is not None:
                sha.update(np.ascontiguousarray(array).tobytes())
        for name, values in sorted((self.factors or {}).items()):
            sha.update(f"|{name}|{values.dtype.str}|".encode() + np.ascontiguousarray(values).tobytes())
        object.__setattr__(self, "digest", sha.hexdigest()[:16])

    def _read_through(self, feed: Callable[[bytes], object], progress: Progress | None) -> None:
        """Feed all pixels to the digest, in blocks of bounded size, and check their values on the way."""
        if isinstance(self.images, NoImages):
            feed(b"no images")
            return
        if isinstance(self.images, LazyImages) and self.images.recipe is not None:
            # Drawn images follow from their numbers; drawing all of them would tell nothing new.
            feed(self.images.recipe)
            return
        pixels = self.images.pixels if isinstance(self.images, LazyImages) else None
        step = block_rows(self.images.shape)
        low, high = math.inf, -math.inf
        for start in range(0, len(self), step):
            block = np.ascontiguousarray(self.images[start : start + step])
            finite = np.isfinite(block)
            if not finite.all():
                row = start + int(np.argmin(finite.reshape(len(block), -1).all(axis=1)))
                raise UsageError(
                    f"samples: image {self.ids[row]} of {self.name!r} holds NaN or infinite pixels; "
                    "clean the data first"
                )
            if pixels is not None and block.size:
                pixels.check(block, start, self.ids)
                low, high = min(low, float(block.min())), max(high, float(block.max()))
            feed(block.tobytes())
            if progress is not None:
                progress(start + len(block), len(self))
        if pixels is not None:
            pixels.judge(low, high)

    @classmethod
    def load(
        cls,
        location: os.PathLike[str] | str = "digits",
        n: int | None = None,
        seed: int = 0,
        split: str | None = None,
        values: str | None = None,
        progress: Progress | None = None,
        holdout: int | None = None,
    ) -> SampleSet:
        """Load images of a file or folder, digits or shapes, and read through the chosen ones once.

        Parameters
        ----------
        location
            ``"digits"``: scikit-learn's 1,797 handwritten digits, (1, 8, 8) pixels. ``"shapes16"``,
            ``"shapes32"``, ``"shapes64"``: drawn shapes with known factors, in colour; other images with
            ``"shapes32:seed=1"``. Else a path: a folder of images of one size, an EDM zip or folder with
            ``dataset.json``, ``.npy``, ``.npz``, ``.h5`` (also ``file.h5:dataset``), or CIFAR-10
            (``cifar-10-binary.tar.gz`` or ``cifar-10-batches-bin``). Or ``"hf:NAME"``, a data set of the
            ``datasets`` package that is on this machine.
        n
            Number of samples, drawn without replacement by ``seed``; all of the split if None. Of shapes the
            first ``n`` (50,000 for training and 10,000 held out if None).
        seed
            Seed of the noise and of the draw.
        split
            ``"train"``, ``"held-out"`` or ``"all"`` (also if None), fixed splits whatever the seed. Digits:
            1,198 images for training, 599 held out. CIFAR-10: held out are the test images (``"test"``).
            Shapes: there is no end to either, and None means ``"train"``. Others: see ``holdout``.
        values
            What numbers the source holds: ``"[-1,1]"``, ``"[0,1]"``, ``"[0,255]"``, or ``"any"`` to take them
            as they are (latents of autoencoders). If None, 8-bit pixels are 0 to 255 and floats -1 to 1.
        progress
            Called with (images read, images in all) while the images are read.
        holdout
            Number of images to hold out where the source itself has none held out: by default a sixth, at
            most 10,000, chosen at random but always the same.

        Raises
        ------
        FeatlensError
            Damaged, unequal or out-of-range images, named by file or number; labels that do not fit.
        UsageError
            No such source, split or number of images.
        """
        shapes = find_shapes(location)
        if shapes is not None or location == "digits":
            if values is not None or holdout is not None:
                odd = "values" if values is not None else "held-out images"
                leave = "values" if values is not None else "holdout"
                raise UsageError(f"samples: the {odd} of {location} are known; leave {leave} out")
            if shapes is not None:
                return cls._load_shapes(shapes.part(split or "train"), n, seed)
            return cls._load_digits(n, seed, split or "all")
        with warnings.catch_warnings():
            # Pillow's warning about absurd sizes must not be overlooked: it becomes one line of ours.
            warnings.filterwarnings("error", message=BOMB)
            source = open_source(location, split, holdout)
            pixels = Pixels(source.name, source.reader.dtype, values)
            key = derive(seed, "samples", "draw")
            ids = source.rows[draw_rows(len(source.rows), n, key, source.name, source.split)]
            labels = None if source.labels is None else source.labels[ids]
            classes = 0 if source.labels is None else int(source.labels.max()) + 1
            images = LazyImages(source.reader, ids, pixels)
            images.hold(progress)
            told = None if images.held else progress
            return cls(source.name, images, ids, labels, seed, told, classes=classes)

    @classmethod
    def _load_shapes(cls, shapes: Shapes, n: int | None, seed: int) -> SampleSet:
        ids = shapes.numbers(n)
        factors = shapes.factors(ids)
        images = LazyImages(shapes, ids, Pixels(shapes.name, shapes.dtype))
        labels = factors["shape"]
        return cls(shapes.name, images, ids, labels, seed, factors=factors, classes=shapes.classes)

    @classmethod
    def _load_digits(cls, n: int | None, seed: int, split: str) -> SampleSet:
        if split not in SPLITS:
            raise UsageError(f"unknown split {split!r} of digits: {choices_hint(split, SPLITS)}")
        images, labels = _digits()
        ids = _digits_split(labels, split)
        ids = ids[draw_rows(len(ids), n, derive(seed, "digits", "draw"), "digits", split)]
        return cls("digits", images[ids], ids, labels[ids], seed, classes=10)

    @classmethod
    def from_arrays(
        cls,
        images: NDArray[Any],
        labels: NDArray[Any] | None = None,
        seed: int = 0,
        name: str = "arrays",
        factors: Mapping[str, NDArray[Any]] | None = None,
    ) -> SampleSet:
        """Wrap one's own images (N, ...), taken as they are, integer labels (N,) and factors (N,) by name."""
        kept = None if labels is None else checked_labels(labels, len(images), "samples")
        pixels = np.asarray(images, dtype=np.float32)
        return cls(name, pixels, np.arange(len(images)), kept, seed, factors=factors)

    @classmethod
    def noise_only(
        cls, n: int, shape: Sequence[int], seed: int = 0, labels: NDArray[Any] | None = None
    ) -> SampleSet:
        """Samples without images, for generators that start from noise; zeros stand for the images.

        Parameters
        ----------
        n
            Number of samples, with the ids 0 to n - 1.
        shape
            Shape of one image, such as (3, 32, 32).
        seed
            Seed of the noise.
        labels
            (n,) integers for conditional models.

        Examples
        --------
        >>> samples = SampleSet.noise_only(2, (1, 4, 4))
        >>> samples.latents(2.5).shape
        (2, 1, 4, 4)
        """
        if n < 1 or not shape or min(shape) < 1:
            raise UsageError(
                f"samples: expected numbers above 0 for samples and shape, got {n} of {tuple(shape)}"
            )
        kept = None if labels is None else checked_labels(labels, n, "samples")
        return cls("noise", NoImages((n, *map(int, shape))), np.arange(n), kept, seed)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.images.shape[1:])

    @property
    def num_labels(self) -> int:
        """Number of classes of the source, 0 without labels."""
        if self.labels is None or not len(self.labels):
            return self.classes
        return max(self.classes, int(self.labels.max()) + 1)

    def noise(self, sigma: float, rows: Rows = slice(None)) -> NDArray[np.float32]:
        """Standard normal noise of the given rows at ``sigma``, (rows, *shape) float32."""
        return sample_noise(self.seed, self.ids[rows], sigma, self.shape)

    def noised(self, sigma: float, rows: Rows = slice(None)) -> NDArray[np.float32]:
        """Noised images ``x0 + sigma * eps`` of the given rows, (rows, *shape) float32."""
        return np.asarray(self.images[rows] + np.float32(sigma) * self.noise(sigma, rows))

    def latents(self, sigma: float, rows: Rows = slice(None)) -> NDArray[np.float32]:
        """Noise ``sigma * eps`` fed to a one-step generator for the given rows, (rows, *shape) float32."""
        return np.asarray(np.float32(sigma) * self.noise(sigma, rows))


def draw_rows(total: int, n: int | None, key: int, name: str, split: str) -> NDArray[np.int64]:
    """``n`` of the numbers below ``total``, ascending; all of them if ``n`` is None."""
    if n is None:
        return np.arange(total)
    if not 1 <= n <= total:
        where = f"{name} ({split})" if split else name
        raise UsageError(f"samples: {where} has {total} images, {n} asked for; ask for 1 to {total}")
    return np.sort(np.random.default_rng(key).choice(total, n, replace=False))


def _checked_factors(
    factors: Mapping[str, NDArray[Any]] | None, count: int
) -> dict[str, NDArray[Any]] | None:
    """Factors as a dictionary of (count,) numbers."""
    if factors is None:
        return None
    found = {str(name): np.asarray(values) for name, values in factors.items()}
    for name, values in found.items():
        if values.shape != (count,) or values.dtype.kind not in "biuf":
            raise UsageError(
                f"samples: expected ({count},) numbers for the factor {name!r}, got {values.dtype} "
                f"{values.shape}; give one number an image"
            )
    return found


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
