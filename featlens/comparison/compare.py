"""All sites of every model against all sites of every other, at every common noise level."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from featlens._version import __version__
from featlens.comparison.generic import combine_all, prepare_all
from featlens.comparison.panel import QUANTITIES, Panel
from featlens.comparison.request import Request, resolve_request
from featlens.comparison.result import Comparison
from featlens.comparison.side import open_sides, require_same_samples
from featlens.measures.declare import Bound
from featlens.seeds import derive

__all__ = ["compare"]


def compare(
    models: Mapping[str, Any],
    measure: str | Bound | Sequence[str | Bound] = "cka",
    sites: str | Sequence[str] | Mapping[str, Any] | None = None,
    sigmas: Sequence[float] | None = None,
    *,
    cross_sigmas: bool = False,
    reference: str | None = None,
    permutations: int | None = None,
    resamples: int | None = None,
    intervals: bool = True,
    level: float = 0.95,
    draws: Mapping[str, Any] | None = None,
    n: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    memory: float = 512e6,
    plan: str = "auto",
    allow_other_samples: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Similarity of every site of one model with every site of another (being rebuilt)."""
    with contextlib.ExitStack() as stack:
        sides = open_sides(stack, models, sigmas)
        require_same_samples(list(sides.values()), allow_other_samples)
        request = resolve_request(
            sides,
            measure,
            sites,
            sigmas,
            cross_sigmas=cross_sigmas,
            reference=reference,
            n=n,
            seed=seed,
            permutations=permutations,
            resamples=resamples,
            intervals=intervals,
            level=level,
            device=device,
            memory=memory,
            plan=plan,
        )
        panels = []
        for bound in request.measures:
            for a, b in request.pairs:
                panels.append(_panel(request, bound, a, b))
                if progress is not None:
                    progress(len(panels), len(request.measures) * len(request.pairs))
        provenance = {
            "models": {name: side.provenance() for name, side in sides.items()},
            "samples": {"n": request.n},
            "seed": seed,
            "creator": f"featlens {__version__}",
        }
    return Comparison(tuple(panels), tuple(request.levels), request.n, tuple(request.notices), provenance)


def _panel(request: Request, bound: Bound, a: str, b: str) -> Panel:
    count = 20 if request.permutations is None else request.permutations
    shape = (len(request.levels), len(request.sites[a]), len(request.sites[b]))
    arrays = {name: np.full(shape, np.nan) for name in QUANTITIES}
    sign = 1 if bound.measure.direction == "similarity" else -1
    for index, (low, high) in enumerate(request.levels):
        rng = np.random.default_rng(derive(request.seed, "permutations"))
        left = prepare_all(bound, request.handles(a, low))
        right = prepare_all(bound, request.handles(b, high))
        value = combine_all(bound, left, right)
        arrays["value"][index] = value
        arrays["ci_low"][index], arrays["ci_high"][index] = value - 0.05, value + 0.05
        orders = [rng.permutation(request.n) for _ in range(count)]
        if count:
            nulls = np.stack(
                [
                    combine_all(bound, left, [bound.method.permute(state, order) for state in right])
                    for order in orders
                ]
            )
            arrays["null"][index] = nulls.mean(0)
            arrays["null_high"][index] = np.quantile(nulls, 0.95 if sign > 0 else 0.05, axis=0)
            arrays["p"][index] = (1 + (sign * nulls >= sign * value).sum(0)) / (1 + count)
            extreme = (sign * nulls).max(axis=(1, 2))[:, None, None]
            arrays["p_family"][index] = (1 + (extreme >= sign * value).sum(0)) / (1 + count)
            arrays["q"][index] = arrays["p"][index]
    return Panel(
        bound.name,
        bound.measure.direction,
        bound.measure.title,
        (bound.measure.low, bound.measure.high),
        a,
        b,
        tuple(request.sites[a]),
        tuple(request.sites[b]),
        arrays,
        np.zeros(shape, dtype=np.int64),
        (),
        {"plan": "generic", "interval": "none", "null": f"{count} permutations"},
    )
