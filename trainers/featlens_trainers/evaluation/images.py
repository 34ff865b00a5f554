"""Images to measure, read in batches: a sample set or data, whatever its size, and their features."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featlens.errors import FeatlensError, UsageError
from featlens.files import make_folder
from featlens.samples import SampleSet
from featlens_trainers.data import ImageData
from featlens_trainers.evaluation.extractors import Extractor
from featlens_trainers.evaluation.sets import first_not_finite
from featlens_trainers.snapshots import read_tensors, write_tensors

__all__ = ["Images", "cached_features", "features", "images_of", "load_images"]

_log = logging.getLogger(__name__)

BATCH = 500

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Images:
    """Images that can be read in batches.

    Attributes
    ----------
    name
        What the user calls them.
    shape
        (C, H, W).
    count
        Number of images.
    read
        ``read(start, stop)``: (stop - start, C, H, W) float32 in [-1, 1].
    """

    name: str
    shape: tuple[int, ...]
    count: int
    read: Callable[[int, int], Tensor]

    def batches(self, batch: int = BATCH) -> Iterator[tuple[int, Tensor]]:
        """Number of its first image, and each batch."""
        for start in range(0, self.count, batch):
            yield start, self.read(start, min(start + batch, self.count))

    def digest(self) -> str:
        """16 hex digits over all pixels and their shape, in order."""
        sha = hashlib.sha256(f"{(self.count, *self.shape)}".encode())
        for _, batch in self.batches():
            sha.update(np.ascontiguousarray(batch.cpu().numpy()).tobytes())
        return sha.hexdigest()[:16]


def images_of(source: SampleSet | ImageData | Tensor, name: str, most: int | None = None) -> Images:
    """Images of a sample set, of training data or of a tensor (N, C, H, W); the first ``most`` of them."""
    shape = tuple(source.shape[1:] if isinstance(source, Tensor) else source.shape)
    if len(shape) != 3:
        raise UsageError(f"{name}: expected images (channels, height, width), got {shape}")
    count = len(source) if most is None else min(most, len(source))

    def read(start: int, stop: int) -> Tensor:
        if isinstance(source, Tensor):
            return source[start:stop].float()
        if isinstance(source, SampleSet):
            return torch.from_numpy(np.ascontiguousarray(source.images[start:stop]))
        return source.batch(torch.arange(start, stop))[0].float()

    return Images(name, shape, count, read)


def load_images(
    location: str, split: str | None = None, n: int | None = None, values: str | None = None
) -> Images:
    """Images of any location that :meth:`featlens.SampleSet.load` takes; ``n`` drawn by seed 0."""
    samples = SampleSet.load(location, n, split=split, values=values)
    return images_of(samples, location if split is None else f"{location} ({split})")


def features(
    extractor: Extractor, images: Images, progress: Progress | None = None, batch: int = BATCH
) -> NDArray[np.float64]:
    """Features (N, d) of all images, computed batch by batch.

    Raises
    ------
    FeatlensError
        Features that are not finite; names the image.
    """
    require_shape(extractor, images.shape, images.name)
    parts = []
    for start, part in images.batches(batch):
        parts.append(finite(extractor(part), start, images.name))
        if progress is not None:
            progress(start + len(part), images.count)
    return np.concatenate(parts)


def require_shape(extractor: Extractor, shape: tuple[int, ...], name: str) -> None:
    """Refuse images of another shape than the extractor takes."""
    if extractor.shape is not None and tuple(shape) != tuple(extractor.shape):
        raise UsageError(
            f"the {extractor.name} takes images of shape {tuple(extractor.shape)}, those of {name} have "
            f"{tuple(shape)}; give another extractor with --extractor"
        )


def finite(rows: NDArray[np.float64], start: int, name: str) -> NDArray[np.float64]:
    """``rows`` themselves, or an error that names the first image whose features are not finite."""
    row = first_not_finite(rows)
    if row is not None:
        raise FeatlensError(
            f"the features of image {start + row} of {name} hold NaN or infinity; "
            "look at that image, or use another extractor"
        )
    return rows


def cached_features(
    extractor: Extractor,
    images: Images,
    folder: os.PathLike[str] | str | None,
    progress: Progress | None = None,
    batch: int = BATCH,
) -> tuple[NDArray[np.float64], str]:
    """Features (N, d) and digest of images, kept in ``folder`` by digest of extractor and images.

    Pixels are read for their digest every time; features are computed once. A file that is damaged or does
    not fit is computed again.
    """
    digest = images.digest()
    if folder is None:
        return features(extractor, images, progress, batch), digest
    require_shape(extractor, images.shape, images.name)
    path = Path(folder) / f"features-{extractor.digest}-{digest}.safetensors"
    about = {"kind": "features", "extractor": extractor.digest, "images": digest, "n": images.count}
    if path.is_file():
        try:
            tensors, said = read_tensors(path)
            found = tensors["features"].numpy()
            if said == about and found.ndim == 2 and len(found) == images.count:
                return finite(np.asarray(found, dtype=np.float64), 0, images.name), digest
            problem = "it is of other images"
        except (FeatlensError, KeyError, ValueError) as error:
            problem = str(error)
        _log.warning("%s: the features are computed again (%s)", path, problem)
    rows = features(extractor, images, progress, batch)
    make_folder(path.parent)
    write_tensors(path, {"features": torch.from_numpy(rows)}, about)
    return rows, digest
