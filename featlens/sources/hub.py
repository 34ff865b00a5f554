"""Images of the Hugging Face ``datasets`` package that are on this machine; nothing is downloaded."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import FeatlensError, UsageError, choices_hint
from featlens.sources.picture import decode
from featlens.sources.records import reading
from featlens.sources.source import Source, checked_labels

__all__ = ["open_hf"]

IMAGE_COLUMNS = ("image", "img", "images", "x")
LABEL_COLUMNS = ("label", "labels", "fine_label", "y")

_TRAIN, _HELD = ("train", "training"), ("test", "validation", "valid", "val", "dev")
_USAGE = "expected hf:FOLDER or hf:OWNER/NAME, and then :SPLIT and :IMAGE_COLUMN where needed"
_MOST = 2**28


def open_hf(location: str, split: str | None = None) -> Source:
    """Images and labels of a data set that ``datasets`` has saved or cached on this machine.

    Parameters
    ----------
    location
        ``hf:NAME[:SPLIT][:IMAGE_COLUMN]``: a folder of ``save_to_disk`` or of Parquet files, or the name of
        a data set that ``datasets.load_dataset`` has been called with before.
    split
        Where the location names no split: ``"train"``, ``"held-out"`` (its test or validation images) or
        ``"all"``, one after the other. A single split is returned whole, without a name.

    Raises
    ------
    FeatlensError
        The package is missing, or the data set is not on this machine or not one of images.
    UsageError
        No such split or column.
    """
    name, part, column = _parted(location)
    datasets = _package()
    with _offline(datasets):
        splits = _splits(datasets, name)
        chosen = _chosen(splits, part, location)
        parts = [_Part(datasets, splits[key], column, f"{name}:{key}") for key in chosen]
    reader = _Pictures(parts)
    edges = np.cumsum([0, *(len(part) for part in parts)])
    if len(parts) == 1:
        return Source(_short(name), reader, _labels(parts, [0]))
    wanted = {None: [0, 1], "all": [0, 1], "train": [0], "held-out": [1]}.get(split)
    if wanted is None:
        known = ("all", "train", "held-out")
        raise UsageError(f"unknown split {split!r} of {location}: {choices_hint(str(split), known)}")
    rows = np.arange(edges[wanted[0]], edges[wanted[-1] + 1])
    return Source(_short(name), reader, _labels(parts, wanted), rows, split or "all")


def _parted(location: str) -> tuple[str, str | None, str | None]:
    """Name, split and column; a folder may have colons in its name."""
    text = location.removeprefix("hf:")
    if text and Path(text).is_dir():
        return text, None, None
    name, *rest = text.split(":")
    if not name or len(rest) > 2:
        raise UsageError(f"samples: {location!r} names no data set; {_USAGE}")
    split, column = (*rest, "", "")[:2]
    return name, split or None, column or None


def _short(name: str) -> str:
    return Path(name).absolute().name if Path(name).is_dir() else f"hf:{name}"


def _package() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise FeatlensError(
            f"samples: hf: locations need the package datasets ({error}); run: pip install 'featlens[hf]'"
        ) from error


@contextlib.contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Context in which ``datasets`` reaches no network and draws no bars; all is put back after it."""
    constants = importlib.import_module("huggingface_hub.constants")
    log = datasets.utils.logging
    # The variable is read once, on import, which may have been long ago.
    places = [(datasets.config, "HF_HUB_OFFLINE"), (constants, "HF_HUB_OFFLINE")]
    before = [(place, name, getattr(place, name)) for place, name in places]
    variable, level = os.environ.get("HF_HUB_OFFLINE"), log.get_verbosity()
    bars = not datasets.are_progress_bars_disabled()
    os.environ["HF_HUB_OFFLINE"] = "1"
    log.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        for place, name, _ in before:
            setattr(place, name, True)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)
        log.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()
        if variable is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = variable


def _splits(datasets: Any, name: str) -> dict[str, Any]:
    """All splits of a data set by name."""
    try:
        if not Path(name).is_dir():
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
                raise UsageError(f"samples: no folder {name!r}, nor can a data set have that name; {_USAGE}")
            found = datasets.load_dataset(name)
        elif any((Path(name) / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(name)
        else:
            # The package would take any file there, also of kinds that can run code; Parquet cannot.
            found = datasets.load_dataset("parquet", data_files=_parquet(Path(name)))
    except FeatlensError:
        raise
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        if Path(name).is_dir():
            raise FeatlensError(
                f"{name}: datasets cannot read it ({said}); save it again with save_to_disk"
            ) from error
        raise FeatlensError(
            f"samples: hf:{name} is not on this machine, and nothing is downloaded ({said}); run once: "
            f"python -c \"import datasets; datasets.load_dataset('{name}')\""
        ) from error
    return dict(found) if isinstance(found, dict) else {str(found.split or "train"): found}


def _parquet(folder: Path) -> dict[str, list[str]]:
    """Parquet files of a folder by the split that their names say, ``train`` if they say none."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        words = re.split(r"[^a-z]+", "/".join(path.relative_to(folder).parts).lower())
        split = next((word for word in words if word in (*_TRAIN, *_HELD)), "train")
        found.setdefault(split, []).append(str(path))
    if not found:
        raise FeatlensError(
            f"{folder}: neither saved by save_to_disk nor Parquet files in it; a folder of images is read "
            "without hf:"
        )
    return found


def _chosen(splits: dict[str, Any], part: str | None, location: str) -> list[str]:
    """Names of one split, or of one to train on and one that is held out."""
    if part is not None:
        if part not in splits:
            raise UsageError(f"samples: no split {part!r} in {location}: {choices_hint(part, splits)}")
        return [part]
    pair = [next((name for name in names if name in splits), None) for names in (_TRAIN, _HELD)]
    found = [name for name in pair if name is not None]
    if not found and len(splits) == 1:
        return list(splits)
    if not found:
        raise UsageError(f"samples: name a split as {location}:SPLIT, {choices_hint('', splits)}")
    return found


class _Part:
    """One split: its encoded images by row, and its labels."""

    def __init__(self, datasets: Any, data: Any, column: str | None, where: str) -> None:
        self.where = where
        columns = data.features
        self._column = _image_column(datasets, columns, column, where)
        self._data = data.cast_column(self._column, datasets.Image(decode=False)).select_columns(self._column)
        label = next((name for name in LABEL_COLUMNS if name in columns and name != self._column), None)
        self.labels: NDArray[np.int64] | None = None
        if label is not None:
            found = np.asarray(data.select_columns(label).with_format("numpy")[:][label])
            # The mark of images whose labels are kept secret.
            if not (found.dtype.kind in "iu" and found.size and (found == -1).all()):
                self.labels = checked_labels(found, len(data), f"{where}:{label}")
        if not len(data):
            raise FeatlensError(f"{where}: holds no images; name another split")

    def __len__(self) -> int:
        return len(self._data)

    def pictures(
        self, rows: NDArray[np.int64], expected: tuple[int, ...] | None
    ) -> Iterator[NDArray[np.uint8]]:
        """Decoded images (C, H, W) of the given rows."""
        for row, entry in zip(rows.tolist(), self._data[rows.tolist()][self._column], strict=True):
            where = f"{self.where} (row {row})"
            yield decode(_contents(entry, where), where, expected, "row 0")


def _image_column(datasets: Any, columns: Any, given: str | None, where: str) -> str:
    images = [name for name, kind in columns.items() if isinstance(kind, datasets.Image)]
    if given is not None and given not in images:
        raise UsageError(f"samples: no column {given!r} of images in {where}: {choices_hint(given, images)}")
    if not images:
        raise FeatlensError(
            f"{where}: no column of images among {', '.join(columns)}; cast one to datasets.Image"
        )
    return given or next((name for name in IMAGE_COLUMNS if name in images), images[0])


def _contents(entry: Any, where: str) -> bytes:
    """Bytes of an encoded image, in the data set or in the file that it names."""
    if entry is None:
        raise FeatlensError(f"{where}: holds no image; remove the row")
    if entry["bytes"] is not None:
        return bytes(entry["bytes"])
    path = Path(str(entry["path"]))
    if not path.is_file():
        raise FeatlensError(f"{where}: its image is not on this machine; save the data set with its images")
    with reading(where):
        if path.stat().st_size > _MOST:
            raise FeatlensError(f"{where}: its image has {path.stat().st_size} bytes; remove the row")
        return path.read_bytes()


class _Pictures:
    """Images of one or two splits, numbered through."""

    dtype: np.dtype[Any] = np.dtype(np.uint8)

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = parts
        self._edges = np.cumsum([0, *(len(part) for part in parts)])
        first = next(parts[0].pictures(np.array([0]), None))
        self.shape: tuple[int, ...] = (int(self._edges[-1]), *first.shape)

    def read(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Raw pixels (len(ids), C, H, W)."""
        out = np.empty((len(ids), *self.shape[1:]), dtype=np.uint8)
        which = np.searchsorted(self._edges, ids, side="right") - 1
        for index, part in enumerate(self._parts):
            mine = np.flatnonzero(which == index)
            # Few at a time: encoded images wait in memory until they are decoded.
            for start in range(0, len(mine), 256):
                places = mine[start : start + 256]
                pictures = part.pictures(ids[places] - self._edges[index], self.shape[1:])
                for place, picture in zip(places, pictures, strict=True):
                    out[place] = picture
        return out

    def close(self) -> None:
        """The package keeps its files mapped."""


def _labels(parts: Sequence[_Part], wanted: Sequence[int]) -> NDArray[np.int64] | None:
    """Labels of all parts, or None if one that is wanted has none; zeros for others without."""
    if any(parts[index].labels is None for index in wanted):
        return None
    zeros = [np.zeros(len(part), dtype=np.int64) for part in parts]
    held = [zero if part.labels is None else part.labels for part, zero in zip(parts, zeros, strict=True)]
    return np.concatenate(held)
