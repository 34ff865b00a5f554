"""The frozen, labelled result of a probe sweep."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featlens import FeatureStore
from featlens.errors import UsageError
from featlens.files import write_netcdf, write_text

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["ProbeResult"]

COLUMNS = ("accuracy", "ci_low", "ci_high", "validation", "chance", "chance_high")


@dataclass(frozen=True, repr=False)
class ProbeResult:
    """Probe accuracy per (sigma, site).

    Variables of the data set: ``accuracy`` on test rows and its 95 % interval ``ci_low`` to ``ci_high``;
    ``validation``, the accuracy on the rows that chose the penalty; ``chance``, the mean accuracy with
    permuted labels, and ``chance_high``, the 95 % quantile of it.
    """

    data: xr.Dataset

    @classmethod
    def from_arrays(
        cls,
        cells: NDArray[np.float64],
        sigmas: Sequence[float],
        sites: Sequence[str],
        n: tuple[int, int],
        classes: int,
        splits: int,
        seed: int,
        source: FeatureStore,
    ) -> ProbeResult:
        """Build from cells (S, sites, 6) in the order of the columns."""
        import xarray as xr

        data = xr.Dataset(
            {name: (("sigma", "site"), cells[:, :, index]) for index, name in enumerate(COLUMNS)},
            coords={"sigma": list(sigmas), "site": list(sites)},
            attrs={
                "format": "featlens.probe",
                "version": 1,
                "n_fit": n[0],
                "n_test": n[1],
                "classes": classes,
                "splits": splits,
                "seed": seed,
                "provenance": json.dumps({"file": str(source.path), **source.manifest}),
            },
        )
        return cls(data)

    def best(self) -> dict[str, Any]:
        """The cell of highest validation accuracy, with its accuracy on test rows, which did not choose."""
        validation = self.data["validation"].values
        at = (
            np.unravel_index(int(np.nanargmax(validation)), validation.shape)
            if np.isfinite(validation).any()
            else (0, 0)
        )
        cell = self.data.isel(sigma=int(at[0]), site=int(at[1]))
        return {
            "sigma": float(cell["sigma"]),
            "site": str(cell["site"].values),
            **{c: float(cell[c]) for c in COLUMNS},
        }

    def to_frame(self) -> pd.DataFrame:
        """One row a cell."""
        frame: pd.DataFrame = self.data.to_dataframe().reset_index()
        return frame

    def to_xarray(self) -> xr.Dataset:
        """Copy of the data set."""
        copy: xr.Dataset = self.data.copy(deep=True)
        return copy

    def cells(self) -> list[dict[str, Any]]:
        """The same as plain dicts; NaN becomes None."""
        arrays = {name: self.data[name].values for name in COLUMNS}
        return [
            {
                "sigma": sigma,
                "site": site,
                **{
                    name: float(array[i, j]) if np.isfinite(array[i, j]) else None
                    for name, array in arrays.items()
                },
            }
            for i, sigma in enumerate(self.data["sigma"].values.tolist())
            for j, site in enumerate(self.data["site"].values.tolist())
        ]

    def to_json(self) -> str:
        """Object with ``cells``, ``best``, the sizes of the split and ``provenance``."""
        attrs = {key: int(self.data.attrs[key]) for key in ("n_fit", "n_test", "classes", "splits", "seed")}
        provenance = json.loads(self.data.attrs["provenance"])
        # JSON knows no NaN, which is what chance is without permutations.
        best = {key: None if value != value else value for key, value in self.best().items()}
        return json.dumps({"cells": self.cells(), "best": best, **attrs, "provenance": provenance})

    def save(self, path: os.PathLike[str] | str) -> None:
        """Write JSON (``.json``), netCDF (``.nc``) or CSV (``.csv``), atomically."""
        target = Path(path)
        if target.suffix == ".json":
            write_text(target, self.to_json() + "\n")
        elif target.suffix == ".csv":
            write_text(target, self.to_frame().to_csv(index=False))
        elif target.suffix == ".nc":
            write_netcdf(target, self.data)
        else:
            raise UsageError(f"{target}: expected a name that ends in .json, .nc or .csv")

    def figure(self) -> Any:
        """Plotly heat map site x sigma; hover shows interval and chance level."""
        import plotly.graph_objects as go

        data = self.data.transpose("site", "sigma")
        extra = np.stack(
            [data[name].values for name in ("ci_low", "ci_high", "chance", "chance_high")], axis=-1
        )
        template = (
            "%{y}, sigma %{x}<br>accuracy %{z:.3f} (95 % interval %{customdata[0]:.3f} to "
            "%{customdata[1]:.3f})<br>"
            "chance %{customdata[2]:.3f}, 95 % of it below %{customdata[3]:.3f}<extra></extra>"
        )
        trace = go.Heatmap(
            z=data["accuracy"].values,
            x=[f"{sigma:g}" for sigma in data["sigma"].values],
            y=data["site"].values.tolist(),
            customdata=extra,
            hovertemplate=template,
            zmin=0,
            zmax=1,
            colorscale="Cividis",
            colorbar={"title": {"text": "accuracy"}},
        )
        layout = go.Layout(
            xaxis={"title": {"text": "sigma"}, "type": "category"},
            yaxis={"title": {"text": "site"}, "autorange": "reversed", "automargin": True},
            height=480,
        )
        return go.Figure(trace, layout)

    def __repr__(self) -> str:
        best = self.best()
        sizes = self.data.sizes
        return (
            f"ProbeResult({sizes['site']} sites x {sizes['sigma']} sigmas, "
            f"best {best['site']} at {best['sigma']:g}: {best['accuracy']:.3f})"
        )

    def _repr_html_(self) -> str:
        out: str = self.figure().to_html(full_html=False, include_plotlyjs="cdn")
        return out
