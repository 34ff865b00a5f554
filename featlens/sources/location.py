"""From a location, such as ``images/`` or ``x.h5:group/x``, to a source."""

from __future__ import annotations

import os
from pathlib import Path

from featlens.errors import FeatlensError, UsageError, choices_hint
from featlens.sources.picture import SUFFIXES
from featlens.sources.shapes import SIDES
from featlens.sources.source import Source, parted

__all__ = ["open_source"]

_KEYED = (".npz", ".h5", ".hdf5")
_TAR = (".tar.gz", ".tgz")
_PICKLES = (".pkl", ".pickle", ".pt", ".pth")
_KNOWN = "expected a folder, .zip, .npy, .npz, .h5, .hdf5 or cifar-10-binary.tar.gz"


def open_source(
    location: os.PathLike[str] | str, split: str | None = None, holdout: int | None = None
) -> Source:
    """The images at ``location``, none of which is read yet but the first.

    Parameters
    ----------
    location
        Path of a folder or file; arrays inside ``.npz`` and HDF5 files as ``file:KEY``; ``hf:NAME`` for data
        sets of the ``datasets`` package.
    split
        Part of the images: ``"train"``, ``"held-out"`` or ``"all"``, and what the source itself has.
    holdout
        Number of images to hold out, where the source has no held-out images of its own.

    Raises
    ------
    UsageError
        Nothing there, of an unknown kind, or without such a split.
    FeatlensError
        Damaged, or in a form that cannot be taken as it is.
    """
    if isinstance(location, str) and location.startswith("hf:"):
        from featlens.sources.hub import open_hf

        source = open_hf(location, split)
    else:
        source = _open(*_parted(location), split)
    if not source.split:
        return parted(source, split, holdout)
    if holdout is not None:
        raise UsageError(f"samples: {source.name} has held-out images of its own; leave holdout out")
    return source


def _open(path: Path, key: str | None, split: str | None) -> Source:
    """All images, or the split where the source itself has splits."""
    name = path.name.lower()
    if path.is_dir():
        from featlens.sources.cifar import is_cifar_folder, open_cifar
        from featlens.sources.images import open_folder

        return open_cifar(path, split) if is_cifar_folder(path) else open_folder(path)
    if name.endswith(_TAR):
        from featlens.sources.cifar import open_cifar

        return open_cifar(path, split)
    if name.endswith(".zip"):
        from featlens.sources.images import open_zip_images

        return open_zip_images(path)
    if name.endswith((".npy", ".npz")):
        from featlens.sources.arrays import open_npy, open_npz

        return open_npz(path, key) if name.endswith(".npz") else open_npy(path)
    if name.endswith((".h5", ".hdf5")):
        from featlens.sources.hdf5 import open_hdf5

        return open_hdf5(path, key)
    if name.endswith(_PICKLES):
        raise FeatlensError(f"{path}: pickles are not read (they can run code); save the images as .npy")
    if name.endswith(SUFFIXES):
        raise UsageError(f"samples: {path} is one image; give the folder that it lies in")
    raise UsageError(f"samples: cannot read {path}; {_KNOWN}")


def _parted(location: os.PathLike[str] | str) -> tuple[Path, str | None]:
    """Path and name of the array in it."""
    text = os.fspath(location)
    if not text:
        raise UsageError(f"samples: the location is empty; {_KNOWN}")
    path = Path(text)
    if path.exists():
        return path, None
    for suffix in _KEYED:
        before, found, key = text.partition(f"{suffix}:")
        if found and Path(before + suffix).is_file():
            return Path(before + suffix), key
    hint = choices_hint(text, ["digits", *(f"shapes{side}" for side in SIDES)])
    if "did you mean" in hint:
        raise UsageError(f"unknown sample set {text!r}: {hint}")
    raise UsageError(
        f"unknown sample set {text!r}: no such file or folder; {_KNOWN}, or digits, "
        "shapes16, shapes32 or shapes64"
    )
