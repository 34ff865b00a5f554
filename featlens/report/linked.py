"""Linked heat maps, depth and sigma curves and best matches: their numbers, menus and empty frames.

``templates/comparison.js`` draws them in the browser.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from featlens.comparison.panel import QUANTITIES, Panel
from featlens.comparison.result import Comparison
from featlens.report.matches import ALPHA, level_text, match_headers, match_rows, not_above
from featlens.report.page import _script_json

__all__ = ["MOST_CELLS", "Linked", "depth_pairs", "kept_panels", "label"]

MOST_CELLS = 400_000
"""Cells that a page shows: some 20 MB. A file holds all."""

_numbers = itertools.count(1)


def label(panel: Panel) -> str:
    """What menus call a panel."""
    return f"{panel.measure}: {panel.a} and {panel.b}"


def kept_panels(comparison: Comparison) -> list[Panel]:
    """The panels that fit into a page, in order; at least the first."""
    sizes = np.cumsum([panel.flags.size for panel in comparison.panels])
    return list(comparison.panels[: max(1, int((sizes <= MOST_CELLS).sum()))])


def depth_pairs(panel: Panel) -> list[list[int]]:
    """Positions of the sites of one name, in the order of A."""
    at = {site: j for j, site in enumerate(panel.sites_b)}
    return [[i, at[site]] for i, site in enumerate(panel.sites_a) if site in at]


def _rounded(array: NDArray[np.float64]) -> Any:
    """Nested lists of five digits; None where nothing is known, and for the whole array if nothing is."""
    if not np.isfinite(array).any():
        return None
    flat = [float(f"{value:.5g}") if np.isfinite(value) else None for value in array.ravel().tolist()]
    out: list[Any] = flat
    for size in array.shape[:0:-1]:
        out = [out[start : start + size] for start in range(0, len(out), size)]
    return out


def _range(panels: Sequence[Panel], panel: Panel) -> list[float]:
    """Ends of the colours, the same for all panels of a measure."""
    low, high = panel.bounds
    values = np.concatenate([p.arrays["value"].ravel() for p in panels if p.measure == panel.measure])
    values = values[np.isfinite(values)]
    if not np.isfinite(high):
        high = float(values.max(initial=0.0))
    # Negative similarities exist, but are all estimates of nothing.
    low = max(low, 0.0) if high > 0 else float(values.min(initial=high))
    return [low, high if high > low else low + 1.0]


def _grey_text(panel: Panel) -> str:
    if not np.isfinite(panel.arrays["p_family"]).any():
        return "No null level was computed, so no cell is marked as chance. Blank: undefined."
    return f"Grey with a stroke: {not_above(panel)} (family-wise p above {ALPHA:g}). Blank: undefined."


def _curve_text(panel: Panel, interval: str) -> str:
    what = "Sites of one name" if len(depth_pairs(panel)) > 1 else f"Best match of each site of {panel.a}"
    known = {name: bool(np.isfinite(panel.arrays[name]).any()) for name in ("ci_low", "null", "ceiling")}
    side = "above" if panel.direction == "distance" else "below"
    parts = [f"{what} by depth"]
    if known["ci_low"]:
        parts.append(f"band: {interval} interval")
    if known["null"]:
        parts.append(f"dashed: null level; dotted: 95 % of permutations are {side}")
        parts.append(f"open circle: {not_above(panel)}")
    if known["ceiling"]:
        parts.append("dash and dot: noise ceiling")
    return "; ".join(parts) + "."


class Linked:
    """The linked part of a page.

    Parameters
    ----------
    comparison
        What is shown.

    Attributes
    ----------
    panels
        The panels shown.
    level
        Position of the level shown first.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.panels = kept_panels(comparison)
        self.levels = list(comparison.levels)
        equal = [k for k, (a, b) in enumerate(self.levels) if a == b] or list(range(len(self.levels)))
        self.level = equal[len(equal) // 2]
        self.interval = f"{100 * float(comparison.provenance.get('level') or 0.95):g} %"
        self.name = f"linked{next(_numbers)}"
        self.chosen = [0, self._second()]

    def _second(self) -> int:
        """Another pair of the same measure, or else another measure; -1 for none."""
        first = self.panels[0]
        for k, panel in enumerate(self.panels[1:], 1):
            if panel.measure == first.measure:
                return k
        return 1 if len(self.panels) > 1 else -1

    def cell(self) -> list[str]:
        """Names of the pair of sites that is marked first: the last common site, or the last best match."""
        panel = self.panels[0]
        pairs = depth_pairs(panel)
        last = len(panel.sites_a) - 1
        i, j = pairs[-1] if pairs else (last, panel.best(self.level, last) or 0)
        return [panel.sites_a[i], panel.sites_b[j]]

    def crossed(self) -> dict[str, Any] | None:
        """Sigmas of A, of B, and the level of each two (-1: not compared); None if a level is one sigma."""
        if all(a == b for a, b in self.levels):
            return None
        first, second = (list(dict.fromkeys(level[side] for level in self.levels)) for side in (0, 1))
        at = {level: k for k, level in enumerate(self.levels)}
        told = [[f"{sigma:g}" for sigma in side] for side in (first, second)]
        return {"a": told[0], "b": told[1], "index": [[at.get((a, b), -1) for b in second] for a in first]}

    def spec(self) -> dict[str, Any]:
        """Everything that the browser draws."""
        return {
            "levels": [list(level) for level in self.levels],
            "told": [[f"{sigma:g}" for sigma in level] for level in self.levels],
            "said": [level_text(level) for level in self.levels],
            "crossed": self.crossed(),
            "alpha": ALPHA,
            "interval": self.interval,
            "start": {"level": self.level, "panels": self.chosen, "cell": self.cell()},
            "panels": [self._panel(panel) for panel in self.panels],
            "matches": [
                [match_rows(panel, level) for level in range(len(self.levels))] for panel in self.panels
            ],
        }

    def _panel(self, panel: Panel) -> dict[str, Any]:
        return {
            "label": label(panel),
            "measure": panel.measure,
            "title": panel.title,
            "distance": panel.direction == "distance",
            "range": _range(self.panels, panel),
            "a": panel.a,
            "b": panel.b,
            "sites_a": list(panel.sites_a),
            "sites_b": list(panel.sites_b),
            "same": depth_pairs(panel),
            "grey": _grey_text(panel),
            "not": not_above(panel),
            "curve": _curve_text(panel, self.interval),
            "remarks": list(panel.remarks),
            "flags": panel.flags.tolist() if panel.flags.any() else None,
            **{name: _rounded(panel.arrays[name]) for name in QUANTITIES},
        }

    def figures(self) -> Markup:
        """Menus, then two columns of a heat map with its curves."""
        menus = Markup('<div class="menus" role="group" aria-label="what is shown">{}</div>').format(
            Markup("").join([*self._panel_menus(), *self._level_menus(), *self._site_menus()])
        )
        columns = Markup("").join(self._column(c) for c in (0, 1))
        single = Markup("" if self.chosen[1] >= 0 else " single")
        return Markup(
            '<div class="linked{single}" id="{name}">{menus}<div class="columns">{columns}</div></div>'
        ).format(single=single, name=self.name, menus=menus, columns=columns)

    def script(self) -> Markup:
        """The call that draws everything; put it after :meth:`matches`."""
        return Markup("<script>featlensComparison('{}', {});</script>").format(
            self.name, _script_json(self.spec())
        )

    def _level_menus(self) -> list[Markup]:
        crossed = self.crossed()
        if crossed is None:
            return [self._slider("level", "sigma", [level_text(level) for level in self.levels], self.level)]
        row = next(k for k, levels in enumerate(crossed["index"]) if self.level in levels)
        column = crossed["index"][row].index(self.level)
        return [
            self._slider("sigma_a", "sigma of A", crossed["a"], row),
            self._slider("sigma_b", "sigma of B", crossed["b"], column),
        ]

    def _slider(self, role: str, title: str, texts: Sequence[str], at: int) -> Markup:
        """A slider beside a menu; the browser keeps them together."""
        options = [(str(k), text) for k, text in enumerate(texts)]
        slider = Markup(
            '<input type="range" min="0" max="{}" step="1" value="{}" data-for="{}" data-role="{}" '
            'aria-label="{}">'
        ).format(len(texts) - 1, at, self.name, role, title)
        select = _select(title, options, str(at), self.name, role)
        return (
            select if len(texts) < 2 else Markup('<span class="together">{}{}</span>').format(slider, select)
        )

    def _site_menus(self) -> list[Markup]:
        panel, (site_a, site_b) = self.panels[0], self.cell()
        told = ((panel.sites_a, site_a, "a"), (panel.sites_b, site_b, "b"))
        return [
            _select(
                f"site of {side.upper()}", [(site, site) for site in sites], site, self.name, f"site_{side}"
            )
            for sites, site, side in told
        ]

    def _panel_menus(self) -> list[Markup]:
        """Menus that choose the panels of the columns; none where there is one panel."""
        if len(self.panels) < 2:
            return []
        return [
            self._panel_menu("first map", self.chosen[0], "panel0", False),
            self._panel_menu("second map", self.chosen[1], "panel1", True),
        ]

    def _panel_menu(self, title: str, chosen: int, role: str, none: bool) -> Markup:
        options = [(str(k), label(panel)) for k, panel in enumerate(self.panels)]
        return _select(title, ([("-1", "none")] if none else []) + options, str(chosen), self.name, role)

    def _column(self, c: int) -> Markup:
        shown = self.chosen[c] if self.chosen[c] >= 0 else 0
        panel = self.panels[shown]
        described = f"{panel.a} and {panel.b}; the same numbers are in the tables below"
        plot = Markup(
            '<figure><div class="plot" id="{}-{}{}" role="img" aria-label="{}"></div>'
            '<figcaption><span{} data-part="{}">{}</span></figcaption></figure>'
        )
        key = Markup(' class="key"')
        plain = Markup("")
        heat = plot.format(
            self.name,
            "map",
            c,
            f"heat map of all pairs of sites of {described}",
            key,
            "grey",
            _grey_text(panel),
        )
        curves = plot.format(
            self.name, "depth", c, f"similarity by depth of {described}", plain, "depth",
            _curve_text(panel, self.interval),
        )  # fmt: skip
        if len(self.levels) > 1:
            curves += plot.format(
                self.name, "sigma", c, f"similarity by sigma of {described}", plain, "sigma", ""
            )
        hidden = Markup(" hidden") if self.chosen[c] < 0 else Markup("")
        return Markup(
            '<div class="column"{hidden}><div class="maps"><p class="what" data-part="what"></p>{heat}'
            '<p class="cell" data-part="cell" aria-live="polite"></p></div>'
            '<div class="curves">{curves}<details data-part="numbers">'
            "<summary>The numbers of these figures, as tables</summary><div></div></details></div></div>"
        ).format(hidden=hidden, heat=heat, curves=curves)

    def matches(self) -> Markup:
        """A table for each panel; the browser shows that of the first column, and print shows all."""
        menus = []
        if len(self.panels) > 1:
            menus.append(self._panel_menu("shown", self.chosen[0], "panel0", False))
        if len(self.levels) > 1:
            options = [(str(k), level_text(level)) for k, level in enumerate(self.levels)]
            menus.append(_select("sigma", options, str(self.level), self.name, "level"))
        parts = [Markup('<div class="menus">{}</div>').format(Markup("").join(menus))]
        for k, panel in enumerate(self.panels):
            title = f"{label(panel)}, sigma {level_text(self.levels[self.level])}"
            parts.append(
                Markup('<div class="match{}" data-matches="{}" data-panel="{}"><h3>{}</h3>{}</div>').format(
                    Markup("" if k == self.chosen[0] else " other"),
                    self.name,
                    k,
                    title,
                    self._match_table(panel, k),
                )
            )
        return Markup("").join(parts)

    def _match_table(self, panel: Panel, k: int) -> Markup:
        headers = match_headers(panel, self.interval)
        kinds = _kinds(len(headers))
        head = Markup("").join(
            Markup('<th scope="col"{}>{}</th>').format(kind, text)
            for kind, text in zip(kinds, headers, strict=True)
        )
        body = Markup("").join(_match_row(row) for row in match_rows(panel, self.level))
        return Markup(
            '<div class="scroll" tabindex="0"><table aria-label="best matches, {}"><thead><tr>{}</tr></thead>'
            "<tbody>{}</tbody></table></div>"
        ).format(label(panel), head, body)


def _kinds(count: int) -> list[Markup]:
    """Attributes of the cells of a row: two names, value, stars, numbers."""
    plain, right = Markup(""), Markup(' class="number"')
    return [plain, plain, right, plain, *[right] * (count - 4)]


def _match_row(row: Sequence[str]) -> Markup:
    first = Markup('<th scope="row">{}</th>').format(row[0])
    rest = Markup("").join(
        Markup("<td{}>{}</td>").format(kind, cell)
        for kind, cell in zip(_kinds(len(row))[1:], row[1:], strict=True)
    )
    return Markup("<tr>{}{}</tr>").format(first, rest)


def _select(
    title: str,
    options: Sequence[tuple[str, str]],
    chosen: str,
    name: str,
    role: str,
) -> Markup:
    """A menu with its title; the value of an option is what the browser works with."""
    told = Markup("").join(
        Markup('<option value="{}"{}>{}</option>').format(
            value, Markup(" selected") if value == chosen else Markup(""), text
        )
        for value, text in options
    )
    return Markup('<label>{} <select data-for="{}" data-role="{}">{}</select></label>').format(
        title, name, role, told
    )
