"""The frozen, labelled result of a comparison."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import StoreError, UsageError, choices_hint
from featlens.files import write_netcdf, write_text

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["Comparison"]

FORMAT = "featlens.comparison"


@dataclass(frozen=True, repr=False)
class Comparison:
    """Similarity per (sigma, site_a, site_b), with its null level.

    Variables of the data set: ``value``; ``null``, the mean over permutations of the samples; ``null_high``,
    their 95 % quantile; ``p``, the permutation p-value of each cell; ``p_family``, the same against the
    largest value of the whole grid of that sigma (family-wise). All but ``value`` are NaN without
    permutations.
    """

    data: xr.Dataset

    @classmethod
    def from_arrays(
        cls,
        measure: str,
        values: NDArray[np.float64],
        nulls: NDArray[np.float64],
        sigmas: Sequence[float],
        sites: tuple[Sequence[str], Sequence[str]],
        n: int,
        provenance: dict[str, Any],
        warnings: Sequence[str] = (),
    ) -> Comparison:
        """Build from values (S, A, B) and null values (S, P, A, B)."""
        import xarray as xr

        count = nulls.shape[1]
        blank = np.full_like(values, np.nan)
        null, high, p, family = blank, blank, blank, blank
        if count:
            null, high = nulls.mean(axis=1), np.quantile(nulls, 0.95, axis=1)
            p = (1 + (nulls >= values[:, None]).sum(axis=1)) / (1 + count)
            largest = np.nanmax(np.where(np.isnan(nulls), -np.inf, nulls), axis=(2, 3))
            family = (1 + (largest[:, :, None, None] >= values[:, None]).sum(axis=1)) / (1 + count)
            p, family = (np.where(np.isnan(values), np.nan, array) for array in (p, family))
        dims = ("sigma", "site_a", "site_b")
        data = xr.Dataset(
            {
                "value": (dims, values),
                "null": (dims, null),
                "null_high": (dims, high),
                "p": (dims, p),
                "p_family": (dims, family),
            },
            coords={"sigma": list(sigmas), "site_a": list(sites[0]), "site_b": list(sites[1])},
            attrs={
                "format": FORMAT,
                "version": 1,
                "measure": measure,
                "n": n,
                "provenance": json.dumps(provenance),
                "warnings": json.dumps(list(warnings)),
            },
        )
        return cls(data)

    @property
    def n(self) -> int:
        """Number of samples."""
        return int(self.data.attrs["n"])

    @property
    def measure(self) -> str:
        """Name of the measure."""
        return str(self.data.attrs["measure"])

    @property
    def warnings(self) -> list[str]:
        """What to keep in mind when reading the values."""
        return list(json.loads(self.data.attrs["warnings"]))

    @property
    def provenance(self) -> dict[str, Any]:
        """Where both sides come from."""
        return dict(json.loads(self.data.attrs["provenance"]))

    @property
    def names(self) -> tuple[str, str]:
        """Names of A and B."""
        where = self.provenance
        return str(where["a"]["name"]), str(where["b"]["name"])

    def to_xarray(self) -> xr.Dataset:
        """Copy of the data set."""
        copy: xr.Dataset = self.data.copy(deep=True)
        return copy

    def to_frame(self) -> pd.DataFrame:
        """One row per cell: sigma, site_a, site_b, value, null, null_high, p, p_family, n, warnings."""
        frame = self.data.to_dataframe().reset_index()
        told: pd.DataFrame = frame.assign(n=self.n, warnings="; ".join(self.warnings))
        return told

    def cells(self) -> list[dict[str, Any]]:
        """The same as plain dicts; NaN becomes None."""
        sigmas, sites_a, sites_b = (self.data[name].values.tolist() for name in ("sigma", "site_a", "site_b"))
        arrays = {name: self.data[name].values for name in ("value", "null", "null_high", "p", "p_family")}
        return [
            {
                "measure": self.measure,
                "sigma": sigma,
                "site_a": site_a,
                "site_b": site_b,
                **{
                    name: None if np.isnan(array[i, j, k]) else float(array[i, j, k])
                    for name, array in arrays.items()
                },
                "n": self.n,
                "warnings": self.warnings,
            }
            for i, sigma in enumerate(sigmas)
            for j, site_a in enumerate(sites_a)
            for k, site_b in enumerate(sites_b)
        ]

    def to_json(self) -> str:
        """Object with ``cells`` and ``provenance``."""
        return json.dumps({"cells": self.cells(), "provenance": self.provenance})

    def same_site(self) -> dict[str, NDArray[np.float64]]:
        """Values (S,) of each site that has the same name on both sides, over the noise levels."""
        there = set(self.data["site_b"].values.tolist())
        common = [site for site in self.data["site_a"].values.tolist() if site in there]
        return {site: np.asarray(self.data["value"].sel(site_a=site, site_b=site).values) for site in common}

    def save(self, path: os.PathLike[str] | str) -> None:
        """Write netCDF (``.nc``) or CSV (``.csv``), atomically."""
        target = Path(path)
        if target.suffix not in (".nc", ".csv"):
            raise UsageError(f"{target}: expected a name that ends in .nc or .csv")
        if target.suffix == ".csv":
            write_text(target, self.to_frame().to_csv(index=False))
        else:
            write_netcdf(target, self.data)

    @classmethod
    def load(cls, path: os.PathLike[str] | str) -> Comparison:
        """Read what :meth:`save` wrote as netCDF."""
        import xarray as xr

        from featlens.store.reader import open_hdf5

        with open_hdf5(Path(path), "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise StoreError(
                    f"{path}: expected a saved comparison, found another HDF5 file; "
                    "make one with Comparison.save('name.nc')"
                )
        with xr.open_dataset(path, engine="h5netcdf") as data:
            return cls(data.load())

    def figure(self, kind: str = "heatmap") -> Any:
        """Plotly figure: ``"heatmap"``, site x site with a slider, or ``"sigma"``, same site by sigma."""
        from featlens.comparison.figures import FIGURES

        if kind not in FIGURES:
            raise UsageError(f"unknown figure {kind!r}: {choices_hint(kind, FIGURES)}")
        return FIGURES[kind](self)

    def report(self, path: os.PathLike[str] | str) -> Path:
        """Write a self-contained HTML page and return its path."""
        from featlens.report import comparison_report

        return comparison_report(self, path)

    def __repr__(self) -> str:
        sizes = self.data.sizes
        a, b = self.names
        return (
            f"Comparison({self.measure}: {a} x {b}, {sizes['sigma']} sigmas, "
            f"{sizes['site_a']} x {sizes['site_b']} sites, n {self.n})"
        )

    def _repr_html_(self) -> str:
        out: str = self.figure().to_html(full_html=False, include_plotlyjs="cdn")
        return out
