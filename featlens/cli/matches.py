"""The best matches of a comparison as text: a block for each measure and pair, a line for each site of A."""

from __future__ import annotations

import math
import shutil
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from featlens.comparison.panel import stars
from featlens.store.open import shown

if TYPE_CHECKING:
    from featlens.comparison.panel import Panel
    from featlens.comparison.result import Comparison

__all__ = ["best_matches", "shortened", "terminal_width"]

SHORTEST = 8
"""Letters of a site name that are always shown."""

P_FAMILY = [
    "p family: how often permuted samples give a value as extreme anywhere in the site grid of that sigma",
    "* p family at most 0.05, ** at most 0.01, *** at most 0.001",
]


def best_matches(result: Comparison, width: int | None = None) -> str:
    """Table of the site of B most similar to each site of A, at every noise level.

    Parameters
    ----------
    result
        The comparison.
    width
        Columns of the terminal: site names are shortened in their middle, and then columns left out, so that
        lines fit. None for as many as there are: what is not read on a terminal is never cut.
    """
    lines = _wrapped([f"warning: {shown(text, 1000)}" for text in result.warnings], width)
    for panel in result.panels:
        lines += ["", *_block(result, panel, width)]
    if any(not np.isnan(panel.arrays["p_family"]).all() for panel in result.panels):
        lines += ["", *_wrapped(P_FAMILY, width)]
    return "\n".join(lines).strip("\n")


def terminal_width() -> int | None:
    """Columns of the terminal on stdout, or as COLUMNS says; None where there is neither."""
    columns = shutil.get_terminal_size((0, 0)).columns
    return columns or None


def shortened(name: str, most: int) -> str:
    """A name with its middle left out where it is longer than ``most``.

    >>> shortened("enc.64x64_block0.conv0", 14)
    'enc.64...conv0'
    """
    if len(name) <= most:
        return name
    kept = max(most - 3, 2)
    head = (kept + 1) // 2
    return f"{name[:head]}...{name[len(name) - (kept - head) :]}"


@dataclass
class _Column:
    """One column of a table."""

    title: str
    cells: list[str] = field(default_factory=list)
    is_name: bool = False
    dropped: int = 0
    """In which turn a narrow terminal goes without it; 0 for never."""
    short: str = ""
    """Title where every letter counts."""

    @property
    def width(self) -> int:
        return max(map(len, (self.title, *self.cells)))


def _block(result: Comparison, panel: Panel, width: int | None) -> list[str]:
    a, b, measure, title = (shown(text) for text in (panel.a, panel.b, panel.measure, panel.title))
    told = measure if measure == title else f"{measure} ({title})"
    head = [f"A {a}   B {b}   {told}   n {result.n}", *(f"warning: {text}" for text in _remarks(panel))]
    lines = _wrapped(head, width)
    columns = _columns(result, panel)
    _fit(columns, width)
    widths = [column.width for column in columns]
    for row in range(-1, len(columns[0].cells)):
        cells = []
        for column, size in zip(columns, widths, strict=True):
            cell = column.title if row < 0 else column.cells[row]
            cells.append(f"{cell:<{size}}" if column.is_name else f"{cell:>{size}}")
        lines.append("  ".join(cells).rstrip())
    return lines + _wrapped(_notes(panel), width)


def _wrapped(lines: list[str], width: int | None) -> list[str]:
    """Lines of prose, broken where they are longer than the terminal is wide."""
    if width is None:
        return lines
    size = max(width, 20)
    return [
        part
        for line in lines
        for part in textwrap.wrap(line, size, subsequent_indent="  ", drop_whitespace=True)
    ]


def _columns(result: Comparison, panel: Panel) -> list[_Column]:
    """Columns with all cells as text, in the order of the table."""
    crossed = any(low != high for low, high in result.levels)
    arrays = panel.arrays
    has = {name: not np.isnan(arrays[name]).all() for name in arrays}
    sigma, sigma_b = _Column("sigma"), _Column("of B")
    site_a, site_b = _Column("site of A", is_name=True), _Column("best of B", is_name=True)
    value, interval = _Column("value"), _Column(f"{_percent(result)} interval".strip(), dropped=3)
    percent = 95 if panel.direction == "similarity" else 5
    null, ceiling = _Column(f"null {percent}%", dropped=2, short="null"), _Column("ceiling", dropped=1)
    p, mark = _Column("p family", short="p fam"), _Column("", is_name=True)
    for level, (low, high) in enumerate(result.levels):
        for i, name in enumerate(panel.sites_a):
            j = panel.best(level, i)
            told = {key: math.nan if j is None else float(arrays[key][level, i, j]) for key in arrays}
            sigma.cells.append(f"{low:g}")
            sigma_b.cells.append(f"{high:g}")
            site_a.cells.append(shown(name))
            site_b.cells.append("undefined" if j is None else shown(panel.sites_b[j]))
            value.cells.append(_number(told["value"]))
            ends = _number(told["ci_low"]), _number(told["ci_high"])
            interval.cells.append(f"{ends[0]} .. {ends[1]}" if all(ends) else "")
            null.cells.append(_number(told["null_high"]))
            ceiling.cells.append(_number(told["ceiling"]))
            p.cells.append(_probability(told["p_family"]))
            mark.cells.append(stars(told["p_family"]))
    chosen = [sigma, *([sigma_b] if crossed else []), site_a, site_b, value]
    chosen += [interval] if has["ci_low"] else []
    chosen += [null] if has["null_high"] else []
    chosen += [ceiling] if has["ceiling"] else []
    return chosen + ([p, mark] if has["p_family"] else [])


def _fit(columns: list[_Column], width: int | None) -> None:
    """Shorten names, then leave columns out, until lines are at most ``width`` letters long."""
    if width is None:
        return
    names = [column for column in columns if column.title and column.is_name]

    def spare(least: int | None = None) -> int:
        widths = [
            column.width if least is None or column not in names else min(column.width, least)
            for column in columns
        ]
        return width - sum(widths) - 2 * (len(widths) - 1)

    if spare() < 0:
        for column in columns:
            column.title = column.short or column.title
    shortest = max(SHORTEST, *(len(column.title) for column in names))
    for column in sorted((column for column in columns if column.dropped), key=lambda one: one.dropped):
        if spare(shortest) < 0:
            columns.remove(column)
    while spare() < 0:
        longest = max(names, key=lambda column: column.width)
        most = longest.width - 1
        if most < shortest:
            return
        longest.cells = [shortened(cell, most) for cell in longest.cells]


def _remarks(panel: Panel) -> list[str]:
    """Warnings of cells with their number."""
    total = panel.flags.size
    out = []
    for bit, remark in enumerate(panel.remarks):
        count = int((panel.flags >> bit & 1).sum())
        out.append(f"{shown(remark, 1000)} ({count} of {total} cells)")
    return out


def _notes(panel: Panel) -> list[str]:
    """Lines below the table: how to read it."""
    is_similarity = panel.direction == "similarity"
    lines = [f"best: {'highest' if is_similarity else 'lowest'} value of the row of A's site"]
    for key, title in (("interval", "interval"), ("null", "null")):
        if panel.how.get(key):
            lines.append(f"{title}: {shown(panel.how[key], 300)}")
    count = int(np.isnan(panel.arrays["value"]).sum())
    if count:
        why = "" if panel.remarks else ": a site is constant over the samples, or too few samples are left"
        lines.append(f"undefined: {count} of {panel.flags.size} cells have no value{why}")
    return lines


def _percent(result: Comparison) -> str:
    level = result.provenance.get("level")
    return f"{100 * float(level):g}%" if level is not None else ""


def _number(value: float) -> str:
    """Three decimals, fewer of large numbers; empty for NaN."""
    if math.isnan(value):
        return ""
    if abs(value) >= 1e5:
        return f"{value:.3g}"
    # Adding zero takes the sign off a negative zero.
    return f"{round(value, 3) + 0.0:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _probability(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.3f}" if value >= 5e-4 else "<.001"
