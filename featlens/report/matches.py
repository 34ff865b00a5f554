"""The best match of every site, as rows of text."""

from __future__ import annotations

import math

import numpy as np

from featlens.comparison.panel import Panel, stars

__all__ = ["ALPHA", "level_text", "match_headers", "match_rows", "not_above", "number", "p_value"]

ALPHA = 0.05
"""A cell is above its null if its family-wise p-value is at most this."""


def number(value: float) -> str:
    """A value with three digits after the point; ``"-"`` for NaN.

    >>> number(0.12345), number(float("nan")), number(1234.5)
    ('0.123', '-', '1234')
    """
    if not math.isfinite(value):
        return "-"
    # Rounded first, so that nothing reads -0.000.
    return f"{round(value, 3) + 0.0:.3f}" if abs(value) < 100 else f"{value:.4g}"


def p_value(value: float) -> str:
    """A p-value; small ones keep two digits.

    >>> p_value(0.04), p_value(0.000123)
    ('0.040', '0.00012')
    """
    return f"{value:.2g}" if 0 < value < 0.001 else number(value)


def not_above(panel: Panel) -> str:
    """What is said of a cell that does not pass its null."""
    return f"not {'below' if panel.direction == 'distance' else 'above'} its null"


def level_text(level: tuple[float, float]) -> str:
    """A level in words: one sigma, or that of A and that of B.

    >>> level_text((0.5, 0.5)), level_text((0.5, 2.5))
    ('0.5', '0.5 (A) and 2.5 (B)')
    """
    a, b = level
    return f"{a:g}" if a == b else f"{a:g} (A) and {b:g} (B)"


def _has_ceiling(panel: Panel) -> bool:
    return bool(np.isfinite(panel.arrays["ceiling"]).any())


def match_headers(panel: Panel, interval: str) -> list[str]:
    """Headings of :func:`match_rows`."""
    best, percent = ("closest", 5) if panel.direction == "distance" else ("best", 95)
    names = [f"site of {panel.a}", f"{best} site of {panel.b}"]
    numbers = ["value", "", f"{interval} interval", f"null {percent} %", "p (family)", "q"]
    return [*names, *numbers, *(["noise ceiling"] if _has_ceiling(panel) else [])]


def match_rows(panel: Panel, level: int) -> list[list[str]]:
    """One row a site of A: its best match, value, stars, interval, bound of the null, p, q, ceiling."""
    rows = []
    ceiling = _has_ceiling(panel)
    for i, site in enumerate(panel.sites_a):
        j = panel.best(level, i)
        if j is None:
            rows.append([site, "-", "undefined", "", *["-"] * (5 if ceiling else 4)])
            continue
        at = {name: float(array[level, i, j]) for name, array in panel.arrays.items()}
        low, high = number(at["ci_low"]), number(at["ci_high"])
        row = [site, panel.sites_b[j], number(at["value"]), stars(at["p_family"])]
        row.append("-" if low == high == "-" else f"{low} to {high}")
        row += [number(at["null_high"]), p_value(at["p_family"]), p_value(at["q"])]
        rows.append(row + ([number(at["ceiling"])] if ceiling else []))
    return rows
