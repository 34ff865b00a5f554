"""A comparison as a file: netCDF-4 with one group a panel, read without trusting it; or a CSV table.

The file is written with h5py alone, so neither saving nor loading waits for xarray. Every array has a
checksum.

Layout (version 2): attributes of the root are ``format``, ``version``, ``n`` and, as JSON, ``levels``,
``warnings``, ``provenance`` and ``panels``, a list with everything of each panel that is no array. Group
``panel0``, ``panel1``, ... holds the variables of :data:`~featlens.comparison.panel.QUANTITIES` and ``flags``
over the dimensions (sigma, site_a, site_b), with the coordinate variables.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.frame import frame_of, strict
from featlens.comparison.panel import QUANTITIES, Panel
from featlens.errors import StoreError, UsageError
from featlens.files import explain_os_error, write_bytes, write_text
from featlens.store.guard import check_dataset, check_size, integer, linked, text
from featlens.store.open import SIGNATURE, FileInUse, open_hdf5, shown

if TYPE_CHECKING:
    from featlens.comparison.result import Comparison

__all__ = ["FORMAT", "VERSION", "load", "save"]

FORMAT = "featlens.comparison"
VERSION = 2
DIMS = ("sigma", "site_a", "site_b")
MAKE = "make one with Comparison.save('name.nc')"


def save(comparison: Comparison, path: Path) -> None:
    """Write ``.nc`` or ``.csv``; see :meth:`Comparison.save`."""
    if path.suffix == ".csv":
        # A table has no other place for what concerns the whole.
        write_text(path, frame_of(comparison, comparison.warnings).to_csv(index=False))
    elif path.suffix == ".nc":
        write_bytes(path, _as_netcdf(comparison))
    else:
        raise UsageError(f"{path}: expected a name that ends in .nc or .csv")


def _as_netcdf(comparison: Comparison) -> bytes:
    """The file, made in memory, because HDF5 crashes where a disk is full."""
    import h5py

    buffer = io.BytesIO()
    # NetCDF reads HDF5 files whose objects know in which order they were made. From HDF5 1.10 on all
    # structure has checksums of its own, so that damage there is found, too.
    with h5py.File(buffer, "w", track_order=True, libver=("v110", "latest")) as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file.attrs["n"] = comparison.n
        file.attrs["levels"] = json.dumps([list(level) for level in comparison.levels])
        file.attrs["warnings"] = json.dumps(list(comparison.warnings))
        file.attrs["provenance"] = json.dumps(strict(dict(comparison.provenance)), allow_nan=False)
        file.attrs["panels"] = json.dumps([_words(panel) for panel in comparison.panels], allow_nan=False)
        for number, panel in enumerate(comparison.panels):
            _write_panel(file.create_group(f"panel{number}", track_order=True), panel, comparison.levels)
    return buffer.getvalue()


def _words(panel: Panel) -> dict[str, Any]:
    """Everything of a panel but its arrays; None stands for a bound that is infinite."""
    return {
        "measure": panel.measure,
        "direction": panel.direction,
        "title": panel.title,
        "bounds": [bound if math.isfinite(bound) else None for bound in panel.bounds],
        "a": panel.a,
        "b": panel.b,
        "sites_a": list(panel.sites_a),
        "sites_b": list(panel.sites_b),
        "remarks": list(panel.remarks),
        "how": dict(panel.how),
    }


def _write_panel(group: Any, panel: Panel, levels: tuple[tuple[float, float], ...]) -> None:
    import h5py

    kind = h5py.string_dtype()
    group.attrs["measure"], group.attrs["direction"] = _printable(panel.measure), panel.direction
    group.attrs["a"], group.attrs["b"] = _printable(panel.a), _printable(panel.b)
    group["sigma"] = np.array([level[0] for level in levels])
    for name, sites in (("site_a", panel.sites_a), ("site_b", panel.sites_b)):
        group.create_dataset(name, data=[_printable(site) for site in sites], dtype=kind)
    for name in DIMS:
        group[name].make_scale(name)
    group["sigma_b"] = np.array([level[1] for level in levels])
    group["sigma_b"].dims[0].attach_scale(group["sigma"])
    for name, array in {**panel.arrays, "flags": panel.flags}.items():
        chunk = (1, *array.shape[1:])
        variable = group.create_dataset(name, data=array, chunks=chunk, fletcher32=True)
        for axis, dim in enumerate(DIMS):
            variable.dims[axis].attach_scale(group[dim])
    for name in QUANTITIES:
        group[name].attrs["coordinates"] = "sigma_b"


def _printable(name: str) -> str:
    """Name for other readers: HDF5 texts end at a zero and are UTF-8; ours is in the attribute ``panels``."""
    return name.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def load(path: Path) -> Comparison:
    """Read and check a saved comparison."""
    try:
        with path.open("rb") as raw:
            head = raw.read(len(SIGNATURE))
    except OSError as error:
        raise explain_os_error(error, path) from error
    if head != SIGNATURE:
        raise StoreError(f"{path}: expected a saved comparison (netCDF-4), found something else; {MAKE}")
    try:
        with open_hdf5(path) as file:
            return _read(file, path)
    except FileInUse:
        raise
    except StoreError as error:
        told = str(error)
        raise (error if told.startswith(f"{path}: ") else StoreError(_damaged(path, told))) from None
    except Exception as error:  # What h5py raises on damaged structure is not only OSError.
        raise StoreError(_damaged(path, shown(error))) from None


def _damaged(path: Path, why: str) -> str:
    told = why.removeprefix(f"{path} ").removeprefix("is ").partition(";")[0]
    return (
        f"{path}: expected a whole saved comparison, found a damaged one ({told}); copy it or compare again"
    )


def _read(file: Any, path: Path) -> Comparison:
    from featlens.comparison.result import Comparison

    if "format" not in file.attrs or text(file, "format") != FORMAT:
        raise StoreError(f"{path}: expected a saved comparison, found another HDF5 file; {MAKE}")
    version = integer(file, "version")
    if version is None:
        raise StoreError("the attribute 'version' is missing")
    if version > VERSION:
        raise StoreError(
            f"{path}: expected format version {VERSION}, found {version}, written by a newer featlens; "
            "upgrade featlens"
        )
    if version < VERSION:
        raise StoreError(
            f"{path}: expected format version {VERSION}, found {version}, written by an earlier featlens "
            "without confidence intervals; compare again"
        )
    levels = _levels(_json(file, "levels"))
    seen: set[int] = set()
    panels = [
        _read_panel(file, number, told, len(levels), seen)
        for number, told in enumerate(_list(file, "panels"))
    ]
    n = integer(file, "n", least=1)
    provenance = _json(file, "provenance")
    if n is None or not isinstance(provenance, dict) or not panels:
        raise StoreError("the number of samples, the provenance or the panels are missing")
    try:
        return Comparison(tuple(panels), levels, n, _strings(_list(file, "warnings")), provenance)
    except ValueError as error:
        raise StoreError(shown(error)) from None


def _json(file: Any, name: str) -> Any:
    try:
        return json.loads(text(file, name) or "")
    except (ValueError, RecursionError) as error:
        raise StoreError(f"attribute {name!r} is not JSON: {shown(error, 60)}") from None


def _list(file: Any, name: str) -> list[Any]:
    found = _json(file, name)
    if not isinstance(found, list):
        raise StoreError(f"attribute {name!r} is a JSON {type(found).__name__}, expected a list")
    return found


def _strings(found: Any) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise StoreError(f"expected a list of texts, found {shown(found, 40)}")
    return tuple(found)


def _levels(found: Any) -> tuple[tuple[float, float], ...]:
    good = isinstance(found, list) and len(found) > 0
    good = good and all(isinstance(level, list) and len(level) == 2 for level in found)
    if not good or not all(type(value) in (int, float) for level in found for value in level):
        raise StoreError(f"'levels' holds {shown(found, 60)}, expected pairs of noise levels")
    return tuple((float(low), float(high)) for low, high in found)


def _read_panel(file: Any, number: int, told: Any, levels: int, seen: set[int]) -> Panel:
    group = linked(file, f"panel{number}", f"panel {number}")
    words = ("measure", "title", "a", "b")
    if not isinstance(told, dict) or not all(isinstance(told.get(word), str) for word in words):
        raise StoreError(f"attribute 'panels' tells nonsense of panel {number}")
    if group is None or told.get("direction") not in ("similarity", "distance"):
        raise StoreError(f"panel {number} or its direction is missing")
    sites = _strings(told.get("sites_a")), _strings(told.get("sites_b"))
    how = told.get("how")
    if not isinstance(how, dict) or not all(isinstance(entry, str) for entry in how.values()):
        raise StoreError(f"panel {number} does not say how it was computed")
    shape = (levels, len(sites[0]), len(sites[1]))
    arrays = {name: _array(group, name, shape, "f", seen) for name in QUANTITIES}
    return Panel(
        told["measure"],
        told["direction"],
        told["title"],
        _bounds(told.get("bounds")),
        told["a"],
        told["b"],
        *sites,
        {name: array.astype(np.float64, copy=False) for name, array in arrays.items()},
        _array(group, "flags", shape, "iu", seen).astype(np.int64, copy=False),
        _strings(told.get("remarks")),
        how,
    )


def _bounds(found: Any) -> tuple[float, float]:
    good = isinstance(found, list) and len(found) == 2
    if not good or not all(bound is None or type(bound) in (int, float) for bound in found):
        raise StoreError(f"'bounds' is {shown(found, 40)}, expected two numbers")
    low, high = found
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def _array(group: Any, name: str, shape: tuple[int, ...], kinds: str, seen: set[int]) -> NDArray[Any]:
    import h5py

    where = shown(f"'{group.name}/{name}'")
    found = linked(group, name, where)
    if found is None:
        raise StoreError(f"the dataset {where} is missing")
    check_dataset(found, where, kinds)
    if found.shape != shape:
        raise StoreError(f"{where} has shape {found.shape}, expected {shape}")
    # Under many names, one array of a small file would fill the memory.
    address = h5py.h5o.get_info(found.id).addr
    if address in seen:
        raise StoreError(f"{where} is another array under a second name")
    seen.add(address)
    check_size(found, where, math.prod(shape) * found.dtype.itemsize, group.file.id.get_filesize())
    try:
        values: NDArray[Any] = found[()]
    except OSError as error:
        raise StoreError(f"{where} cannot be read: {shown(error, 80)}") from None
    return values
