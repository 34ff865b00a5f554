"""Plotly figures of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from featlens.comparison.result import Comparison

__all__ = ["FIGURES", "heatmap", "sigma_curves"]


def _hover(comparison: Comparison, index: int) -> Any:
    data = comparison.data.isel(sigma=index)
    return np.stack([data[name].values for name in ("null", "null_high", "p", "p_family")], axis=-1)


def heatmap(comparison: Comparison) -> Any:
    """Site x site heat map with a slider over sigma; hover shows value, null level and p-values."""
    import plotly.graph_objects as go

    data = comparison.data
    sigmas = data["sigma"].values.tolist()
    sites_a, sites_b = data["site_a"].values.tolist(), data["site_b"].values.tolist()
    name_a, name_b = comparison.names
    template = (
        f"{name_a} %{{y}}<br>{name_b} %{{x}}<br>CKA %{{z:.3f}}<br>null %{{customdata[0]:.3f}}, 95 % of it "
        "below %{customdata[1]:.3f}<br>p %{customdata[2]:.3f}, family-wise %{customdata[3]:.3f}"
        "<extra></extra>"
    )
    traces = [
        go.Heatmap(
            z=data["value"].values[index],
            x=sites_b,
            y=sites_a,
            customdata=_hover(comparison, index),
            hovertemplate=template,
            zmin=0,
            zmax=1,
            colorscale="Viridis",
            colorbar={"title": {"text": "CKA"}},
            visible=index == len(sigmas) - 1,
        )
        for index in range(len(sigmas))
    ]
    steps = [
        {
            "label": f"{sigma:g}",
            "method": "restyle",
            "args": ["visible", [j == i for j in range(len(sigmas))]],
        }
        for i, sigma in enumerate(sigmas)
    ]
    layout = go.Layout(
        xaxis={"title": {"text": f"site of {name_b}"}, "tickangle": -45, "automargin": True},
        yaxis={"title": {"text": f"site of {name_a}"}, "autorange": "reversed", "automargin": True},
        sliders=[
            {
                "active": len(sigmas) - 1,
                "currentvalue": {"prefix": "sigma "},
                "steps": steps,
                "pad": {"t": 110},
            }
        ],
        height=620,
    )
    return go.Figure(traces, layout)


def sigma_curves(comparison: Comparison) -> Any:
    """CKA of each site with the site of the same name, against sigma."""
    import plotly.graph_objects as go

    sigmas = comparison.data["sigma"].values.tolist()
    traces = [
        go.Scatter(x=sigmas, y=values, mode="lines+markers", name=site)
        for site, values in comparison.same_site().items()
    ]
    layout = go.Layout(
        xaxis={"title": {"text": "sigma"}, "type": "log"},
        yaxis={"title": {"text": "CKA, same site"}},
        height=460,
    )
    return go.Figure(traces, layout)


FIGURES: dict[str, Callable[[Comparison], Any]] = {"heatmap": heatmap, "sigma": sigma_curves}
