"""CIFAR-10, binary version, in its archive or unpacked."""

from __future__ import annotations

import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import FeatlensError, UsageError, choices_hint
from featlens.sources.records import Records, Stream, open_gzip, reading
from featlens.sources.source import Source

__all__ = ["is_cifar_folder", "open_cifar"]

BATCHES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
SPLITS = ("train", "test", "all")

# A label, then 3 x 32 x 32 pixels.
_RECORD = 3073
_PIECE = 1000 * _RECORD
_AGAIN = "download cifar-10-binary.tar.gz again"


def is_cifar_folder(path: Path) -> bool:
    """Whether a folder holds batches of CIFAR-10.

    Raises
    ------
    FeatlensError
        It holds the Python version, which consists of pickles.
    """
    if (path / "data_batch_1").is_file() or (path / "test_batch").is_file():
        raise _pickled(path)
    return any((path / name).is_file() for name in BATCHES)


def _pickled(path: Path) -> FeatlensError:
    return FeatlensError(
        f"{path}: is the Python version of CIFAR-10, whose pickles are not read (they can run code); "
        "take the binary version, cifar-10-binary.tar.gz"
    )


class _Batches:
    """Records of six batches, numbered through."""

    def __init__(self, batches: list[Records]) -> None:
        self._batches = batches
        self._edges = np.cumsum([0, *(batch.count for batch in batches)])
        self.shape: tuple[int, ...] = (int(self._edges[-1]), 3, 32, 32)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)

    def read(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Raw pixels (len(ids), 3, 32, 32)."""
        out = np.empty((len(ids), _RECORD), dtype=np.uint8)
        which = np.searchsorted(self._edges, ids, side="right") - 1
        # Forwards through the file: the test batch comes last here, in the archive it may not.
        for index in sorted(set(which.tolist()), key=lambda index: self._batches[index].offset):
            mine = which == index
            out[mine] = self._batches[index].read(ids[mine] - self._edges[index])
        return out[:, 1:].reshape(-1, 3, 32, 32)

    def close(self) -> None:
        """Close the files until they are needed again."""
        for batch in self._batches:
            batch.close()


def open_cifar(path: Path, split: str | None) -> Source:
    """CIFAR-10 of a folder or archive; numbers go through the training images, then the test images.

    ``"held-out"`` means the test images.
    """
    split = split or "all"
    split = "test" if split == "held-out" else split
    if split not in SPLITS:
        raise UsageError(
            f"unknown split {split!r} of {path.name}: {choices_hint(split, (*SPLITS, 'held-out'))}"
        )
    found = _unpacked(path) if path.is_dir() else _packed(path)
    missing = [name for name in BATCHES if name not in found]
    if missing:
        raise FeatlensError(f"{path}: {', '.join(missing)} missing, expected all six batches; {_AGAIN}")
    labels = np.concatenate([found[name][1] for name in BATCHES]).astype(np.int64)
    reader = _Batches([found[name][0] for name in BATCHES])
    total = len(labels)
    trained = total - found[BATCHES[-1]][0].count
    first, stop = {"train": (0, trained), "test": (trained, total), "all": (0, total)}[split]
    return Source(path.absolute().name, reader, labels, np.arange(first, stop), split)


def _unpacked(path: Path) -> dict[str, tuple[Records, NDArray[np.uint8]]]:
    found = {}
    for file in (path / name for name in BATCHES):
        if file.is_file():
            stream = Stream.plain(file)
            labels = _labels(stream, 0, file.stat().st_size, str(file))
            stream.close()
            found[file.name] = _records(stream, 0, len(labels)), labels
    return found


def _packed(path: Path) -> dict[str, tuple[Records, NDArray[np.uint8]]]:
    """Batches of the archive, all of which is read once: for labels and checksum."""
    found = {}
    stream = Stream(partial(open_gzip, path), str(path))
    names: list[str] = []
    try:
        with reading(str(path)), open_gzip(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            scan = Stream(lambda: file, str(path))
            for member in archive:
                name = Path(member.name).name
                names.append(name)
                if name in BATCHES and member.isreg() and not member.issparse():
                    labels = _labels(scan, member.offset_data, member.size, f"{path}:{name}")
                    found[name] = _records(stream, member.offset_data, len(labels)), labels
            # The checksum comes last.
            scan.finish()
    except tarfile.TarError as error:
        raise FeatlensError(
            f"{path}: not the binary version of CIFAR-10, or damaged ({error}); {_AGAIN}"
        ) from error
    if "data_batch_1" in names or "test_batch" in names:
        raise _pickled(path)
    return found


def _records(stream: Stream, offset: int, count: int) -> Records:
    return Records(stream, offset, count, (_RECORD,), np.dtype(np.uint8))


def _labels(stream: Stream, offset: int, size: int, where: str) -> NDArray[np.uint8]:
    """Labels of one batch of ``size`` bytes, all of which are read."""
    count, rest = divmod(size, _RECORD)
    if rest or not count:
        raise FeatlensError(
            f"{where}: expected a whole number of records of {_RECORD} bytes, such as "
            f"{(count + 1) * _RECORD} bytes, found {size}; {_AGAIN}"
        )
    labels = []
    piece = np.empty(_PIECE, dtype=np.uint8)
    for start in range(0, size, _PIECE):
        part = piece[: min(_PIECE, size - start)]
        found = stream.read_into(offset + start, part)
        if found < len(part):
            raise FeatlensError(f"{where}: expected {size} bytes, found {start + found}; {_AGAIN}")
        labels.append(part[::_RECORD].copy())
    merged = np.concatenate(labels)
    if merged.max() > 9:
        row = int(np.argmax(merged > 9))
        raise FeatlensError(f"{where}: expected labels 0 to 9, record {row} has {merged[row]}; {_AGAIN}")
    return merged
