"""Curves of sites that have the same name in both models, by depth and by noise level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.drawing import (
    GREY,
    LEGEND,
    band,
    hover,
    key_of_lines,
    level_names,
    note,
    palette,
    safe,
    same_names,
    short,
    site_axis,
    site_labels,
)
from featlens.comparison.panel import Panel

if TYPE_CHECKING:
    from featlens.comparison.result import Comparison

__all__ = ["depth_curves", "sigma_curves"]

MOST_BANDS = 12
"""Lines beyond which bands would hide each other; intervals are then on hover only."""
MOST_NAMED = 6
"""Lines that a legend can hold on a narrow page; a colour bar names more."""
NOTHING = "No site has the same name in both models.<br>The figures “heatmap” and “best” compare all sites."


def depth_curves(comparison: Comparison) -> Any:
    """Similarity of sites of the same name by depth, one line a sigma, with intervals as bands.

    Dotted: the null level (95 % of permutations are beyond it), the hardest to pass over the sigmas.
    """
    import plotly.graph_objects as go

    panel = comparison.panel()
    pairs = same_names(panel)
    if not pairs:
        return note(NOTHING)
    levels = equal_levels(comparison)
    i, j = (np.array([pair[k] for pair in pairs], dtype=np.int64) for k in (0, 1))
    sites = [panel.sites_a[k] for k in i]
    places = list(range(len(sites)))
    names = level_names([comparison.levels[level] for level in levels])
    traces: list[Any] = []
    for name, level, colour in zip(names, levels, palette(len(levels)), strict=True):
        told = [safe(site) for site in sites]
        traces += _line(comparison, panel, (level, i, j), places, told, f"sigma {name}", colour, len(levels))
    high = panel.arrays["null_high"][np.ix_(levels, range(len(panel.sites_a)), range(len(panel.sites_b)))]
    traces += _null(panel, places, high[:, i, j])
    if len(levels) > MOST_NAMED:
        traces.append(key_of_lines("sigma", names))
    layout = go.Layout(
        xaxis={
            **site_axis("site, from input to output", sites, places),
            "tickangle": -60 if len(sites) > 2 else 0,
            "range": [-0.5, len(sites) - 0.5],
        },
        yaxis=value_axis(panel),
        legend=LEGEND,
        showlegend=len(levels) <= MOST_NAMED,
        height=480,
        margin={"t": 40, "r": 20},
    )
    return go.Figure(traces, layout)


def sigma_curves(comparison: Comparison) -> Any:
    """Similarity of each site with the site of the same name against sigma, with intervals as bands.

    Dotted: the null level (95 % of permutations are beyond it), the hardest to pass over the sites. Colours
    go from input to output.
    """
    import plotly.graph_objects as go

    panel = comparison.panel()
    pairs = same_names(panel)
    if not pairs:
        return note(NOTHING)
    levels = equal_levels(comparison)
    # A line needs its points in order, whatever the order in which the levels were asked for.
    levels = sorted(levels, key=lambda level: comparison.levels[level])
    sigmas = [comparison.levels[level][0] for level in levels]
    names = level_names([comparison.levels[level] for level in levels])
    logarithmic = min(sigmas) > 0
    x = sigmas if logarithmic else list(range(len(sigmas)))
    traces: list[Any] = []
    for (i, j), colour in zip(pairs, palette(len(pairs)), strict=True):
        site = safe(short(panel.sites_a[i], 28))
        told = [f"{safe(panel.sites_a[i])}, sigma {name}" for name in names]
        traces += _line(comparison, panel, (np.array(levels), i, j), x, told, site, colour, len(pairs))
    if len(pairs) > MOST_NAMED:
        traces.append(
            key_of_lines("site, from input to output", site_labels([panel.sites_a[i] for i, _ in pairs]))
        )
    at = np.array(pairs)
    traces += _null(panel, x, panel.arrays["null_high"][np.array(levels)][:, at[:, 0], at[:, 1]].T)
    layout = go.Layout(
        xaxis=_sigma_axis(x, names, logarithmic),
        yaxis=value_axis(panel),
        legend=LEGEND,
        showlegend=len(pairs) <= MOST_NAMED,
        height=480,
        margin={"t": 40, "r": 20},
    )
    return go.Figure(traces, layout)


def equal_levels(comparison: Comparison) -> list[int]:
    """Levels at which A and B have the same sigma; all where there is none."""
    found = [k for k, (a, b) in enumerate(comparison.levels) if a == b]
    return found or list(range(len(comparison.levels)))


def value_axis(panel: Panel) -> dict[str, Any]:
    """Axis of values: from 0 to the largest possible value where there is one."""
    axis: dict[str, Any] = {"title": {"text": f"{safe(panel.title)}, same site"}, "automargin": True}
    shown = np.stack([panel.arrays[name] for name in ("value", "ci_low", "ci_high")])
    there = shown[np.isfinite(shown)]
    if panel.direction == "similarity" and panel.bounds[1] == 1 and there.size:
        return axis | {"range": [min(-0.03, float(there.min()) - 0.03), max(1.03, float(there.max()) + 0.03)]}
    return axis | {"rangemode": "tozero"}


def _line(
    comparison: Comparison,
    panel: Panel,
    index: Any,
    x: Sequence[Any],
    told: Sequence[str],
    name: str,
    colour: str,
    lines: int,
) -> list[Any]:
    """Line of the values at an index of the arrays, with its band; a single point has an error bar."""
    import plotly.graph_objects as go

    template, numbers = hover(comparison, panel)
    value, low, high = (panel.arrays[key][index] for key in ("value", "ci_low", "ci_high"))
    line = go.Scatter(
        x=list(x),
        y=value,
        name=name,
        legendgroup=name,
        mode="lines+markers",
        line={"color": colour, "width": 2},
        text=list(told),
        customdata=numbers(index),
        hovertemplate=f"%{{text}}<br>{template}<extra></extra>",
    )
    if not np.isfinite(low).any() or lines > MOST_BANDS:
        return [line]
    if len(x) == 1:
        line.error_y = {"type": "data", "array": high - value, "arrayminus": value - low, "symmetric": False}
        return [line]
    around = band(x, low, high, colour, 0.2 if lines <= MOST_NAMED else 0.1)
    around.legendgroup = name
    return [around, line]


def _null(panel: Panel, x: Sequence[Any], levels: NDArray[np.float64]) -> list[Any]:
    """Dotted line of null levels (lines, x): the one hardest to pass; none without permutations."""
    import plotly.graph_objects as go

    known = np.isfinite(levels)
    if not known.any():
        return []
    worst = -np.inf if panel.direction == "similarity" else np.inf
    filled = np.where(known, levels, worst)
    hardest = filled.max(axis=0) if panel.direction == "similarity" else filled.min(axis=0)
    line = {"dash": "dot", "color": GREY, "width": 2}
    mode = "lines" if len(x) > 1 else "markers"
    marker = {"symbol": "line-ew", "size": 40, "line": {"width": 2, "color": GREY}}
    return [
        go.Scatter(
            x=list(x),
            y=np.where(np.isfinite(hardest), hardest, np.nan),
            name="null 95 %",
            mode=mode,
            line=line,
            marker=marker,
            hovertemplate="null 95 % %{y:.3f}<extra></extra>",
        )
    ]


def _sigma_axis(x: Sequence[Any], names: Sequence[str], logarithmic: bool) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": "sigma"}}
    if logarithmic and len(x) > 12:
        return axis | {"type": "log"}
    # Every sigma has its own tick; so close together that they would overlap, plotly turns them.
    axis |= {"tickmode": "array", "tickvals": list(x), "ticktext": list(names)}
    return axis | ({"type": "log"} if logarithmic else {"range": [-0.5, len(x) - 0.5]})
