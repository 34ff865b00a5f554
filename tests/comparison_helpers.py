"""Comparisons made by hand: every number is known, and none depends on how comparisons are computed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from featlens.comparison.panel import QUANTITIES, Panel
from featlens.comparison.result import Comparison

HOSTILE = "<script>alert(1)</script>"
LEVELS = ((0.1, 0.1), (2.5, 2.5))
SAMPLES = {"digest": "d1", "n": 60, "ids": "i1"}


def make_panel(
    measure: str = "cka",
    a: str = "teacher",
    b: str = "student",
    sites_a: Sequence[str] = ("enc.conv", "enc.norm", "dec.conv"),
    sites_b: Sequence[str] = ("enc.conv", "enc.norm", "dec.conv"),
    levels: int = 2,
    seed: int = 0,
    tested: bool = True,
    intervals: bool = True,
    **told: Any,
) -> Panel:
    """A panel of random numbers in their ranges; the last site of B is never above its null."""
    rng = np.random.default_rng([seed, len(sites_a), len(sites_b)])
    shape = (levels, len(sites_a), len(sites_b))
    arrays = {name: np.full(shape, np.nan) for name in QUANTITIES}
    arrays["value"] = rng.uniform(0.1, 0.9, shape)
    if intervals:
        arrays["ci_low"] = arrays["value"] - rng.uniform(0.01, 0.1, shape)
        arrays["ci_high"] = arrays["value"] + rng.uniform(0.01, 0.1, shape)
    if tested:
        arrays["null"] = rng.normal(0, 0.01, shape)
        arrays["null_high"] = rng.uniform(0.02, 0.06, shape)
        for name in ("p", "p_family", "q"):
            arrays[name] = np.full(shape, 0.01)
            arrays[name][:, :, -1] = 0.4
        arrays["ceiling"] = arrays["value"] + 0.05
    options: dict[str, Any] = {
        "direction": "similarity",
        "title": "CKA",
        "bounds": (-np.inf, 1.0),
        "flags": rng.integers(0, 4, shape),
        "remarks": ("few samples", "constant features"),
        "how": {"plan": "tiles", "interval": "jackknife", "null": "99 permutations"},
    }
    options |= told
    return Panel(
        measure=measure, a=a, b=b, sites_a=tuple(sites_a), sites_b=tuple(sites_b), arrays=arrays, **options
    )


def make_comparison(
    *panels: Panel,
    levels: Sequence[tuple[float, float]] = LEVELS,
    n: int = 60,
    warnings: Sequence[str] = ("only 60 samples",),
    **provenance: Any,
) -> Comparison:
    """A comparison of the panels, or of a panel of its own."""
    chosen = panels or (make_panel(levels=len(levels)),)
    names = dict.fromkeys(name for panel in chosen for name in (panel.a, panel.b))
    told = {
        "models": {name: {"file": f"{name}.h5", "weights_digest": f"w-{name}"} for name in names},
        "samples": dict(SAMPLES),
        "seed": 0,
        "permutations": 99,
        "resamples": None,
        "level": 0.95,
        "device": "cpu",
        "creator": "featlens",
    }
    return Comparison(chosen, tuple(levels), n, tuple(warnings), told | provenance)


def three_models() -> Comparison:
    """Two measures, the second one not symmetric, of all pairs of three models with different sites."""
    sites = {"t": ("x", "y"), "s": ("y", "z", "x"), "o": ("x",)}
    pairs = (("t", "s"), ("t", "o"), ("s", "o"))
    panels = [
        make_panel(measure, a, b, sites[a], sites[b], seed=seed)
        for measure in ("cka", "predictivity")
        for seed, (a, b) in enumerate(pairs)
    ]
    return make_comparison(*panels)


def crossed(**options: Any) -> Comparison:
    """Three noise levels of A with two of B."""
    levels = [(a, b) for a in (0.1, 0.5, 2.5) for b in (0.1, 0.5)]
    return make_comparison(make_panel(levels=6, **options), levels=levels)


def distances() -> Comparison:
    """A distance: small is alike."""
    return make_comparison(
        make_panel("procrustes", direction="distance", title="Procrustes distance", bounds=(0.0, np.inf))
    )


def strict(text: str) -> Any:
    """What strict JSON holds."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)
