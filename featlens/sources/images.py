"""Folders and zips of image files, with labels by folder or by ``dataset.json``."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featlens.errors import FeatlensError
from featlens.sources.arrays import check_member
from featlens.sources.picture import SUFFIXES, decode
from featlens.sources.records import Handle, reading
from featlens.sources.source import Source, checked_labels

__all__ = ["open_folder", "open_zip_images"]

_MOST = 2**28


class _Files(Protocol):
    """Files by name, in a folder or a zip."""

    def where(self, name: str) -> str:
        """A file's name in messages."""

    def contents(self, name: str) -> bytes:
        """All bytes of a file."""

    def close(self) -> None:
        """Give handles back."""


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def where(self, name: str) -> str:
        return str(self.root / name)

    def contents(self, name: str) -> bytes:
        with reading(self.where(name)):
            return (self.root / name).read_bytes()

    def close(self) -> None:
        pass


class _Zip:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Handle[zipfile.ZipFile] = Handle(partial(zipfile.ZipFile, path))

    def where(self, name: str) -> str:
        return f"{self.path}:{name}"

    def contents(self, name: str) -> bytes:
        with reading(self.where(name)), self._handle.use() as archive:
            info = archive.getinfo(name)
            check_member(info, self.where(name))
            if info.file_size > _MOST:
                raise FeatlensError(
                    f"{self.where(name)}: has {info.file_size} bytes; remove it or unpack the zip"
                )
            return archive.read(info)

    def names(self) -> list[str]:
        with reading(str(self.path)), self._handle.use() as archive:
            return [info.filename for info in archive.infolist() if not info.is_dir()]

    def close(self) -> None:
        self._handle.close()


class _Pictures:
    """Image files, decoded when they are read."""

    def __init__(self, files: _Files, names: list[str]) -> None:
        self._files, self._names = files, names
        shape = decode(files.contents(names[0]), files.where(names[0])).shape
        self.shape: tuple[int, ...] = (len(names), *shape)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)

    def read(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Raw pixels (len(ids), C, H, W)."""
        out = np.empty((len(ids), *self.shape[1:]), dtype=np.uint8)
        for row, number in enumerate(ids):
            name = self._names[number]
            out[row] = decode(
                self._files.contents(name), self._files.where(name), self.shape[1:], self._names[0]
            )
        return out

    def close(self) -> None:
        """Close the zip until it is needed again."""
        self._files.close()


def _is_image(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and parts[-1].lower().endswith(SUFFIXES)


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Names of all files below a folder, through linked folders too, but never in circles."""
    with reading(str(folder)):
        state = folder.stat()
        entries = list(os.scandir(folder))
    if (state.st_dev, state.st_ino) in above:
        return
    for entry in entries:
        name = f"{prefix}{entry.name}"
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{name}/", (*above, (state.st_dev, state.st_ino)))
        else:
            yield name


def open_folder(path: Path) -> Source:
    """All images below a folder, in the order of their relative paths."""
    files = _Folder(path)
    names = sorted(filter(_is_image, _walk(path, "", ())))
    return _source(files, names, path, (path / "dataset.json").is_file(), by_folder=True)


def open_zip_images(path: Path) -> Source:
    """All images of a zip, in the order of their names; labels by a ``dataset.json`` at its top."""
    files = _Zip(path)
    found = files.names()
    return _source(files, sorted(filter(_is_image, found)), path, "dataset.json" in found, by_folder=False)


def _source(files: _Files, names: list[str], path: Path, listed: bool, by_folder: bool) -> Source:
    if not names:
        kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise FeatlensError(f"{path}: no images in it; expected files that end in {kinds}")
    labels = _by_folder(names) if by_folder and not listed else None
    if listed:
        labels = _listed(files, names)
    return Source(path.absolute().name, _Pictures(files, names), labels, names=names)


def _by_folder(names: list[str]) -> NDArray[np.int64] | None:
    """Numbers of the folders on the first level, if every image lies in one and there are two or more."""
    if any("/" not in name for name in names):
        return None
    tops = [name.partition("/")[0] for name in names]
    number = {top: index for index, top in enumerate(sorted(set(tops)))}
    return np.array([number[top] for top in tops], dtype=np.int64) if len(number) > 1 else None


def _listed(files: _Files, names: list[str]) -> NDArray[np.int64] | None:
    """Labels of ``dataset.json``, by the names of the images."""
    where = files.where("dataset.json")
    wanted = 'expected {"labels": [["00000/img00000000.png", 6], ...]} or {"labels": null}'
    try:
        entries = json.loads(files.contents("dataset.json"))["labels"]
        if entries is None:
            return None
        if not isinstance(entries, list):
            raise TypeError(type(entries))
        pairs = [(str(name).replace("\\", "/"), label) for name, label in entries]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FeatlensError(f"{where}: {wanted}; write it again") from error
    known = dict(pairs)
    for name in names:
        if name not in known:
            raise FeatlensError(f"{where}: no label for {name}; add one, or remove the image")
    if len(pairs) != len(names):
        there = set(names)
        odd = next((name for name, _ in pairs if name not in there), "an image twice")
        raise FeatlensError(
            f"{where}: {len(pairs)} labels for {len(names)} images (it names {odd}); give one label an image"
        )
    ordered = [known[name] for name in names]
    for name, label in zip(names, ordered, strict=True):
        if isinstance(label, list):
            raise FeatlensError(
                f"{where}: expected an integer label for {name}, got a list; turn one-hot labels into "
                "integers with argmax"
            )
        if isinstance(label, bool) or not isinstance(label, int | float):
            raise FeatlensError(
                f"{where}: expected an integer label for {name}, got {label!r}; number the classes from 0"
            )
    return checked_labels(ordered, len(names), where)
