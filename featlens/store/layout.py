"""Layout of a feature file, version 1 (docs/reference/file-format.md is the specification)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from featlens._version import __version__
from featlens.errors import StoreError

__all__ = [
    "FORMAT",
    "VERSION",
    "SiteInfo",
    "check_site_name",
    "check_sites",
    "chunk_rows",
    "creator",
    "primaries",
    "site_attributes",
]

FORMAT = "featlens.features"
VERSION = 1
CHUNK_BYTES = 1 << 20
MOST_CHUNK_ROWS = 256
"""A chunk is what a kill loses."""
LONGEST_NAME = 1000


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
    kind
        Class of the module, such as ``"Conv2d"``.
    same_as
        Name of the site with identical features whose dataset this one shares, or empty.
    """

    name: str
    order: int
    width: int
    channels: int = 0
    resolution: int = 0
    reducer: str = ""
    kind: str = ""
    same_as: str = ""


def check_site_name(name: str) -> str:
    """Refuse names that HDF5 or a file system would read as a path, or a terminal as a command."""
    if not name or "/" in name or name in (".", "..") or not name.isprintable() or len(name) > LONGEST_NAME:
        told = repr(name) if len(name) <= 60 else f"{name[:60]!r}... ({len(name)} characters)"
        raise StoreError(
            f"site name {told} cannot be stored: it must not be empty, '.', '..', hold '/', NUL or other "
            f"characters that cannot be printed, or be longer than {LONGEST_NAME}"
        )
    return name


def creator() -> str:
    """Versions of what makes a file; torch's where it is in use."""
    import sys

    versions = [f"featlens {__version__}"]
    for name in ("torch", "numpy", "h5py"):
        version = getattr(sys.modules.get(name), "__version__", None)
        versions += [f"{name} {version}"] if version else []
    return ", ".join(versions)


def chunk_rows(rows: int, widths: Sequence[int], itemsize: int) -> int:
    """Rows a chunk, the same for all sites of a file, so that the widest chunk stays near 1 MiB.

    >>> chunk_rows(50_000, [64, 512], 4), chunk_rows(50_000, [64, 65_536], 4)
    (256, 4)
    """
    fitting = CHUNK_BYTES // (max(widths) * itemsize)
    return max(1, min(rows, MOST_CHUNK_ROWS, fitting))


def primaries(sites: Iterable[SiteInfo]) -> list[SiteInfo]:
    """Sites with features of their own; the others share the features of one of these."""
    return [site for site in sites if not site.same_as]


def check_sites(sites: Sequence[SiteInfo]) -> None:
    """Refuse sites that cannot be in one file."""
    by_name = {check_site_name(site.name): site for site in sites}
    names = [site.name for site in sites]
    for site in sites:
        if site.width < 1 or names.count(site.name) > 1:
            raise StoreError(f"site {site.name!r} is empty or given twice")
        if not site.same_as:
            continue
        other = by_name.get(site.same_as)
        if other is None or other.same_as or other.width != site.width:
            raise StoreError(
                f"site {site.name!r} cannot share the features of {site.same_as!r}: expected a site of the "
                f"same width that has features of its own, got {other}"
            )


def site_attributes(site: SiteInfo) -> dict[str, int | str]:
    """What is stored about a site beside its name and width; an empty kind is left out."""
    found = asdict(site)
    keys = ("order", "channels", "resolution", "reducer") + (("kind",) if site.kind else ())
    return {key: found[key] for key in keys}
