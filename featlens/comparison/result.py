"""The frozen, labelled result of a comparison."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.choose import choose, provenance_of, same_panel, the_one
from featlens.comparison.frame import cells_of, frame_of, labelled, one_panel, strict
from featlens.comparison.panel import QUANTITIES, Panel
from featlens.errors import UsageError, choices_hint

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["Comparison"]


@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """Similarity per (measure, pair of models, sigma, site of A, site of B), with interval and null level.

    What :func:`featlens.compare` returns. Each :class:`~featlens.comparison.panel.Panel` is one measure
    between model A and model B. The quantities of a cell are those of
    :data:`~featlens.comparison.panel.QUANTITIES`: value, interval, null level, p-values and noise ceiling.
    Arrays are read-only. Where ``measure``, ``a`` or ``b`` may be given to a method, they may be left out if
    that leaves no choice; a pair may be asked for in the other order than it was compared in if the measure
    is symmetric.

    Attributes
    ----------
    panels
        One per measure and pair, measures outermost.
    levels
        (sigma of A, sigma of B) by noise level; both are the same unless ``cross_sigmas`` was asked for.
    n
        Number of samples.
    warnings
        What to keep in mind about the whole; warnings about single cells are in :meth:`cells`.
    provenance
        Where the features come from and how the comparison was made, fit for JSON.

    Examples
    --------
    >>> import numpy as np
    >>> from featlens import compare
    >>> x = np.random.default_rng(0).normal(size=(80, 5))
    >>> result = compare({"a": {"enc": x}, "b": {"enc": 2 * x}}, permutations=20)
    >>> print(result)
    Comparison(cka: a x b, 1 sigma, 1 x 1 sites, n 80)
    >>> round(float(result.same_site()["enc"][0]), 6)
    1.0
    """

    panels: tuple[Panel, ...]
    levels: tuple[tuple[float, float], ...]
    n: int
    warnings: tuple[str, ...]
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        keys = [(panel.measure, panel.a, panel.b) for panel in self.panels]
        if not keys or len(set(keys)) < len(keys):
            raise ValueError(f"expected one panel or more, each measure and pair once, got {keys}")
        for panel in self.panels:
            shape = (len(self.levels), len(panel.sites_a), len(panel.sites_b))
            if panel.flags.shape != shape:
                raise ValueError(
                    f"panel {panel.a} x {panel.b} has shape {panel.flags.shape}, expected {shape}"
                )

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
        """Names of the models, in the order in which they were given."""
        there = dict.fromkeys(name for pair in self.pairs for name in pair)
        given = [name for name in self.provenance.get("models", {}) if name in there]
        return tuple(dict.fromkeys([*given, *there]))

    def select(self, measure: str | None = None, a: str | None = None, b: str | None = None) -> Comparison:
        """The part about a measure, a model as A, a model as B.

        Raises
        ------
        UsageError
            If there is nothing of that name (names the nearest), or if the pair is there only in the other
            order and the measure is not symmetric.
        """
        panels, reverse = choose(self.panels, measure, a, b)
        return Comparison(
            tuple(panels),
            tuple((high, low) for low, high in self.levels) if reverse else self.levels,
            self.n,
            self.warnings,
            provenance_of(self.provenance, panels),
        )

    def panel(self, measure: str | None = None, a: str | None = None, b: str | None = None) -> Panel:
        """The one panel of a measure and a pair."""
        return the_one(self.panels, measure, a, b)[0]

    def only(self, measure: str | None = None, a: str | None = None, b: str | None = None) -> Comparison:
        """The same comparison with the one panel of a measure and a pair; refuses where there are several."""
        the_one(self.panels, measure, a, b)
        return self.select(measure, a, b)

    @cached_property
    def _labelled(self) -> xr.Dataset:
        return labelled(self)

    @property
    def data(self) -> xr.Dataset:
        """Data set of everything over (measure, pair, sigma, site_a, site_b).

        Coordinates ``model_a`` and ``model_b`` name the models along pair; ``sigma_b`` is the noise level
        of B along sigma. NaN where a pair lacks a site. Made when it is first asked for; its arrays are
        read-only.
        """
        # A shallow copy: nobody can put anything into the one that is kept.
        copy: xr.Dataset = self._labelled.copy(deep=False)
        return copy

    def to_xarray(self) -> xr.Dataset:
        """Copy of :attr:`data` that may be changed."""
        copy: xr.Dataset = self._labelled.copy(deep=True)
        return copy

    def grid(self, measure: str | None = None, a: str | None = None, b: str | None = None) -> xr.Dataset:
        """Data set of one measure and pair over (sigma, site_a, site_b)."""
        part = self.only(measure, a, b)
        return one_panel(part, part.panels[0])

    def cells(self) -> list[dict[str, Any]]:
        """One dict per cell: measure, a, b, sigma, sigma_b, site_a, site_b, all quantities, n and warnings.

        NaN becomes None; ``warnings`` is a list of what concerns this cell.
        """
        return cells_of(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per cell with the columns of :meth:`cells`; warnings are joined by semicolons."""
        return frame_of(self)

    def to_json(self) -> str:
        """Strict JSON: an object with ``cells``, ``provenance``, ``warnings`` and ``levels``."""
        told = {
            "cells": self.cells(),
            "provenance": strict(dict(self.provenance)),
            "warnings": list(self.warnings),
            "levels": [list(level) for level in self.levels],
        }
        return json.dumps(told, allow_nan=False)

    def same_site(
        self, measure: str | None = None, a: str | None = None, b: str | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """Values (levels,) of each site that has the same name in both models."""
        panel = self.panel(measure, a, b)
        place = {site: j for j, site in enumerate(panel.sites_b)}
        value = panel.arrays["value"]
        return {
            site: value[:, i, place[site]].copy() for i, site in enumerate(panel.sites_a) if site in place
        }

    def best_matches(
        self, measure: str | None = None, a: str | None = None, b: str | None = None
    ) -> list[dict[str, Any]]:
        """The most similar site of B for each noise level and site of A.

        Keys: sigma, sigma_b, site_a, site_b, the quantities and warnings. ``site_b`` and all numbers are None
        where every value is undefined.
        """
        part = self.only(measure, a, b)
        panel = part.panels[0]
        out = []
        for level, (sigma, sigma_b) in enumerate(part.levels):
            for i, site in enumerate(panel.sites_a):
                j = panel.best(level, i)
                numbers = {
                    name: None if j is None else strict(float(panel.arrays[name][level, i, j]))
                    for name in QUANTITIES
                }
                told = [] if j is None else panel.remarks_of(level, i, j)
                other = None if j is None else panel.sites_b[j]
                out.append(
                    {
                        "sigma": sigma,
                        "sigma_b": sigma_b,
                        "site_a": site,
                        "site_b": other,
                        **numbers,
                        "warnings": told,
                    }
                )
        return out

    def equals(self, other: Comparison) -> bool:
        """Whether everything is the same, every number bit for bit (NaN equals NaN)."""
        if (self.levels, self.n, self.warnings) != (other.levels, other.n, other.warnings):
            return False
        if dict(self.provenance) != dict(other.provenance) or len(self.panels) != len(other.panels):
            return False
        return all(same_panel(a, b) for a, b in zip(self.panels, other.panels, strict=True))

    def join(self, other: Comparison) -> Comparison:
        """Both in one; see :func:`featlens.comparison.combine.join`."""
        from featlens.comparison.combine import join

        return join(self, other)

    def difference(
        self, other: Comparison, measure: str | None = None, a: str | None = None, b: str | None = None
    ) -> Comparison:
        """Values minus those of the other; see :func:`featlens.comparison.combine.difference`."""
        from featlens.comparison.combine import difference

        return difference(self.only(measure, a, b), other)

    def save(self, path: os.PathLike[str] | str) -> None:
        """Write everything as netCDF (``.nc``), or the table as CSV (``.csv``), atomically.

        In netCDF every panel is a group with the dimensions (sigma, site_a, site_b).
        """
        from featlens.comparison.saved import save

        save(self, Path(path))

    @classmethod
    def load(cls, path: os.PathLike[str] | str) -> Comparison:
        """Read what :meth:`save` wrote as netCDF.

        Raises
        ------
        StoreError
            If the file is something else, damaged, or of another format version.
        """
        from featlens.comparison.saved import load

        return load(Path(path))

    def figure(
        self,
        kind: str = "heatmap",
        measure: str | None = None,
        a: str | None = None,
        b: str | None = None,
        **options: Any,
    ) -> Any:
        """Plotly figure of one measure and pair.

        Kinds: ``"heatmap"``, site x site with a slider over sigma; ``"depth"``, same site by depth;
        ``"sigma"``, same site against sigma; ``"best"``, the best match of each site; ``"cross"``, sigma of A
        x sigma of B after ``compare(..., cross_sigmas=True)``, of the mean over same sites or of ``site=``.
        """
        from featlens.comparison.figures import FIGURES

        if kind not in FIGURES:
            raise UsageError(f"unknown figure {kind!r}: {choices_hint(str(kind), FIGURES)}")
        return FIGURES[kind](self.only(measure, a, b), **options)

    def report(self, path: os.PathLike[str] | str, **options: Any) -> Path:
        """Write a self-contained HTML page and return its path."""
        from featlens.report import comparison_report

        return comparison_report(self, path, **options)

    def __repr__(self) -> str:
        count = len(self.levels)
        what = "sigma" if all(a == b for a, b in self.levels) else "sigma pair"
        levels = f"{count} {what}" + "s" * (count != 1)
        if len(self.panels) == 1:
            panel = self.panels[0]
            return (
                f"Comparison({panel.measure}: {panel.a} x {panel.b}, {levels}, "
                f"{len(panel.sites_a)} x {len(panel.sites_b)} sites, n {self.n})"
            )
        count = len(self.pairs)
        pairs = f"{count} pair" + "s" * (count != 1)
        measures, names = ", ".join(self.measures), ", ".join(self.names)
        return f"Comparison({measures}: {pairs} of {names}, {levels}, n {self.n})"

    def _repr_html_(self) -> str:
        from featlens.comparison.snippet import snippet

        return snippet(self)
