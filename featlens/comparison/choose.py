"""Choosing panels of a comparison by measure and models, in either order where the measure is symmetric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from featlens.comparison.panel import QUANTITIES, Panel
from featlens.errors import FeatlensError, UsageError, choices_hint
from featlens.measures import resolve

__all__ = ["choose", "named", "provenance_of", "same_panel", "the_one", "turned"]

MOST_NAMED = 6


def named(panel: Panel) -> str:
    """What to call a panel in one line."""
    return f"{panel.measure}: {panel.a} x {panel.b}"


def choose(
    panels: Sequence[Panel], measure: str | None, a: str | None, b: str | None
) -> tuple[list[Panel], bool]:
    """Panels of a measure and of models, and whether A and B changed places.

    A pair asked for in the other order than it was compared in is turned round, which only a symmetric
    measure allows.
    """
    found = _of_measure(panels, measure)
    models = list(dict.fromkeys(name for panel in panels for name in (panel.a, panel.b)))
    for name in (a, b):
        if name is not None and name not in models:
            raise UsageError(f"no model {name!r} was compared: {choices_hint(str(name), models)}")
    chosen = [panel for panel in found if a in (None, panel.a) and b in (None, panel.b)]
    if chosen:
        return chosen, False
    reverse = [panel for panel in found if a in (None, panel.b) and b in (None, panel.a)]
    if not reverse:
        raise UsageError(f"expected a pair that was compared, got {_pair(a, b)}; {_listed(found)}")
    one_sided = sorted({panel.measure for panel in reverse if not _symmetric(panel.measure)})
    if one_sided:
        raise UsageError(
            f"{', '.join(one_sided)} is not symmetric and {_pair(a, b)} was compared the other way round; "
            "compare them in this order, or choose the order that is there"
        )
    return [turned(panel) for panel in reverse], True


def the_one(panels: Sequence[Panel], measure: str | None, a: str | None, b: str | None) -> tuple[Panel, bool]:
    """The only panel of a measure and a pair, and whether A and B changed places."""
    found, reverse = choose(panels, measure, a, b)
    if len(found) > 1:
        raise UsageError(
            f"expected one measure and one pair of models, {len(found)} match; choose measure=, a= and b=; "
            f"{_listed(found)}"
        )
    return found[0], reverse


def _of_measure(panels: Sequence[Panel], measure: str | None) -> list[Panel]:
    if measure is None:
        return list(panels)
    names = list(dict.fromkeys(panel.measure for panel in panels))
    wanted = measure
    if measure not in names:
        # Options may be written in another way: without quotes, or with a default spelled out.
        try:
            wanted = resolve(measure).name
        except FeatlensError:
            wanted = measure
    if wanted not in names:
        raise UsageError(f"measure {measure!r} was not computed: {choices_hint(str(measure), names)}")
    return [panel for panel in panels if panel.measure == wanted]


def _pair(a: str | None, b: str | None) -> str:
    return " and ".join(f"{name!r} as {side}" for name, side in ((a, "A"), (b, "B")) if name is not None)


def _listed(panels: Iterable[Panel]) -> str:
    told = list(dict.fromkeys(named(panel) for panel in panels))
    more = f", ... ({len(told)} in all)" if len(told) > MOST_NAMED else ""
    return f"there are {', '.join(told[:MOST_NAMED])}{more}"


def _symmetric(measure: str) -> bool:
    """Whether the order of the models makes no difference; not where the measure is unknown here."""
    try:
        return resolve(measure).measure.symmetric
    except FeatlensError:
        return False


def turned(panel: Panel) -> Panel:
    """The same with A and B in each other's place."""
    return Panel(
        panel.measure,
        panel.direction,
        panel.title,
        panel.bounds,
        panel.b,
        panel.a,
        panel.sites_b,
        panel.sites_a,
        {name: np.ascontiguousarray(array.swapaxes(1, 2)) for name, array in panel.arrays.items()},
        np.ascontiguousarray(panel.flags.swapaxes(1, 2)),
        panel.remarks,
        panel.how,
    )


def same_panel(one: Panel, other: Panel) -> bool:
    """Whether two panels are the same, every number bit for bit (NaN equals NaN)."""
    words = ("measure", "direction", "title", "bounds", "a", "b", "sites_a", "sites_b", "remarks")
    return (
        all(getattr(one, word) == getattr(other, word) for word in words)
        and dict(one.how) == dict(other.how)
        and all(np.array_equal(one.arrays[name], other.arrays[name], equal_nan=True) for name in QUANTITIES)
        and np.array_equal(one.flags, other.flags)
    )


def provenance_of(provenance: Mapping[str, Any], panels: Iterable[Panel]) -> dict[str, Any]:
    """Provenance with only those models that the panels are about."""
    there = {name for panel in panels for name in (panel.a, panel.b)}
    models = {name: told for name, told in provenance.get("models", {}).items() if name in there}
    return {**provenance, "models": models}
