"""What all figures of a comparison share: safe text, labels, colours, sliders, bands."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.panel import Panel

if TYPE_CHECKING:
    from featlens.comparison.result import Comparison

__all__ = [
    "GREY",
    "LEGEND",
    "SIGNIFICANT",
    "band",
    "colour_range",
    "hover",
    "key_of_lines",
    "level_names",
    "note",
    "number_format",
    "palette",
    "safe",
    "same_names",
    "short",
    "site_axis",
    "site_labels",
    "slider",
]

GREY = "#9aa0a6"
"""Of cells that are not above their null, and of null levels; readable in light and dark."""
SIGNIFICANT = 0.05
"""Largest family-wise p-value of a cell that is above its null."""
LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
MOST_TICKS = 50
MOST_KEYS = 12
LONGEST = 18
DOTS = "\N{HORIZONTAL ELLIPSIS}"


def safe(text: str) -> str:
    """Text that plotly shows as it is: it reads a subset of HTML, ``%{...}`` and, with MathJax, ``$...$``.

    >>> safe("<b>$x$</b>")
    '&lt;b&gt;&#36;x&#36;&lt;/b&gt;'
    """
    out = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    for letter, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;"), ("%{", "&#37;{")):
        out = out.replace(letter, entity)
    return out


def short(text: str, most: int = LONGEST) -> str:
    """Text of at most ``most`` characters, its middle left out.

    >>> short("enc.32x32_block0.conv_res1", 15)
    'enc.32x…nv_res1'
    """
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}{DOTS}{text[-half:]}"


def site_labels(sites: Sequence[str]) -> list[str]:
    """Names of sites made short, all different, ready for plotly: what all share is left out first.

    >>> site_labels(["enc.block0.conv_res1.weighted", "dec.block11.conv_res1.weighted"])
    ['enc.block0…', 'dec.block11…']
    """
    names = list(sites)
    if len(names) > 1 and max(map(len, names)) > LONGEST:
        words = [name.split(".") for name in names]
        least = min(map(len, words)) - 1
        ends = [len({tuple(word[-count:]) for word in words}) == 1 for count in range(1, least + 1)]
        shared = [*ends, False].index(False)
        if shared:
            names = [f"{'.'.join(word[:-shared])}{DOTS}" for word in words]
    for most in range(LONGEST, max(map(len, names), default=0) + 1, 4):
        cut = [short(name, most) for name in names]
        if len(set(cut)) == len(set(names)):
            return [safe(name) for name in cut]
    return [safe(name) for name in names]


def site_axis(title: str, sites: Sequence[str], places: Sequence[Any]) -> dict[str, Any]:
    """Axis with the names of sites at their places: shortened, and thinned out where there are many."""
    step = -(-len(sites) // MOST_TICKS)
    return {
        "title": {"text": title},
        "tickmode": "array",
        "tickvals": list(places[::step]),
        "ticktext": site_labels(sites)[::step],
        "automargin": True,
    }


def level_names(levels: Sequence[tuple[float, float]]) -> list[str]:
    """Label of each level, all different: sigma, or "sigma of A x sigma of B"."""
    for digits in (6, 9, 17):
        names = [f"{a:.{digits}g}" if a == b else f"{a:.{digits}g} x {b:.{digits}g}" for a, b in levels]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def slider(names: Sequence[str], traces: int, active: int, always: int = 0) -> list[dict[str, Any]]:
    """Slider above the plot that shows one level at a time; none for one level.

    Each level has ``traces`` traces; behind them are ``always`` traces of all levels.
    """
    if len(names) < 2:
        return []
    steps = [
        {
            "label": name,
            "method": "restyle",
            "args": [{"visible": [k // traces == i for k in range(traces * len(names))] + [True] * always}],
        }
        for i, name in enumerate(names)
    ]
    return [
        {
            "active": active,
            "currentvalue": {"prefix": "sigma ", "xanchor": "left"},
            "steps": steps,
            "x": 0,
            "len": 1,
            "y": 1,
            "yanchor": "bottom",
            "pad": {"b": 12, "t": 0},
        }
    ]


def colour_range(panel: Panel) -> dict[str, Any]:
    """Colour scale and its ends: bright is alike, for distances, too; a difference is centred."""
    values = panel.arrays["value"]
    there = values[np.isfinite(values)]
    lowest, highest = (float(there.min()), float(there.max())) if there.size else (0.0, 1.0)
    low, high = panel.bounds
    if low < 0 < high and low == -high and panel.measure.startswith("difference of "):
        end = max(abs(lowest), abs(highest)) or 1.0
        return {"colorscale": "RdBu", "zmin": -end, "zmax": end}
    if panel.direction == "distance":
        return {"colorscale": "Viridis", "reversescale": True, "zmin": max(low, 0), "zmax": highest or 1.0}
    # Debiased values scatter a little below 0; a range that follows them would differ from plot to plot.
    bottom = lowest if lowest < -0.1 or low > 0 else 0.0
    return {"colorscale": "Viridis", "zmin": bottom, "zmax": high if np.isfinite(high) else highest}


def number_format(panel: Panel) -> str:
    """Format of values in hover texts."""
    return ".3f" if max(abs(panel.bounds[0]), abs(panel.bounds[1])) <= 10 or panel.bounds[1] == 1 else ".4g"


def hover(comparison: Comparison, panel: Panel) -> tuple[str, Callable[[Any], NDArray[np.float32]]]:
    """Lines of a hover text about one cell, and a function from an index of the arrays to their numbers.

    The numbers go into ``customdata``; lines about what is not known of any cell are left out.
    """
    form = number_format(panel)
    share = f"{100 * float(comparison.provenance.get('level') or 0.95):g} %"
    beyond = "below" if panel.direction == "similarity" else "above"
    lines = [
        (("value",), safe(panel.title) + " {}", form),
        (("ci_low", "ci_high"), share + " interval {} to {}", form),
        (("null", "null_high"), "null level {}, 95 % of it " + beyond + " {}", form),
        (("p", "p_family", "q"), "p {}, family-wise {}, q {}", ".3g"),
        (("ceiling",), "noise ceiling {}", form),
    ]
    used: list[str] = []
    told = []
    for names, words, form in lines:
        if all(np.isnan(panel.arrays[name]).all() for name in names):
            continue
        slots = [f"%{{customdata[{len(used) + k}]:{form}}}" for k in range(len(names))]
        told.append(words.format(*slots))
        used += names

    def numbers(index: Any) -> NDArray[np.float32]:
        if not used:
            return np.zeros((*panel.arrays["value"][index].shape, 1), np.float32)
        return np.stack([panel.arrays[name][index] for name in used], axis=-1).astype(np.float32)

    return "<br>".join(told), numbers


def palette(count: int) -> list[str]:
    """Colours in a row from blue over magenta to orange, of middle brightness: for light and dark pages."""
    stops = np.array([[44, 111, 187], [176, 70, 150], [226, 134, 38]], dtype=np.float64)
    places = np.linspace(0, 2, count) if count > 1 else np.zeros(1)
    mixed = np.stack([np.interp(places, [0, 1, 2], stops[:, channel]) for channel in range(3)], axis=1)
    return [f"rgb({r},{g},{b})" for r, g, b in np.rint(mixed).astype(int).tolist()]


def band(
    x: Sequence[Any], low: NDArray[np.float64], high: NDArray[np.float64], colour: str, opacity: float
) -> Any:
    """Filled band from low to high; gaps where either is undefined."""
    import plotly.graph_objects as go

    across: list[Any] = []
    up: list[Any] = []
    known = np.isfinite(low) & np.isfinite(high)
    for run in re.finditer("1+", "".join("01"[int(there)] for there in known)):
        inside = range(run.start(), run.end())
        if across:
            across.append(None)
            up.append(None)
        across += [*(x[k] for k in inside), *(x[k] for k in reversed(inside))]
        up += [*(float(high[k]) for k in inside), *(float(low[k]) for k in reversed(inside))]
    return go.Scatter(
        x=across,
        y=up,
        fill="toself",
        fillcolor=colour,
        opacity=opacity,
        mode="lines",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def key_of_lines(title: str, names: Sequence[str]) -> Any:
    """A colour bar that names the colours of :func:`palette`, for more lines than a legend can hold."""
    import plotly.graph_objects as go

    last = len(names) - 1
    scale = [[k / last, colour] for k, colour in enumerate(palette(len(names)))]
    step = -(-len(names) // MOST_KEYS)
    ticks = list(range(0, len(names), step))
    bar = {
        "title": {"text": title, "side": "right"},
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [names[k] for k in ticks],
        "thickness": 10,
    }
    marker = {"color": [0, last], "cmin": 0, "cmax": last, "colorscale": scale, "colorbar": bar}
    empty = [None, None]
    return go.Scatter(x=empty, y=empty, mode="markers", marker=marker, hoverinfo="skip", showlegend=False)


def same_names(panel: Panel) -> list[tuple[int, int]]:
    """Positions of each site in A and in B that has the same name in both."""
    place = {site: j for j, site in enumerate(panel.sites_b)}
    return [(i, place[site]) for i, site in enumerate(panel.sites_a) if site in place]


def note(text: str) -> Any:
    """A figure that says why there is nothing to see."""
    import plotly.graph_objects as go

    words = {"text": text, "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
    hidden = {"visible": False}
    blank = {"plot_bgcolor": "rgba(0,0,0,0)", "height": 200}
    return go.Figure(layout=go.Layout(annotations=[words], xaxis=hidden, yaxis=hidden, **blank))
