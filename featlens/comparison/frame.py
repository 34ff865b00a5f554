"""A comparison as rows and as labelled arrays."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featlens.comparison.panel import QUANTITIES, Panel
from featlens.errors import UsageError
from featlens.files import human_bytes

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from featlens.comparison.result import Comparison

__all__ = ["cells_of", "frame_of", "labelled", "one_panel", "strict"]

DIMS = ("sigma", "site_a", "site_b")
MOST_BYTES = 4e9
"""Size beyond which the arrays of all panels are not put into one grid of all sites."""


def strict(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): strict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(entry) for entry in value]
    if isinstance(value, np.generic):
        return strict(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cells_of(comparison: Comparison) -> list[dict[str, Any]]:
    """One dict per cell of every panel; NaN and infinity become None."""
    out: list[dict[str, Any]] = []
    for panel in comparison.panels:
        columns = {name: strict(panel.arrays[name].ravel().tolist()) for name in QUANTITIES}
        places = (
            (level, i, j)
            for level in range(len(comparison.levels))
            for i in range(len(panel.sites_a))
            for j in range(len(panel.sites_b))
        )
        for index, (level, i, j) in enumerate(places):
            out.append(
                {
                    "measure": panel.measure,
                    "a": panel.a,
                    "b": panel.b,
                    "sigma": comparison.levels[level][0],
                    "sigma_b": comparison.levels[level][1],
                    "site_a": panel.sites_a[i],
                    "site_b": panel.sites_b[j],
                    **{name: column[index] for name, column in columns.items()},
                    "n": comparison.n,
                    "warnings": panel.remarks_of(level, i, j),
                }
            )
    return out


def frame_of(comparison: Comparison, told: Sequence[str] = ()) -> pd.DataFrame:
    """One row per cell, warnings joined by semicolons; ``told`` are added to those of every row."""
    import pandas as pd

    parts = [_frame(comparison, panel, told) for panel in comparison.panels]
    frame: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return frame


def _frame(comparison: Comparison, panel: Panel, told: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    shape = panel.flags.shape
    level, i, j = (index.ravel() for index in np.indices(shape))
    levels = np.array(comparison.levels, dtype=np.float64)
    # Few cells have remarks, and those few share them.
    texts = {
        int(flags): "; ".join([*(r for bit, r in enumerate(panel.remarks) if int(flags) >> bit & 1), *told])
        for flags in np.unique(panel.flags)
    }
    columns: dict[str, Any] = {
        "measure": panel.measure,
        "a": panel.a,
        "b": panel.b,
        "sigma": levels[level, 0],
        "sigma_b": levels[level, 1],
        "site_a": np.array(panel.sites_a, dtype=object)[i],
        "site_b": np.array(panel.sites_b, dtype=object)[j],
        **{name: panel.arrays[name].ravel() for name in QUANTITIES},
        "n": comparison.n,
        "warnings": [texts[flags] for flags in panel.flags.ravel().tolist()],
    }
    frame: pd.DataFrame = pd.DataFrame(columns)
    return frame


def one_panel(comparison: Comparison, panel: Panel) -> xr.Dataset:
    """Data set of one panel over (sigma, site_a, site_b)."""
    import xarray as xr

    return xr.Dataset(
        {name: (DIMS, panel.arrays[name]) for name in QUANTITIES},
        coords={
            "sigma": [level[0] for level in comparison.levels],
            "sigma_b": ("sigma", [level[1] for level in comparison.levels]),
            "site_a": list(panel.sites_a),
            "site_b": list(panel.sites_b),
        },
        attrs={
            "measure": panel.measure,
            "direction": panel.direction,
            "a": panel.a,
            "b": panel.b,
            "n": comparison.n,
        },
    )


def labelled(comparison: Comparison) -> xr.Dataset:
    """Data set of all panels over (measure, pair, sigma, site_a, site_b); NaN where a pair lacks a site."""
    import xarray as xr

    panels, measures, pairs = comparison.panels, comparison.measures, comparison.pairs
    sites_a = list(dict.fromkeys(site for panel in panels for site in panel.sites_a))
    sites_b = list(dict.fromkeys(site for panel in panels for site in panel.sites_b))
    shape = (len(measures), len(pairs), len(comparison.levels), len(sites_a), len(sites_b))
    size = 8 * len(QUANTITIES) * math.prod(shape)
    if size > MOST_BYTES:
        raise UsageError(
            f"one grid of all {len(sites_a)} x {len(sites_b)} sites of {len(pairs)} pairs would take "
            f"{human_bytes(size)}; use .grid(measure, a, b) or .select(...).data, one pair at a time"
        )
    arrays = {name: np.full(shape, np.nan) for name in QUANTITIES}
    rows, columns = ({site: k for k, site in enumerate(sites)} for sites in (sites_a, sites_b))
    for panel in panels:
        down, along = [rows[site] for site in panel.sites_a], [columns[site] for site in panel.sites_b]
        place = (slice(None), *np.ix_(down, along))
        where = (measures.index(panel.measure), pairs.index((panel.a, panel.b)))
        for name, array in arrays.items():
            array[where][place] = panel.arrays[name]
    for array in arrays.values():
        array.setflags(write=False)
    directions = {panel.measure: panel.direction for panel in panels}
    return xr.Dataset(
        {name: (("measure", "pair", *DIMS), array) for name, array in arrays.items()},
        coords={
            "measure": list(measures),
            "direction": ("measure", [directions[measure] for measure in measures]),
            "model_a": ("pair", [a for a, _ in pairs]),
            "model_b": ("pair", [b for _, b in pairs]),
            "sigma": [level[0] for level in comparison.levels],
            "sigma_b": ("sigma", [level[1] for level in comparison.levels]),
            "site_a": sites_a,
            "site_b": sites_b,
        },
        attrs={
            "n": comparison.n,
            "warnings": json.dumps(list(comparison.warnings)),
            "provenance": json.dumps(strict(dict(comparison.provenance))),
        },
    )
