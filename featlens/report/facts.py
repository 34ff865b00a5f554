"""What a comparison says of itself: warnings, what was compared and how, full provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from markupsafe import Markup

from featlens.comparison.panel import Panel
from featlens.comparison.result import Comparison
from featlens.report.linked import label
from featlens.report.page import note, table

__all__ = ["compared", "lead", "provenance", "title", "warning_list", "warnings"]

FIELDS = {
    "file": "file",
    "model": "model",
    "weights_digest": "weights digest",
    "reducer": "reduction",
    "dtype": "stored as",
    "sample_set": "samples",
    "sample_digest": "sample digest",
    "noise_seed": "noise seed",
    "inputs": "inputs",
    "sigmas": "sigmas in the file",
    "creator": "written by",
}
"""Fields of a model's provenance that the table shows, with their headings."""
SETTINGS = ("seed", "level", "permutations", "resamples", "device", "plan", "memory")


def lead(comparison: Comparison) -> str:
    """One sentence: what was compared with what, where, over how many samples."""
    titles = list(dict.fromkeys(panel.title for panel in comparison.panels))
    names = list(dict.fromkeys(name for pair in comparison.pairs for name in pair))
    models = _listed(names) if len(names) <= 4 else f"{len(names)} models"
    count = len(comparison.levels)
    crossed = any(a != b for a, b in comparison.levels)
    levels = f"{count} {'pair' if crossed else 'noise level'}{'s' if count != 1 else ''}"
    levels += " of noise levels" if crossed else ""
    said = f"{_listed(titles)} between the sites of {models}, at {levels}, over {comparison.n} samples."
    return said[:1].upper() + said[1:]


def title(comparison: Comparison) -> str:
    """The heading: the models."""
    names = list(dict.fromkeys(name for pair in comparison.pairs for name in pair))
    return f"{_listed(names) if len(names) <= 4 else f'{len(names)} models'}, site by site"


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts[:-1]) + (" and " if len(texts) > 1 else "") + texts[-1]


def warning_list(comparison: Comparison) -> list[str]:
    """All warnings: those about the whole, then each remark with the number of cells it concerns."""
    found: dict[str, list[tuple[Panel, int]]] = {}
    for panel in comparison.panels:
        for bit, remark in enumerate(panel.remarks):
            count = int((panel.flags >> bit & 1).sum())
            if count:
                found.setdefault(remark, []).append((panel, count))
    out = list(comparison.warnings)
    for remark, places in found.items():
        total = sum(count for _, count in places)
        where = _where([count for _, count in places], [panel for panel, _ in places], comparison)
        out.append(f"{total} cell{'s' if total != 1 else ''}: {remark}{where}")
    return out


def _where(counts: list[int], panels: list[Panel], comparison: Comparison) -> str:
    """Which measures and pairs cells belong to, where there are several."""
    if len(comparison.panels) == 1:
        return ""
    if len(panels) == len(comparison.panels) and len(set(counts)) == 1:
        return f" ({counts[0]} for each measure and pair)"
    told = [f"{label(panel)}: {count}" for panel, count in zip(panels, counts, strict=True)]
    return f" ({'; '.join(told)})"


def warnings(said: list[str]) -> Markup:
    """A list of warnings, or the sentence that there are none."""
    if not said:
        return note("None.", "plain")
    items = Markup("").join(Markup("<li>{}</li>").format(text) for text in said)
    return Markup('<ul class="warnings">{}</ul>').format(items)


def _field(key: str, value: Any) -> str:
    # The folder is among everything that is recorded, at the end of the page.
    return PurePath(value).name if key == "file" and value else _text(value)


def _text(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(_text(entry) for entry in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def compared(comparison: Comparison) -> list[Markup]:
    """Tables of the models, of how everything was computed, and of the settings."""
    models: Mapping[str, Mapping[str, Any]] = comparison.provenance["models"]
    sites = {panel.a: panel.sites_a for panel in comparison.panels}
    sites |= {panel.b: panel.sites_b for panel in comparison.panels}
    rows = [
        [heading, *(_field(key, told.get(key)) for told in models.values())]
        for key, heading in FIELDS.items()
        if any(told.get(key) is not None for told in models.values())
    ]
    rows.append(["sites compared", *(f"{len(sites.get(name, ()))} sites" for name in models)])
    parts = [Markup('<div class="facts">{}</div>').format(table(["", *models], rows, "Models"))]
    parts.append(table(["measure", "values", "intervals", "null level"], _how(comparison), "Computed"))
    settings = [(key, comparison.provenance.get(key)) for key in SETTINGS]
    said = [f"{key} {_text(value)}" for key, value in settings if value is not None]
    parts.append(note("; ".join([f"n {comparison.n}", *said]) + ".", "plain"))
    return parts


def _how(comparison: Comparison) -> list[list[str]]:
    """One row for all panels that were computed alike."""
    alike: dict[tuple[str, ...], list[Panel]] = {}
    for panel in comparison.panels:
        how = tuple(_text(panel.how.get(key)) for key in ("plan", "interval", "null"))
        alike.setdefault((panel.measure, *how), []).append(panel)
    pairs = len(comparison.pairs)
    rows = []
    for (measure, *told), panels in alike.items():
        where = ", ".join(f"{panel.a} and {panel.b}" for panel in panels)
        said = f"{panels[0].title} ({measure})" + (f": {where}" if len(panels) < pairs else "")
        rows.append([said, *told])
    return rows


def provenance(comparison: Comparison) -> Markup:
    """Everything that is recorded, folded away."""
    return Markup(
        "<details><summary>Everything that is recorded, as JSON</summary><pre>{}</pre></details>"
    ).format(_indented(dict(comparison.provenance)))


def _indented(value: Any, depth: int = 0) -> str:
    """JSON with one line for each entry of an object and each list."""
    if not isinstance(value, Mapping) or not value:
        return json.dumps(value, ensure_ascii=False, default=str)
    space = "  " * (depth + 1)
    lines = [
        f"{space}{json.dumps(str(key), ensure_ascii=False)}: {_indented(entry, depth + 1)}"
        for key, entry in value.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n" + "  " * depth + "}"
