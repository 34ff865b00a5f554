"""A comparison in a notebook: plain HTML without scripts, so that it needs no network and no trust."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from featlens.comparison.choose import named
from featlens.comparison.drawing import SIGNIFICANT, colour_range, level_names
from featlens.comparison.panel import Panel

if TYPE_CHECKING:
    from featlens.comparison.result import Comparison

__all__ = ["snippet"]

MOST_ROWS = 40
MOST_SITES = 30
MOST_LEVELS = 12
COLUMNS = ("sigma", "site of A", "best site of B", "value", "interval", "null 95 %", "p (family)")


def snippet(comparison: Comparison) -> str:
    """Best matches of the first panel, and its values as a coloured table for each noise level."""
    panel = comparison.panels[0]
    part = comparison.select(panel.measure, panel.a, panel.b)
    parts = [f"<p><b>{escape(repr(comparison))}</b></p>"]
    parts += [f"<p>Warning: {escape(warning)}</p>" for warning in comparison.warnings]
    if len(comparison.panels) > 1:
        parts.append(
            f"<p>{escape(named(panel))}, the first of {len(comparison.panels)} panels; "
            "<code>.select(measure=, a=, b=)</code> gives the others.</p>"
        )
    parts.append(_best(part))
    names = level_names(part.levels)
    if max(panel.flags.shape[1:]) <= MOST_SITES and len(names) <= MOST_LEVELS:
        parts += [
            f"<details><summary>all values at sigma {escape(name)}</summary>{_grid(panel, level)}</details>"
            for level, name in enumerate(names)
        ]
    parts.append("<p><code>.figure(&quot;heatmap&quot;)</code> draws it with plotly.</p>")
    # In notebooks MathJax would read what stands between two dollar signs.
    return f'<div class="tex2jax_ignore">{"".join(parts)}</div>'


def _best(part: Comparison) -> str:
    matches = part.best_matches()
    head = "".join(f"<th>{escape(column)}</th>" for column in COLUMNS)
    rows = "".join(_row(match, part.panels[0]) for match in matches[:MOST_ROWS])
    more = len(matches) - MOST_ROWS
    rest = f"<p>... and {more} more; <code>.best_matches()</code> gives all.</p>" if more > 0 else ""
    panel = part.panels[0]
    beyond = "above" if panel.direction == "similarity" else "below"
    sides = f"<p>A is {escape(panel.a)}, B is {escape(panel.b)}; * is {beyond} the null (family-wise).</p>"
    return f"{sides}{_table(head, rows)}{rest}"


def _row(match: dict[str, Any], panel: Panel) -> str:
    low, high, p = match["ci_low"], match["ci_high"], match["p_family"]
    star = " *" if p is not None and p <= SIGNIFICANT else ""
    same = match["sigma"] == match["sigma_b"]
    cells = [
        f"{match['sigma']:g}" if same else f"{match['sigma']:g} x {match['sigma_b']:g}",
        match["site_a"],
        "undefined" if match["site_b"] is None else match["site_b"],
        _number(match["value"]),
        "" if low is None or high is None else f"{_number(low)} to {_number(high)}",
        _number(match["null_high"]),
        "" if p is None else f"{p:.3g}{star}",
    ]
    tints = ["", "", "", _tint(panel, match["value"]), "", "", ""]
    return _line(cells, tints)


def _grid(panel: Panel, level: int) -> str:
    head = "".join(f"<th>{escape(site)}</th>" for site in ("", *panel.sites_b))
    rows = []
    for i, site in enumerate(panel.sites_a):
        values = [None if np.isnan(value) else float(value) for value in panel.arrays["value"][level, i]]
        rows.append(_line([site, *map(_number, values)], ["", *(_tint(panel, value) for value in values)]))
    return _table(head, "".join(rows))


def _table(head: str, rows: str) -> str:
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div style="overflow-x: auto">{table}</div>'


def _line(cells: list[str], tints: list[str]) -> str:
    return f"<tr>{''.join(f'<td{t}>{escape(c)}</td>' for c, t in zip(cells, tints, strict=True))}</tr>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def _tint(panel: Panel, value: float | None) -> str:
    """Background that is stronger the more alike; text stays readable on light and dark."""
    if value is None:
        return ""
    ends = colour_range(panel)
    share = (value - ends["zmin"]) / ((ends["zmax"] - ends["zmin"]) or 1.0)
    share = 1 - share if ends.get("reversescale") else share
    return f' style="background: rgba(44, 111, 187, {0.6 * min(max(share, 0.0), 1.0):.2f})"'
