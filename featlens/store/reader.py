"""Reading a feature file lazily, with every way in which it can be wrong said in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import SiteError, StoreError, UsageError, choices_hint
from featlens.files import explain_os_error
from featlens.names import match_names
from featlens.store.layout import FORMAT, VERSION, SiteInfo

__all__ = ["FeatureStore", "FileInUse", "open_hdf5"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"


class FileInUse(StoreError):
    """The file is open elsewhere in a way that forbids what is asked."""


def open_hdf5(path: Path, mode: str) -> Any:
    """Open an HDF5 file; a :class:`StoreError` says what is wrong with it."""
    import h5py

    try:
        head = _head(path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    if not head:
        raise StoreError(f"{path}: expected a feature file, found an empty file; extract it again")
    if head != SIGNATURE:
        raise StoreError(
            f"{path}: expected a feature file (HDF5), found something else; make one with 'featlens extract'"
        )
    try:
        return h5py.File(path, mode)
    except OSError as error:
        text = " ".join(str(error).split())
        if isinstance(error, BlockingIOError) or "unable to lock" in text:
            use = "being written" if mode == "r" else "open"
            raise FileInUse(f"{path} is {use} in another process; wait for it to finish") from None
        if "already open" in text:
            raise FileInUse(f"{path} is open for reading in this process; close that store first") from None
        if "truncated" in text:
            raise StoreError(
                f"{path} is truncated (cut off while it was copied?); copy or extract it again"
            ) from None
        if error.errno in (13, 30):
            raise explain_os_error(error, path) from None
        raise StoreError(
            f"{path} is damaged and cannot be opened ({text[:120]}); copy or extract it again"
        ) from None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(SIGNATURE))


class FeatureStore:
    """Read-only view of a feature file.

    Parameters
    ----------
    path
        File written by ``featlens extract`` (format version 1).

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
    """

    def __init__(self, path: os.PathLike[str] | str) -> None:
        self.path = Path(path)
        self._file = open_hdf5(self.path, "r")
        try:
            self._read_header()
        except StoreError:
            self._file.close()
            raise
        except (KeyError, OSError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            self._file.close()
            raise StoreError(
                f"{self.path} is damaged or not a feature file ({' '.join(str(error).split())[:120]}); "
                "extract it again"
            ) from None

    def _read_header(self) -> None:
        file = self._file
        if _text(file.attrs.get("format")) != FORMAT:
            raise StoreError(
                f"{self.path}: expected an HDF5 file of format {FORMAT!r}, found another HDF5 file; "
                "make one with 'featlens extract'"
            )
        version = int(file.attrs["version"])
        if version > VERSION:
            raise StoreError(
                f"{self.path} was written by a newer featlens (format version {version}, this one reads "
                f"{VERSION}); upgrade featlens"
            )
        self.manifest: dict[str, Any] = json.loads(_text(file.attrs.get("manifest")) or "{}")
        self.sigmas: NDArray[np.float64] = np.asarray(file["sigma"][:], dtype=np.float64)
        self.ids: NDArray[np.int64] = np.asarray(file["sample"][:], dtype=np.int64)
        self.labels: NDArray[np.int64] | None = None
        if "label" in file:
            self.labels = np.asarray(file["label"][:], dtype=np.int64)
        self.sites = self._read_sites()
        self.complete = bool(int(file.attrs.get("complete", 0)))
        done = (
            file["rows_done"][:]
            if "rows_done" in file
            else np.full(len(self.sigmas), len(self) * self.complete)
        )
        self.rows_done: NDArray[np.int64] = np.asarray(done, dtype=np.int64)

    def _read_sites(self) -> dict[str, SiteInfo]:
        group = self._file["sites"]
        found = []
        for position, name in enumerate(group):
            dataset = group[name]
            if getattr(dataset, "ndim", 0) != 3:
                continue
            if dataset.shape[:2] != (len(self.sigmas), len(self.ids)):
                raise StoreError(
                    f"{self.path}: site {name!r} has shape {dataset.shape}, expected "
                    f"({len(self.sigmas)}, {len(self.ids)}, features); the file is damaged"
                )
            attrs = dataset.attrs
            found.append(
                SiteInfo(
                    name,
                    int(attrs.get("order", position)),
                    int(dataset.shape[2]),
                    int(attrs.get("channels", 0)),
                    int(attrs.get("resolution", 0)),
                    _text(attrs.get("reducer")) or "",
                )
            )
        return {site.name: site for site in sorted(found, key=lambda site: site.order)}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sample_digest(self) -> str:
        """Digest of images, labels and noise seed; files with equal digests may be compared row by row."""
        return str(self.manifest.get("sample_digest", ""))

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
        near = np.flatnonzero(np.isclose(self.sigmas, sigma, rtol=1e-6, atol=0))
        if not len(near):
            there = ", ".join(f"{value:g}" for value in self.sigmas)
            raise UsageError(f"{self.path} has no sigma {sigma:g}; it has {there}")
        return int(near[0])

    def read(self, site: str, sigma: float, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Features of one site at one noise level, (rows, D) float32."""
        if site not in self.sites:
            raise SiteError(f"no site {site!r} in {self.path}: {choices_hint(site, self.sites)}")
        index = self.sigma_index(sigma)
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise UsageError(f"rows must be contiguous, got step {step}; index the result instead")
        if stop > self.rows_done[index]:
            raise StoreError(
                f"{self.path}: rows {start}..{stop} of sigma {sigma:g} were asked for, "
                f"{self.rows_done[index]} are done; run the extract command again to finish it"
            )
        if not self._file:
            raise StoreError(f"{self.path} was closed; open it again with FeatureStore(path)")
        try:
            return np.asarray(self._file["sites"][site][index, start:stop], dtype=np.float32)
        except OSError as error:
            raise StoreError(
                f"{self.path}: site {site!r}, sigma {sigma:g}, rows {start}..{stop} are damaged "
                f"(checksum mismatch or unreadable: {' '.join(str(error).split())[:80]}); extract again"
            ) from None

    def close(self) -> None:
        """Close the file; reading is over."""
        self._file.close()

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


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if value is None else str(value)
