"""Writing a feature file so that SIGKILL at any moment leaves one that opens and resumes.

All structure (groups, attributes, chunk addresses, fill values) is laid down in a temporary file, which is
then renamed into place. From there on only raw data changes: whole chunks, a flush, then the counter
``rows_done``, a flush. Rows beyond the counter are ignored by readers and written again by whoever resumes.
"""

from __future__ import annotations

import io
import json
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens._version import __version__
from featlens.errors import FeatlensError, StoreError
from featlens.files import atomic_path, explain_os_error
from featlens.store.layout import FORMAT, VERSION, SiteInfo, check_site_name, chunk_rows
from featlens.store.reader import FeatureStore, FileInUse, open_hdf5

__all__ = ["FeatureWriter", "require_same_request"]

_Identity = tuple[int, int]
_open_writers: weakref.WeakValueDictionary[_Identity, FeatureWriter] = weakref.WeakValueDictionary()
"""HDF5's own lock keeps other processes out, but not a second writer in this one."""


def _identity(path: Path) -> _Identity:
    found = path.stat()
    return found.st_dev, found.st_ino


def _refuse_second_writer(path: Path) -> None:
    if path.exists() and _identity(path) in _open_writers:
        raise FileInUse(f"{path} is being written in this process; close that writer first")


def require_same_request(store: FeatureStore, manifest: Mapping[str, Any]) -> None:
    """Refuse a file that was begun with another manifest; the version of the creator may differ."""
    there, asked = dict(store.manifest), json.loads(json.dumps(dict(manifest)))
    for side in (there, asked):
        side.pop("creator", None)
    differing = sorted(key for key in set(there) | set(asked) if there.get(key) != asked.get(key))
    if differing:
        key = differing[0]
        raise StoreError(
            f"{store.path} was begun with other settings ({key}: {there.get(key)!r} there, "
            f"{asked.get(key)!r} now); choose another output with -o or remove the file"
        )


class FeatureWriter:
    """Appends rows to a feature file; make one with :meth:`create` or :meth:`resume`.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> path = Path(tempfile.mkdtemp()) / "a.h5"
    >>> sites = [SiteInfo("enc.conv", order=0, width=3)]
    >>> with FeatureWriter.create(path, sites, sigmas=[0.5], ids=[7, 8], manifest={}) as writer:
    ...     writer.append(0, {"enc.conv": np.ones((2, 3), dtype=np.float32)})
    >>> FeatureStore(path).read("enc.conv", 0.5).shape
    (2, 3)
    """

    def __init__(self, path: Path) -> None:
        _refuse_second_writer(path)
        self.path = path
        self._file = open_hdf5(path, "r+")
        self._key = _identity(path)
        group = self._file["sites"]
        self._sites = {name: group[name] for name in group if group[name].ndim == 3}
        self._widths = {name: int(dataset.shape[2]) for name, dataset in self._sites.items()}
        self._rows = int(self._file["sample"].shape[0])
        blocks = {int(dataset.chunks[1]) if dataset.chunks else 0 for dataset in self._sites.values()}
        if len(blocks) != 1 or 0 in blocks or "rows_done" not in self._file:
            self._file.close()
            raise StoreError(
                f"{path} was not laid out by featlens and cannot be continued; choose another output"
            )
        (self.block,) = blocks
        self._rows_done = self._file["rows_done"]
        self._encoder = _Encoder(path, self._sites)
        _open_writers[self._key] = self

    @classmethod
    def create(
        cls,
        path: os.PathLike[str] | str,
        sites: Sequence[SiteInfo],
        sigmas: Sequence[float],
        ids: Sequence[int] | NDArray[np.int64],
        manifest: Mapping[str, Any],
        labels: NDArray[np.int64] | None = None,
        dtype: str = "float32",
    ) -> FeatureWriter:
        """Lay down an empty file for all sites, sigmas and samples, replacing ``path``."""
        target = Path(path)
        if not sites or not len(sigmas) or not len(ids):
            raise StoreError(f"{target}: a feature file needs at least one site, one sigma and one sample")
        names = [check_site_name(site.name) for site in sites]
        for site in sites:
            if site.width < 1 or names.count(site.name) > 1:
                raise StoreError(f"{target}: site {site.name!r} is empty or given twice")
        _refuse_second_writer(target)
        try:
            open_hdf5(target, "r").close()
        except FileInUse:
            raise
        except FeatlensError:
            pass  # Absent, or nothing that anybody writes.
        with atomic_path(target) as temporary:
            numbers = np.asarray(ids, dtype=np.int64)
            try:
                _lay_down(temporary, sites, sigmas, numbers, manifest, labels, np.dtype(dtype))
            except (OSError, RuntimeError) as error:
                raise _explained(error, target) from error
        return cls(target)

    @classmethod
    def resume(cls, path: os.PathLike[str] | str, manifest: Mapping[str, Any]) -> FeatureWriter:
        """Open an interrupted file; refuses one that was begun with another manifest."""
        with FeatureStore(path) as store:
            require_same_request(store, manifest)
        return cls(Path(path))

    def done(self, sigma_index: int) -> int:
        """Rows already valid at this sigma."""
        return int(self._rows_done[sigma_index])

    def append(self, sigma_index: int, features: Mapping[str, NDArray[Any]]) -> None:
        """Write the next rows of every site at one sigma: (rows, D) each, whole blocks but for the last.

        ``rows`` must be a multiple of :attr:`block` or reach the end of the samples.
        """
        if set(features) != set(self._sites):
            raise StoreError(
                f"{self.path}: expected features of {sorted(self._sites)}, got {sorted(features)}"
            )
        arrays = {name: np.asarray(block) for name, block in features.items()}
        first, count = self.done(sigma_index), len(next(iter(arrays.values())))
        last = first + count
        for name, block in arrays.items():
            expected = (count, self._widths[name])
            if block.shape != expected:
                raise StoreError(f"{self.path}: expected {expected} features of {name!r}, got {block.shape}")
        if last > self._rows or (count % self.block and last != self._rows):
            raise StoreError(
                f"{self.path}: {count} rows at row {first} of {self._rows}; "
                f"append multiples of {self.block} rows"
            )
        try:
            for name, block in arrays.items():
                for start in range(0, count, self.block):
                    stored = self._encoder.encode(name, block[start : start + self.block])
                    place = (sigma_index, first + start, 0)
                    self._sites[name].id.write_direct_chunk(place, stored)
            self._file.flush()
            self._rows_done[sigma_index] = last
            self._file.flush()
        except (OSError, RuntimeError) as error:
            raise _explained(error, self.path) from error

    def close(self) -> None:
        """Mark the file complete if every row is there, and close it."""
        if not self._file:
            return
        try:
            if bool((self._rows_done[:] == self._rows).all()):
                self._file.attrs.modify("complete", np.int64(1))
            self._file.close()
        except (OSError, RuntimeError) as error:
            raise _explained(error, self.path) from error
        finally:
            self._encoder.close()
            _open_writers.pop(self._key, None)

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _explained(error: OSError | RuntimeError, path: Path) -> FeatlensError:
    """One line also for what HDF5 raises as a RuntimeError, such as a failure to flush on closing."""
    return explain_os_error(error if isinstance(error, OSError) else OSError(str(error)), path)


class _Encoder:
    """Chunks as HDF5 stores them, checksum included, made by HDF5 itself in memory.

    Whole chunks written past HDF5's cache neither read what a kill may have torn, nor leave data behind that
    HDF5 tries to write again, and crashes on, after the disk was full.
    """

    def __init__(self, path: Path, datasets: Mapping[str, Any]) -> None:
        import h5py

        self._file = h5py.File(f"{path}#chunks", "w", driver="core", backing_store=False)
        self._chunks = {}
        for number, (name, dataset) in enumerate(datasets.items()):
            space, plan = h5py.h5s.create_simple(dataset.chunks), dataset.id.get_create_plist()
            chunk = h5py.h5d.create(self._file.id, b"%d" % number, dataset.id.get_type(), space, plan)
            self._chunks[name] = (chunk, dataset.chunks[1:], dataset.dtype)

    def encode(self, name: str, rows: NDArray[Any]) -> bytes:
        """Bytes of the chunk that holds ``rows`` (rows, D), filled up with NaN."""
        from h5py.h5s import ALL

        chunk, shape, dtype = self._chunks[name]
        whole = np.ascontiguousarray(rows, dtype=dtype)
        if whole.shape != shape:
            whole = np.full(shape, np.nan, dtype=dtype)
            whole[: len(rows)] = rows
        chunk.write(ALL, ALL, whole)
        stored: bytes = chunk.read_direct_chunk((0, 0, 0))[1]
        return stored

    def close(self) -> None:
        self._file.close()


class _Patient(io.FileIO):
    """A file that takes every write and keeps the first failure, on which HDF5 would crash at exit."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self.failure is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failure = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0


def _lay_down(
    path: Path,
    sites: Sequence[SiteInfo],
    sigmas: Sequence[float],
    ids: NDArray[np.int64],
    manifest: Mapping[str, Any],
    labels: NDArray[np.int64] | None,
    dtype: np.dtype[Any],
) -> None:
    import h5py

    rows = chunk_rows(len(ids), [site.width for site in sites], dtype.itemsize)
    with _Patient(path, "r+") as patient, h5py.File(patient, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = np.int64(VERSION)
        file.attrs["complete"] = np.int64(0)
        file.attrs["manifest"] = json.dumps({**manifest, "creator": f"featlens {__version__}"})
        file["sigma"] = np.asarray(sigmas, dtype=np.float64)
        file["sample"] = ids
        file["sigma"].make_scale("sigma")
        file["sample"].make_scale("sample")
        if labels is not None:
            file["label"] = np.asarray(labels, dtype=np.int64)
            file["label"].dims[0].attach_scale(file["sample"])
        file["rows_done"] = np.zeros(len(sigmas), dtype=np.int64)
        file["rows_done"].dims[0].attach_scale(file["sigma"])
        group = file.create_group("sites")
        taken = {site.name for site in sites}
        for site in sites:
            scale = f"{site.name}_feature"
            while scale in taken:
                scale += "_"
            taken.add(scale)
            _lay_down_site(file, group, site, scale, (len(sigmas), len(ids), rows), dtype)
    if patient.failure is not None:
        raise patient.failure


def _lay_down_site(
    file: Any, group: Any, site: SiteInfo, feature: str, extent: tuple[int, int, int], dtype: np.dtype[Any]
) -> None:
    import h5py

    sigmas, samples, rows = extent
    name = check_site_name(site.name)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((1, rows, site.width))
    properties.set_fletcher32()
    properties.set_obj_track_times(False)
    properties.set_fill_value(np.array(np.nan, dtype=dtype))
    # Early allocation: after this, writing rows never moves a chunk or touches an index.
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)
    properties.set_attr_creation_order(h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED)
    space = h5py.h5s.create_simple((sigmas, samples, site.width))
    kind = h5py.h5t.py_create(dtype)
    handle = h5py.h5d.create(group.id, name.encode(), kind, space, properties)
    dataset = h5py.Dataset(handle)
    group[feature] = np.arange(site.width)
    group[feature].make_scale(feature)
    for axis, scale in enumerate((file["sigma"], file["sample"], group[feature])):
        dataset.dims[axis].attach_scale(scale)
    dataset.attrs.update(
        order=np.int64(site.order),
        channels=np.int64(site.channels),
        resolution=np.int64(site.resolution),
        reducer=site.reducer,
    )
