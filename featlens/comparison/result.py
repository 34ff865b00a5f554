"""The frozen, labelled result of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featlens.comparison.panel import QUANTITIES, Panel
from featlens.errors import UsageError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Comparison"]

FORMAT = "featlens.comparison"


@dataclass(frozen=True, repr=False)
class Comparison:
    """Similarity per (measure, pair of models, sigma, site of A, site of B), with interval and null level."""

    panels: tuple[Panel, ...]
    levels: tuple[tuple[float, float], ...]
    n: int
    warnings: tuple[str, ...]
    provenance: Mapping[str, Any]

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measures."""
        return tuple(dict.fromkeys(panel.measure for panel in self.panels))

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Names of the models of each pair."""
        return tuple(dict.fromkeys((panel.a, panel.b) for panel in self.panels))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models."""
        return tuple(self.provenance["models"])

    def panel(self, measure: str | None = None, a: str | None = None, b: str | None = None) -> Panel:
        """The one panel of a measure and a pair."""
        found = [
            panel
            for panel in self.panels
            if measure in (None, panel.measure) and a in (None, panel.a) and b in (None, panel.b)
        ]
        if len(found) != 1:
            raise UsageError(f"expected one panel, {len(found)} match; choose measure, a and b")
        return found[0]

    def grid(self, measure: str | None = None, a: str | None = None, b: str | None = None) -> xr.Dataset:
        """Data set of one panel over (sigma, site_a, site_b)."""
        import xarray as xr

        panel = self.panel(measure, a, b)
        dims = ("sigma", "site_a", "site_b")
        return xr.Dataset(
            {name: (dims, panel.arrays[name]) for name in QUANTITIES},
            coords={
                "sigma": [level[0] for level in self.levels],
                "sigma_b": ("sigma", [level[1] for level in self.levels]),
                "site_a": list(panel.sites_a),
                "site_b": list(panel.sites_b),
            },
        )

    def cells(self) -> list[dict[str, Any]]:
        """One dict per cell; NaN becomes None."""
        out = []
        for panel in self.panels:
            for index in np.ndindex(panel.flags.shape):
                numbers = {name: float(panel.arrays[name][index]) for name in QUANTITIES}
                level, i, j = index
                out.append(
                    {
                        "measure": panel.measure,
                        "a": panel.a,
                        "b": panel.b,
                        "sigma": self.levels[level][0],
                        "sigma_b": self.levels[level][1],
                        "site_a": panel.sites_a[i],
                        "site_b": panel.sites_b[j],
                        **{name: None if np.isnan(value) else value for name, value in numbers.items()},
                        "n": self.n,
                        "warnings": panel.remarks_of(level, i, j),
                    }
                )
        return out

    def to_json(self) -> str:
        """Object with ``cells`` and ``provenance``."""
        told = {"cells": self.cells(), "provenance": dict(self.provenance), "warnings": list(self.warnings)}
        return json.dumps(told)
