"""Reading a feature file lazily, with every way in which it can be wrong said in one line."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import FeatlensError, SiteError, StoreError, UsageError, choices_hint
from featlens.names import match_names
from featlens.store.header import read_header
from featlens.store.layout import SiteInfo, primaries
from featlens.store.open import FileInUse, identity_of, open_hdf5, readers, shown
from featlens.store.verify import Damage, damaged_rows
from featlens.store.virtual import Part, open_shards, parts_of

__all__ = ["FeatureStore", "FileInUse", "open_hdf5"]

BLOCK_BYTES = 1 << 20


class FeatureStore:
    """Read-only view of a feature file.

    Parameters
    ----------
    path
        File written by ``featlens extract`` (format version 1), or by another tool as the specification says.

    Attributes
    ----------
    sigmas
        (S,) float64 noise levels.
    ids
        (N,) int64 sample ids.
    labels
        (N,) int64 or None.
    sites
        Sites by name, in order of execution.
    manifest
        Where the features come from: model, weights digest, reducer, sample digest, noise seed.
    rows_done
        (S,) int64 number of valid rows at each sigma.
    complete
        Whether every row of every sigma is valid.

    Raises
    ------
    StoreError
        If the file is no feature file, damaged, of a newer version, or in use; the message says which.
    """

    def __init__(self, path: os.PathLike[str] | str) -> None:
        self.path = Path(path)
        self._shards: dict[str, FeatureStore] = {}
        self._last: tuple[tuple[str, int, int], NDArray[np.float32]] | None = None
        self._lacking: dict[str, bool] = {}
        self._file = open_hdf5(self.path)
        try:
            self.identity = identity_of(self.path.stat())
            header = read_header(self._file, self.path)
            self.manifest: dict[str, Any] = header.manifest
            self.sigmas: NDArray[np.float64] = header.sigmas
            self.ids: NDArray[np.int64] = header.ids
            self.labels: NDArray[np.int64] | None = header.labels
            self.rows_done: NDArray[np.int64] = header.rows_done
            self.complete = header.complete
            self.sites: dict[str, SiteInfo] = header.sites
            self._datasets = header.datasets
            # Asking h5py for the chunks of a dataset takes as long as reading a small one.
            self._chunk_rows = {
                name: int(dataset.chunks[1]) if dataset.chunks else 1
                for name, dataset in header.datasets.items()
            }
            self._parts = self._open_parts()
        except FeatlensError as error:
            self.close()
            told = str(error)
            raise (error if str(self.path) in told else StoreError(self._damaged(told))) from None
        except Exception as error:  # What h5py raises on damaged structure is not only OSError.
            self.close()
            raise StoreError(self._damaged(shown(error))) from None
        readers[id(self)] = self

    def _damaged(self, why: str) -> str:
        return f"{self.path} is damaged or not a feature file ({why}); extract it again"

    def _open_parts(self) -> dict[str, list[Part]]:
        """Where virtual sites lie; opens the shards."""
        virtual = {name: dataset for name, dataset in self._datasets.items() if dataset.is_virtual}
        parts = {name: parts_of(dataset, f"site {name!r}") for name, dataset in virtual.items()}
        files = dict.fromkeys(part.file for pieces in parts.values() for part in pieces)
        self._shards = open_shards(files, self.path, _Shard)
        for name, pieces in parts.items():
            for part in pieces:
                shard = self._shards[part.file]
                info = shard.sites.get(part.site)
                same_rows = np.array_equal(shard.ids, self.ids[part.start : part.stop])
                same = same_rows and np.array_equal(shard.sigmas, self.sigmas)
                same = same and _origin(shard) == _origin(self)
                if info is None or info.width != self.sites[name].width or not same:
                    raise StoreError(
                        f"{self.path}: its shard {shown(part.file)} does not hold rows {part.start}.."
                        f"{part.stop} of site {name!r}; put the right file back or merge again"
                    )
        return parts

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sample_digest(self) -> str:
        """Digest of images, labels and noise seed; files with equal digests may be compared row by row."""
        return str(self.manifest.get("sample_digest", ""))

    @property
    def checksummed(self) -> bool:
        """Whether all features carry checksums, so that :meth:`verify` finds every flipped bit."""
        plain = [dataset for name, dataset in self._datasets.items() if name not in self._parts]
        shards = self._shards.values()
        return all(dataset.fletcher32 for dataset in plain) and all(shard.checksummed for shard in shards)

    @property
    def dtype(self) -> str:
        """Type of the stored features, such as ``"float16"``; :meth:`read` gives float32 always."""
        kinds = [dataset.dtype.newbyteorder("=") for dataset in self._datasets.values()]
        return str(np.result_type(*kinds)) if kinds else "float32"

    def require_complete(self) -> None:
        """Refuse a file whose writer was interrupted."""
        if not self.complete:
            done, total = int(self.rows_done.sum()), len(self) * len(self.sigmas)
            raise StoreError(
                f"{self.path} is incomplete: {done} of {total} rows; "
                "run the extract command again to finish it"
            )

    def select(self, patterns: str | Sequence[str] | None = None) -> list[str]:
        """Names of the sites that match any of the glob patterns, in order of execution; all if None."""
        return list(self.sites) if patterns is None else match_names(self.sites, patterns, str(self.path))

    def sigma_index(self, sigma: float) -> int:
        """Position of a noise level; an error lists what is there."""
        try:
            sigma = float(sigma)
        except (TypeError, ValueError):
            raise UsageError(f"{self.path}: expected one sigma, got {sigma!r}") from None
        near = np.flatnonzero(np.isclose(self.sigmas, sigma, rtol=1e-6, atol=0))
        if not len(near):
            there = ", ".join(f"{value:g}" for value in self.sigmas)
            raise UsageError(f"{self.path} has no sigma {sigma:g}; it has {there}")
        return int(near[np.argmin(np.abs(self.sigmas[near] - sigma))])

    def read(self, site: str, sigma: float, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Features of one site at one noise level, (rows, D) float32.

        Raises
        ------
        StoreError
            If rows are not done yet or damaged; names site, sigma and rows.
        SiteError, UsageError
            If there is no such site or sigma.
        """
        index = self._checked(site, sigma)
        if not isinstance(rows, slice):
            raise UsageError(f"rows must be a slice such as slice(0, 10), got {rows!r}; index the result")
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise UsageError(f"rows must be contiguous, got step {step}; index the result instead")
        if stop > self.rows_done[index]:
            raise StoreError(
                f"{self.path}: rows {start}..{stop} of sigma {sigma:g} were asked for, "
                f"{self.rows_done[index]} are done; run the extract command again to finish it"
            )
        return self._read(site, index, start, max(start, stop))

    def blocks(
        self, site: str, sigma: float, size: int | None = None
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Valid features of one site at one noise level, block by block, as they are asked for.

        Parameters
        ----------
        site, sigma
            What to read.
        size
            Rows a block; by default whole chunks of about 1 MiB.

        Yields
        ------
        tuple
            Rows as a slice, and their features (rows, D) float32.

        Examples
        --------
        >>> import tempfile
        >>> from featlens.store import FeatureWriter, SiteInfo
        >>> path = Path(tempfile.mkdtemp()) / "a.h5"
        >>> with FeatureWriter.create(path, [SiteInfo("enc", 0, 4)], [0.5], range(600), {}) as writer:
        ...     writer.append(0, {"enc": np.ones((600, 4), dtype=np.float32)})
        >>> with FeatureStore(path) as store:
        ...     [(rows.start, rows.stop, block.shape) for rows, block in store.blocks("enc", 0.5, 256)]
        [(0, 256, (256, 4)), (256, 512, (256, 4)), (512, 600, (88, 4))]
        """
        index = self._checked(site, sigma)
        if size is not None and size < 1:
            raise UsageError(f"a block holds at least one row, got {size}")
        chunk = self._chunk_rows[site]
        natural = chunk * max(1, BLOCK_BYTES // (chunk * self.sites[site].width * 4))
        return self._blocks(site, index, size or natural)

    def _blocks(self, site: str, index: int, step: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        done = int(self.rows_done[index])
        for start in range(0, done, step):
            stop = min(start + step, done)
            yield slice(start, stop), self._read(site, index, start, stop)

    def _checked(self, site: str, sigma: float) -> int:
        self._require_open()
        if site not in self.sites:
            raise SiteError(f"no site {site!r} in {self.path}: {choices_hint(site, self.sites)}")
        return self.sigma_index(sigma)

    def _require_open(self) -> None:
        if not self._file:
            raise StoreError(f"{self.path} was closed; open it again with FeatureStore(path)")

    def _read(self, site: str, index: int, start: int, stop: int) -> NDArray[np.float32]:
        if site in self._parts:
            return self._gather(site, index, start, stop)
        chunk = self._chunk_rows[site]
        first = start - start % chunk
        if stop - start >= chunk or not start < stop <= first + chunk:
            return self._fetch(site, index, start, stop)
        # HDF5 decodes whole chunks; the last one is kept for those who read row by row.
        key, last = (site, index, first), self._last
        if last is None or last[0] != key:
            whole = min(first + chunk, int(self.rows_done[index]))
            last = self._last = key, self._fetch(site, index, first, whole)
        part: NDArray[np.float32] = last[1][start - first : stop - first].copy()
        return part

    def _fetch(self, site: str, index: int, start: int, stop: int) -> NDArray[np.float32]:
        dataset = self._datasets[site]
        try:
            rows: NDArray[np.float32] = np.asarray(dataset[index, start:stop], dtype=np.float32)
            # HDF5 gives fill values for chunks that were never written.
            lost = damaged_rows(dataset, index, start, stop) if self._lacks_chunks(site) else []
            if not lost:
                return rows
            unknown = lost[0]
        except MemoryError:
            raise StoreError(
                f"{self.path}: rows {start}..{stop} of site {site!r} do not fit into memory; read fewer, or "
                "use blocks()"
            ) from None
        except Exception as error:  # What h5py raises on damaged structure is not only OSError.
            unknown = start, stop, f"unreadable: {shown(error, 80)}"
        self._require_open()
        first, *_ = damaged_rows(dataset, index, start, stop) or [unknown]
        raise StoreError(f"{self.path}: {Damage(site, float(self.sigmas[index]), *first)}; extract again")

    def _lacks_chunks(self, site: str) -> bool:
        if site not in self._lacking:
            dataset = self._datasets[site]
            sizes = zip(dataset.shape, dataset.chunks or dataset.shape, strict=True)
            wanted = math.prod(-(-size // chunk) for size, chunk in sizes)
            self._lacking[site] = bool(dataset.chunks) and dataset.id.get_num_chunks() < wanted
        return self._lacking[site]

    def _gather(self, site: str, index: int, start: int, stop: int) -> NDArray[np.float32]:
        """Rows from the shards of a virtual site."""
        rows = np.empty((stop - start, self.sites[site].width), dtype=np.float32)
        for part in self._parts[site]:
            low, high = max(start, part.start), min(stop, part.stop)
            if low < high:
                there = low - part.start, high - part.start
                rows[low - start : high - start] = self._shards[part.file]._read(part.site, index, *there)
        return rows

    def verify(self) -> list[Damage]:
        """Every damaged part of the valid rows; sites that share features are looked at once.

        Reads the whole file. Without checksums (see :attr:`checksummed`) only what cannot be read at all is
        found, not a flipped bit.
        """
        self._require_open()
        return [damage for site in primaries(self.sites.values()) for damage in self._damage(site.name)]

    def _damage(self, site: str) -> Iterator[Damage]:
        for index, sigma in enumerate(self.sigmas):
            if site not in self._parts:
                found = damaged_rows(self._datasets[site], index, 0, int(self.rows_done[index]))
            else:
                found = [
                    (first + part.start, last + part.start, f"{reason} in {part.file}")
                    for part in self._parts[site]
                    for first, last, reason in damaged_rows(
                        self._shards[part.file]._datasets[part.site], index, 0, part.stop - part.start
                    )
                ]
            for first, last, reason in found:
                yield Damage(site, float(sigma), first, last, reason)

    def close(self) -> None:
        """Close the file; reading is over."""
        self._file.close()
        for shard in self._shards.values():
            shard.close()
        readers.pop(id(self), None)

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "complete" if self.complete else f"{int(self.rows_done.sum())} rows done"
        return (
            f"FeatureStore({str(self.path)!r}: {len(self.sites)} sites, {len(self.sigmas)} sigmas, "
            f"{len(self)} samples, {state})"
        )


def _origin(store: FeatureStore) -> dict[str, Any]:
    """What the manifest says of the features, and not of the file."""
    return {key: value for key, value in store.manifest.items() if key not in ("shard", "creator")}


class _Shard(FeatureStore):
    """A file that a virtual one takes rows from; not virtual itself, lest they lead in a circle."""

    def _open_parts(self) -> dict[str, list[Part]]:
        if any(dataset.is_virtual for dataset in self._datasets.values()):
            raise StoreError(
                f"{self.path} is a part of a virtual file and virtual itself; merge the shards again"
            )
        return {}
