"""Writing a feature file so that SIGKILL at any moment leaves one that opens and resumes.

All structure (groups, attributes, chunk addresses, fill values) is laid down in a temporary file, which is
then brought into place. From there on only raw data changes: whole chunks with their checksums, written at
their known places past HDF5, then the counter ``rows_done``. Rows beyond the counter are ignored by readers
and written again by whoever resumes.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import FeatlensError, StoreError
from featlens.files import AppearedError, atomic_path, explain_os_error, require_space, unlock_file
from featlens.store.checksum import fletcher32, scratch
from featlens.store.draft import mark_complete
from featlens.store.header import read_header
from featlens.store.lay_down import Plan, lay_down
from featlens.store.layout import SiteInfo, check_sites, chunk_rows, primaries
from featlens.store.open import (
    FileInUse,
    Identity,
    identity_of,
    is_being_written,
    lock_for_writing,
    new_hdf5,
    shown,
    writers,
)
from featlens.store.places import Places, find_places
from featlens.store.reader import FeatureStore

__all__ = ["FeatureWriter", "require_same_request"]

DTYPES = ("float32", "float16")


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

    Attributes
    ----------
    block
        Rows a chunk: what :meth:`append` takes multiples of.
    names
        Sites that :meth:`append` takes: all but those that share the features of another.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> path = Path(tempfile.mkdtemp()) / "a.h5"
    >>> sites = [SiteInfo("enc.conv", order=0, width=3), SiteInfo("enc", 1, 3, same_as="enc.conv")]
    >>> with FeatureWriter.create(path, sites, sigmas=[0.5], ids=[7, 8], manifest={}) as writer:
    ...     writer.append(0, {"enc.conv": np.ones((2, 3), dtype=np.float32)})
    >>> FeatureStore(path).read("enc", 0.5).shape
    (2, 3)
    """

    def __init__(self, path: Path, laid: tuple[Identity, Places] | None = None) -> None:
        self.path = path
        self._where = path.absolute()
        self._handle = lock_for_writing(path)
        self._release = weakref.finalize(self, os.close, self._handle)
        try:
            self._key = identity_of(os.fstat(self._handle))
            if laid is not None and laid[0] == self._key:
                self._places = laid[1]
                self._rows_done = np.zeros(self._places.sigmas, dtype=np.int64)
            elif laid is not None:
                raise _just_begun(path)
            else:
                self._places, self._rows_done = _opened(self._handle, path)
        except BaseException:
            self._release()
            raise
        self._process = os.getpid()
        self._space = scratch()
        self.block = self._places.block
        self.names = list(self._places.sites)
        writers[self._key] = self

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
        block: int | None = None,
    ) -> FeatureWriter:
        """Lay down an empty file for all sites, sigmas and samples, replacing ``path``.

        Parameters
        ----------
        path
            File to make. Refused while somebody writes it; a file that another process makes meanwhile is
            not replaced.
        sites
            Sites; those with ``same_as`` share the features of another one and take no place.
        sigmas, ids
            (S,) noise levels and (N,) sample ids.
        manifest
            Where the features come from, as JSON takes it.
        labels
            (N,) labels or None.
        dtype
            ``"float32"`` or ``"float16"``, as which features are stored. Reading gives float32 always.
        block
            Rows a chunk, or None to choose by the widest site.

        Raises
        ------
        StoreError
            If the request is impossible or the file in use; FeatlensError if the disk does not take it.
        """
        target = Path(path)
        plan = _plan(target, sites, sigmas, ids, manifest, labels, dtype, block)
        new = not os.path.lexists(target)
        if is_being_written(target):
            raise FileInUse(f"{target} is being written in another process; wait for it to finish")
        try:
            with atomic_path(target, new, sync=False) as temporary:
                require_space(target, plan.size)
                try:
                    places = lay_down(temporary, plan)
                except (OSError, RuntimeError) as error:
                    raise _explained(error, target) from error
                key = identity_of(temporary.stat())
        except AppearedError:
            raise _just_begun(target) from None
        return cls(target, (key, places) if places else None)

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

        Raises
        ------
        StoreError
            If shapes do not fit, float16 cannot hold a value, or the file was deleted meanwhile; nothing is
            written then. FeatlensError if the disk does not take the rows.
        """
        if not self._release.alive:
            raise StoreError(f"{self.path} was closed; open it again with FeatureWriter.resume")
        places = self._places
        if sigma_index not in range(places.sigmas):
            raise StoreError(f"{self.path}: no sigma of index {sigma_index!r}, there are {places.sigmas}")
        # A small type of numpy would overflow below.
        sigma_index = int(sigma_index)
        first = self.done(sigma_index)
        arrays = self._checked(features, first)
        last = first + len(next(iter(arrays.values())))
        self._require_same_file()
        try:
            for name, rows in arrays.items():
                offsets = places.sites[name].offsets[sigma_index]
                for start in range(0, len(rows), self.block):
                    chunk = _whole(rows[start : start + self.block], self.block)
                    offset = int(offsets[(first + start) // self.block])
                    _write(self._handle, offset, chunk, fletcher32(chunk, self._space))
            _write(self._handle, places.rows_done + 8 * sigma_index, np.array(last, dtype="<i8"))
        except OSError as error:
            raise _explained(error, self.path) from error
        self._rows_done[sigma_index] = last

    def _checked(self, features: Mapping[str, NDArray[Any]], first: int) -> dict[str, NDArray[Any]]:
        """Features as they are stored, in contiguous memory."""
        sites, total = self._places.sites, self._places.rows
        if set(features) != set(sites):
            raise StoreError(f"{self.path}: expected features of {sorted(sites)}, got {sorted(features)}")
        arrays = {name: np.asarray(features[name]) for name in sites}
        count = len(np.atleast_1d(next(iter(arrays.values()))))
        for name, block in arrays.items():
            expected = (count, sites[name].width)
            if block.dtype.kind not in "biuf":
                raise StoreError(f"{self.path}: expected real features of {name!r}, got {block.dtype}")
            if block.shape != expected:
                raise StoreError(f"{self.path}: expected {expected} features of {name!r}, got {block.shape}")
        if first + count > total or (count % self.block and first + count != total):
            raise StoreError(
                f"{self.path}: {count} rows at row {first} of {total}; append multiples of {self.block} rows"
            )
        return {name: self._stored(name, block) for name, block in arrays.items()}

    def _stored(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(rows, dtype=self._places.dtype)
        if stored.dtype != rows.dtype:
            lost = np.isinf(stored) & np.isfinite(rows)
            if lost.any():
                value = float(np.abs(rows[lost]).max())
                raise StoreError(
                    f"{self.path}: features of site {name!r} reach {value:g}, {stored.dtype} ends at "
                    f"{np.finfo(stored.dtype).max:g}; store wider numbers (--dtype float32)"
                )
        return stored

    def _require_same_file(self) -> None:
        try:
            there = identity_of(self._where.stat())
        except FileNotFoundError:
            there = None
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        if there != self._key:
            state = "deleted" if there is None else "replaced"
            raise StoreError(
                f"{self.path} was {state} while it was being written, and its rows are lost; "
                "run the same command again"
            )

    def close(self) -> None:
        """Mark the file complete if every row is there, and close it."""
        if not self._release.alive:
            return
        try:
            if bool((self._rows_done == self._places.rows).all()):
                mark_complete(self._handle)
        except (OSError, RuntimeError) as error:
            raise _explained(error, self.path) from error
        finally:
            writers.pop(self._key, None)
            # A forked process, such as a worker that loads data, holds the descriptor and so the lock, too.
            if os.getpid() == self._process:
                unlock_file(self._handle)
            self._release()

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _plan(
    target: Path,
    sites: Sequence[SiteInfo],
    sigmas: Sequence[float],
    ids: Sequence[int] | NDArray[np.int64],
    manifest: Mapping[str, Any],
    labels: NDArray[np.int64] | None,
    dtype: str,
    block: int | None,
) -> Plan:
    """What will be laid down, if that is possible."""
    if not sites or not len(sigmas) or not len(ids):
        raise StoreError(f"{target}: a feature file needs at least one site, one sigma and one sample")
    try:
        check_sites(sites)
    except StoreError as error:
        raise StoreError(f"{target}: {error}") from None
    if dtype not in DTYPES:
        raise StoreError(f"{target}: features are stored as {' or '.join(DTYPES)}, got {dtype!r}")
    kind = np.dtype(dtype).newbyteorder("<")
    rows = chunk_rows(len(ids), [site.width for site in sites], kind.itemsize) if block is None else block
    if rows < 1:
        raise StoreError(f"{target}: a block holds at least one row, got {rows}")
    levels, numbers = np.asarray(sigmas, dtype=np.float64), np.asarray(ids, dtype=np.int64)
    kept = None if labels is None else np.asarray(labels, dtype=np.int64)
    if not (np.isfinite(levels).all() and (levels > 0).all() and len(np.unique(levels)) == len(levels)):
        raise StoreError(f"{target}: sigmas must be different numbers above 0, got {levels.tolist()}")
    if levels.ndim != 1 or numbers.ndim != 1:
        raise StoreError(f"{target}: expected (S,) sigmas and (N,) ids, got {levels.shape}, {numbers.shape}")
    for name, given, whole in (("ids", ids, numbers), ("labels", labels, kept)):
        if given is not None and whole is not None and not np.array_equal(whole, np.asarray(given)):
            raise StoreError(f"{target}: {name} must be whole numbers of 64 bits")
    if kept is not None and kept.shape != numbers.shape:
        raise StoreError(f"{target}: expected {len(numbers)} labels, got shape {kept.shape}")
    return Plan(sites, levels, numbers, manifest, kept, kind, min(rows, len(numbers)))


def _just_begun(path: Path) -> FileInUse:
    return FileInUse(
        f"{path} has just been begun by another process; wait for it to finish or choose another output "
        "with -o"
    )


def _opened(handle: int, path: Path) -> tuple[Places, NDArray[np.int64]]:
    """Where the raw data lies, and the rows that are done."""
    try:
        with new_hdf5(handle, "r") as file:
            header = read_header(file, path)
            own = primaries(header.sites.values())
            places = find_places(file, {site.name: header.datasets[site.name] for site in own})
    except FeatlensError:
        raise
    except Exception as error:  # What h5py raises on damaged structure is not only OSError.
        raise StoreError(f"{path} is damaged ({shown(error, 80)}); extract it again") from None
    if places is None:
        raise StoreError(
            f"{path} was not laid out by featlens and cannot be continued; choose another output"
        )
    try:
        return places, _whole_blocks(handle, places, header.rows_done)
    except OSError as error:
        raise _explained(error, path) from error


def _whole_blocks(handle: int, places: Places, done: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows to go on from: a block that another tool began is written again, so its rows count no more."""
    whole = np.where(done < places.rows, done - done % places.block, done)
    for index in np.flatnonzero(whole != done).tolist():
        _write(handle, places.rows_done + 8 * index, np.array(whole[index], dtype="<i8"))
    return whole


def _whole(rows: NDArray[Any], block: int) -> NDArray[Any]:
    """A whole chunk; what lies beyond the last row is NaN."""
    if len(rows) == block:
        return rows
    chunk = np.full((block, rows.shape[1]), np.nan, dtype=rows.dtype)
    chunk[: len(rows)] = rows
    return chunk


def _write(handle: int, offset: int, *parts: NDArray[Any] | bytes) -> None:
    """Write at a place, in as many turns as the system needs."""
    views = [memoryview(part.data if isinstance(part, np.ndarray) else part).cast("B") for part in parts]
    size, written = sum(map(len, views)), 0
    if hasattr(os, "pwritev"):
        written = os.pwritev(handle, views, offset)
        if written == size:
            return
    rest = memoryview(b"".join(views))[written:]
    os.lseek(handle, offset + written, os.SEEK_SET)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _explained(error: OSError | RuntimeError, path: Path) -> FeatlensError:
    """One line also for what HDF5 raises as a RuntimeError, such as a failure to flush on closing."""
    return explain_os_error(error if isinstance(error, OSError) else OSError(str(error)), path)
