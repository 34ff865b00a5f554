"""Plotly figures of a comparison of one measure and pair of models: maps of sites and of noise levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.curves import depth_curves, sigma_curves
from featlens.comparison.drawing import (
    GREY,
    SIGNIFICANT,
    colour_range,
    hover,
    level_names,
    number_format,
    safe,
    same_names,
    short,
    site_axis,
    slider,
)
from featlens.comparison.panel import Panel
from featlens.errors import UsageError, choices_hint

if TYPE_CHECKING:
    from featlens.comparison.result import Comparison

__all__ = ["FIGURES", "best_matches", "cross_sigmas", "depth_curves", "heatmap", "sigma_curves"]


def heatmap(comparison: Comparison) -> Any:
    """Site x site heat map with a slider over sigma.

    Hover shows the value with interval, null level, p-values and noise ceiling. Cells that are not above
    their null (family-wise p above 0.05) are grey, undefined ones empty. Bright is alike, for distances, too.
    """
    import plotly.graph_objects as go

    panel = comparison.panel()
    sites_a, sites_b = ([safe(site) for site in sites] for sites in (panel.sites_a, panel.sites_b))
    lines, numbers = hover(comparison, panel)
    template = f"{safe(panel.a)} %{{y}}<br>{safe(panel.b)} %{{x}}<br>{lines}"
    template += "%{text}<extra></extra>" if panel.flags.any() else "<extra></extra>"
    tested = bool(np.isfinite(panel.arrays["p_family"]).any())
    last = len(comparison.levels) - 1
    traces = []
    for level in range(last + 1):
        where = {"x": sites_b, "y": sites_a, "visible": level == last}
        traces.append(
            go.Heatmap(
                z=panel.arrays["value"][level],
                customdata=numbers(level),
                text=_remarks(panel, level),
                hovertemplate=template,
                colorbar={"title": {"text": safe(panel.title), "side": "right"}, "thickness": 12},
                **where,
                **colour_range(panel),
            )
        )
        if tested:
            chance = np.where(panel.arrays["p_family"][level] > SIGNIFICANT, 1.0, np.nan)
            grey = {"colorscale": [[0, GREY], [1, GREY]], "zmin": 0, "zmax": 1, "showscale": False}
            traces.append(go.Heatmap(z=chance, hoverinfo="skip", **where, **grey))
    axis_a = site_axis(f"site of {safe(short(panel.a, 40))}", panel.sites_a, sites_a)
    axis_b = site_axis(f"site of {safe(short(panel.b, 40))}", panel.sites_b, sites_b)
    layout = go.Layout(
        xaxis={**axis_b, "type": "category", "tickangle": -60 if len(sites_b) > 2 else 0},
        yaxis={**axis_a, "type": "category", "autorange": "reversed"},
        sliders=slider(level_names(comparison.levels), 1 + tested, last),
        height=_height(len(sites_a)),
        margin={"t": 90 if last else 30, "r": 20},
    )
    return go.Figure(traces, layout)


def _height(sites: int) -> int:
    return int(np.clip(300 + 22 * sites, 380, 1000))


def _remarks(panel: Panel, level: int) -> list[list[str]] | None:
    """Warnings of each cell, each on a line of its own."""
    flags = panel.flags[level]
    if not panel.flags.any():
        return None
    return [
        [
            "".join(f"<br>{safe(remark)}" for remark in panel.remarks_of(level, i, j))
            for j in range(flags.shape[1])
        ]
        for i in range(flags.shape[0])
    ]


def best_matches(comparison: Comparison) -> Any:
    """The most similar site of B for each site of A, depth against depth, with a slider over sigma.

    Colour is the value; a match that is not above its null is grey. Circles are sites of the same name.
    """
    import plotly.graph_objects as go

    panel = comparison.panel()
    scale = colour_range(panel)
    last = len(comparison.levels) - 1
    traces = [
        _matches(comparison, level, by_chance, visible=level == last)
        for level in range(last + 1)
        for by_chance in (False, True)
    ]
    ends = {
        **site_axis(f"site of {safe(short(panel.a, 40))}", panel.sites_a, range(len(panel.sites_a))),
        "tickangle": -60 if len(panel.sites_a) > 2 else 0,
        "range": [-0.6, len(panel.sites_a) - 0.4],
    }
    found = {
        **site_axis(f"best site of {safe(short(panel.b, 40))}", panel.sites_b, range(len(panel.sites_b))),
        "range": [len(panel.sites_b) - 0.4, -0.6],
    }
    layout = go.Layout(
        xaxis=ends,
        yaxis=found,
        coloraxis={
            "colorscale": scale["colorscale"],
            "cmin": scale["zmin"],
            "cmax": scale["zmax"],
            "reversescale": scale.get("reversescale", False),
            "colorbar": {"title": {"text": safe(panel.title), "side": "right"}, "thickness": 12},
        },
        sliders=slider(level_names(comparison.levels), 2, last, always=1),
        height=_height(len(panel.sites_b)),
        margin={"t": 90 if last else 30, "r": 20},
    )
    same = same_names(panel)
    ring = {"symbol": "circle-open", "size": 1.6 * _marker(len(panel.sites_a)), "color": GREY}
    rings = go.Scatter(
        x=[i for i, _ in same],
        y=[j for _, j in same],
        mode="markers",
        marker=ring,
        hoverinfo="skip",
        showlegend=False,
    )
    return go.Figure([*traces, rings], layout)


def _matches(comparison: Comparison, level: int, by_chance: bool, visible: bool) -> Any:
    """Marks of the best matches at a level: those above their null, or the others, in grey."""
    import plotly.graph_objects as go

    panel = comparison.panel()
    lines, numbers = hover(comparison, panel)
    best = [(i, panel.best(level, i)) for i in range(len(panel.sites_a))]
    pairs = [(i, j) for i, j in best if j is not None]
    chance = panel.arrays["p_family"][level] > SIGNIFICANT
    pairs = [pair for pair in pairs if bool(chance[pair]) == by_chance]
    rows, columns = (np.array([pair[k] for pair in pairs], dtype=np.int64) for k in (0, 1))
    colour: dict[str, Any] = {"color": GREY}
    if not by_chance:
        colour = {"color": panel.arrays["value"][level, rows, columns], "coloraxis": "coloraxis"}
    other = safe(panel.b)
    return go.Scatter(
        x=rows,
        y=columns,
        mode="markers",
        marker={"symbol": "square", "size": _marker(len(panel.sites_a)), **colour},
        text=[f"{safe(panel.sites_a[i])}<br>{other} {safe(panel.sites_b[j])}" for i, j in pairs],
        customdata=numbers((level, rows, columns)),
        hovertemplate=f"{safe(panel.a)} %{{text}}<br>{lines}<extra></extra>",
        visible=visible,
        showlegend=False,
    )


def _marker(sites: int) -> float:
    return float(np.clip(240 / sites, 4, 14))


def cross_sigmas(comparison: Comparison, site: str | tuple[str, str] | None = None) -> Any:
    """Sigma of A x sigma of B heat map; the cross is the best sigma of B for each sigma of A.

    ``site`` is a name that both models have, or a pair (site of A, site of B); without it the mean over all
    sites of the same name is shown, without intervals.
    """
    import plotly.graph_objects as go

    panel = comparison.panel()
    if all(a == b for a, b in comparison.levels):
        raise UsageError(
            "figure 'cross' needs noise levels of A with other ones of B, this comparison has the same on "
            "both sides; compare with cross_sigmas=True"
        )
    values, title = _cross_values(panel, site)
    sides = [list(dict.fromkeys(level[k] for level in comparison.levels)) for k in (0, 1)]
    grid = np.full((len(sides[0]), len(sides[1])), np.nan)
    for (low, high), value in zip(comparison.levels, values.tolist(), strict=True):
        grid[sides[0].index(low), sides[1].index(high)] = value
    names = [level_names([(sigma, sigma) for sigma in side]) for side in sides]
    template = (
        f"sigma of {safe(panel.a)} %{{y}}<br>sigma of {safe(panel.b)} %{{x}}<br>"
        f"{title} %{{z:{number_format(panel)}}}<extra></extra>"
    )
    trace = go.Heatmap(
        z=grid,
        x=names[1],
        y=names[0],
        hovertemplate=template,
        colorbar={"title": {"text": title, "side": "right"}, "thickness": 12},
        **colour_range(panel),
    )
    sign = 1 if panel.direction == "similarity" else -1
    known = [k for k in range(len(grid)) if np.isfinite(grid[k]).any()]
    best = go.Scatter(
        x=[names[1][int(np.nanargmax(sign * grid[k]))] for k in known],
        y=[names[0][k] for k in known],
        mode="markers",
        marker={"symbol": "x-thin", "size": 10, "line": {"width": 2, "color": "#d62728"}},
        hoverinfo="skip",
        showlegend=False,
    )
    layout = go.Layout(
        xaxis={"title": {"text": f"sigma of {safe(short(panel.b, 40))}"}, "type": "category"},
        yaxis={"title": {"text": f"sigma of {safe(short(panel.a, 40))}"}, "type": "category"},
        height=_height(len(sides[0])),
        margin={"t": 30, "r": 20},
    )
    return go.Figure([trace, best], layout)


def _cross_values(panel: Panel, site: str | tuple[str, str] | None) -> tuple[NDArray[np.float64], str]:
    """Value at each level, and what it is."""
    if site is None:
        pairs = same_names(panel)
        if not pairs:
            raise UsageError(
                "figure 'cross' shows the mean over sites of the same name, here are none; give "
                "site=(site of A, site of B)"
            )
        chosen = np.stack([panel.arrays["value"][:, i, j] for i, j in pairs])
        known = np.isfinite(chosen)
        total = np.where(known, chosen, 0).sum(axis=0)
        mean = np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)
        return mean, f"{safe(panel.title)}, mean of {len(pairs)} sites"
    names = (site, site) if isinstance(site, str) else tuple(site)
    if len(names) != 2:
        raise UsageError(f"figure 'cross': expected site=NAME or (site of A, site of B), got {site!r}")
    place = []
    for name, sites, model in zip(names, (panel.sites_a, panel.sites_b), (panel.a, panel.b), strict=True):
        if name not in sites:
            raise UsageError(f"no site {name!r} of {model!r} was compared: {choices_hint(str(name), sites)}")
        place.append(sites.index(name))
    told = safe(names[0]) if names[0] == names[1] else f"{safe(names[0])} and {safe(names[1])}"
    return panel.arrays["value"][:, place[0], place[1]], f"{safe(panel.title)}, {told}"


FIGURES: dict[str, Callable[..., Any]] = {
    "heatmap": heatmap,
    "depth": depth_curves,
    "sigma": sigma_curves,
    "best": best_matches,
    "cross": cross_sigmas,
}
