"""Layout of a feature file, version 1 (docs/reference/file-format.md is the specification)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featlens.errors import StoreError

__all__ = ["FORMAT", "VERSION", "SiteInfo", "chunk_rows", "check_site_name"]

FORMAT = "featlens.features"
VERSION = 1
CHUNK_BYTES = 1 << 18
MOST_CHUNK_ROWS = 256


@dataclass(frozen=True)
class SiteInfo:
    """One site of a feature file.

    Attributes
    ----------
    name
        Module path, such as ``"enc.8x8_block0"``.
    order
        Position in the order of execution, from 0.
    width
        Number of stored features D.
    channels
        Channels of the module's output before reduction.
    resolution
        Height and width in pixels, or 0 where the output is no map.
    reducer
        Name of the reduction, such as ``"gap"``.
    """

    name: str
    order: int
    width: int
    channels: int = 0
    resolution: int = 0
    reducer: str = ""


def check_site_name(name: str) -> str:
    """Refuse names that HDF5 or a file system would read as a path."""
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise StoreError(
            f"site name {name!r} cannot be stored: it must not be empty, '.', '..' or hold '/' or NUL"
        )
    return name


def chunk_rows(rows: int, widths: Sequence[int], itemsize: int) -> int:
    """Rows a chunk, the same for all sites of a file, so that the widest chunk stays near 256 KiB."""
    widest = max(widths)
    fitting = max(1, CHUNK_BYTES // (widest * itemsize))
    return max(1, min(rows, MOST_CHUNK_ROWS, fitting))
