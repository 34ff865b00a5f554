"""All sites of every model against all sites of every other, at every common noise level."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens._version import __version__
from featlens.comparison.ceiling import ceilings
from featlens.comparison.engine import Grid, carry_out
from featlens.comparison.panel import QUANTITIES, Panel
from featlens.comparison.plan import Choice, ComparisonPlan, make_plan
from featlens.comparison.request import SMALL_N, Request, few_samples, resolve_request
from featlens.comparison.result import Comparison
from featlens.comparison.side import Side, noise_levels, open_sides, require_same_samples
from featlens.comparison.statistics import false_discovery_rates, interval
from featlens.measures.declare import Bound

__all__ = ["compare", "plan_comparison"]

SMALL_WORK = 2e9
"""Multiplications that one thread makes in a few tenths of a second."""
WAYS = {
    "features": "sums in feature space, read block by block",
    "tiles": "tiles of Gram matrices",
    "matrices": "one n x n matrix of each site",
    "states": "each site prepared once, then pair by pair",
}


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
    memory: float = 1e9,
    plan: str = "auto",
    allow_other_samples: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Similarity of every site of one model with every site of another, at every common noise level.

    Parameters
    ----------
    models
        Two or more ``{name: source}``; a source is a feature file (path or :class:`FeatureStore`) or a
        mapping ``{site: array}`` with arrays (n, d), or (sigmas, n, d). Rows are the same samples everywhere.
    measure
        One or several of :data:`featlens.measures.MEASURES` by name, with options in parentheses:
        ``"cka"``, ``"rsa(distance=cosine)"``.
    sites
        Glob pattern or patterns, or one entry a model; they must match in every model. All sites if None.
    sigmas
        Noise levels to compare at; by default those that all models have.
    cross_sigmas
        Compare every noise level of A with every noise level of B.
    reference
        Compare this model with each of the others; by default all pairs are compared.
    permutations
        Permutations of the samples behind null level and p-values, at least; 0 for none. By default 1,000
        where they come from cyclic shifts, else 200.
    resamples
        Random halves behind the intervals of measures without a jackknife; 100 by default.
    intervals
        Whether to compute confidence intervals.
    level
        Their confidence.
    draws
        ``{name: source}``: features of the same model and images under another draw of the noise, for the
        noise ceiling.
    n
        Compare a random subset of so many samples.
    seed
        Seed of permutations, halves and subsets.
    device
        ``"cpu"`` (numpy), or a device of torch such as ``"cuda"`` for the matrix products of kernel measures.
    memory
        Bytes that arrays of the comparison may take.
    plan
        ``"features"`` or ``"tiles"`` instead of the cheaper one; see :func:`plan_comparison`.
    allow_other_samples
        Compare although the sample digests differ. Only sensible if you know that rows correspond.
    progress
        Called with (parts done, parts in all).

    Returns
    -------
    Comparison
        Value, interval, null level and p-values of every (measure, pair, noise level, site of A, site of B).

    References
    ----------
    Intervals: Efron and Stein (1981), Annals of Statistics 9, 586-596. Family-wise p-values: Westfall and
    Young (1993). False discovery rates: Benjamini and Hochberg (1995).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(100, 8))
    >>> c = compare({"a": {"layer": x}, "b": {"layer": 2 * x[:, ::-1] + 1}})
    >>> round(c.cells()[0]["value"], 6), round(c.cells()[0]["p"], 3)
    (1.0, 0.001)
    """
    with _resolved(
        models, measure, sites, sigmas, cross_sigmas=cross_sigmas, reference=reference,
        permutations=permutations, resamples=resamples, intervals=intervals, level=level, n=n, seed=seed,
        device=device, memory=memory, plan=plan, allow_other_samples=allow_other_samples,
    ) as (stack, request):  # fmt: skip
        chosen = make_plan(request)

        def report(share: float) -> None:
            if progress is not None:
                progress(round(1000 * share), 1000)

        # Ceilings come first: draws may be refused.
        top = ceilings(stack, request, draws or {}, allow_other_samples)
        with _threads(chosen):
            grids = carry_out(request, chosen, report)
        report(1.0)
        panels = [
            _panel(request, chosen.choices[index], bound, pair, [grids[index, number, at] for at in range(
                len(request.levels))], top[index, number])
            for index, bound in enumerate(request.measures)
            for number, pair in enumerate(request.pairs)
        ]  # fmt: skip
        provenance = _provenance(request)
        provenance["measures"] = {
            choice.measure: {
                "plan": WAYS[choice.way],
                "interval": choice.interval,
                "null": choice.null,
                "permutations": choice.permutations,
            }
            for choice in chosen.choices
        }
        if draws:
            provenance["draws"] = sorted(draws)
    return Comparison(tuple(panels), tuple(request.levels), request.n, tuple(request.notices), provenance)


def plan_comparison(
    models: Mapping[str, Any],
    measure: str | Bound | Sequence[str | Bound] = "cka",
    sites: str | Sequence[str] | Mapping[str, Any] | None = None,
    sigmas: Sequence[float] | None = None,
    **options: Any,
) -> ComparisonPlan:
    """What :func:`compare` would do with the same arguments, and why; reads no features.

    Examples
    --------
    >>> x = np.zeros((100, 8))
    >>> plan_comparison({"a": {"layer": x}, "b": {"layer": x}}).choices[0].way
    'features'
    """
    options.pop("progress", None)
    options.pop("draws", None)
    with _resolved(models, measure, sites, sigmas, **options) as (_, request):
        return make_plan(request)


@contextlib.contextmanager
def _resolved(
    models: Mapping[str, Any],
    measure: str | Bound | Sequence[str | Bound],
    sites: str | Sequence[str] | Mapping[str, Any] | None,
    sigmas: Sequence[float] | None,
    *,
    allow_other_samples: bool = False,
    **options: Any,
) -> Any:
    settings = {
        "cross_sigmas": False, "reference": None, "permutations": None, "resamples": None, "intervals": True,
        "level": 0.95, "n": None, "seed": 0, "device": "cpu", "memory": 1e9, "plan": "auto",
    } | options  # fmt: skip
    with contextlib.ExitStack() as stack:
        sigmas = noise_levels(sigmas)
        sides = open_sides(stack, models, sigmas)
        if len(sides) > 1:
            require_same_samples(list(sides.values()), allow_other_samples)
        yield stack, resolve_request(sides, measure, sites, sigmas, **settings)


def _threads(plan: ComparisonPlan) -> contextlib.AbstractContextManager[Any]:
    """One thread for small products: on a busy machine several wait for each other longer than they work."""
    each = [choice.products + choice.null_products for choice in plan.choices]
    if not sum(each) < SMALL_WORK:
        return contextlib.nullcontext()
    from threadpoolctl import threadpool_limits

    limited: contextlib.AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limited


def _provenance(request: Request) -> dict[str, Any]:
    sides = list(request.sides.values())
    files = [side.store for side in sides if side.store is not None]
    ids: NDArray[np.int64] | None = files[0].ids if files else None
    subset = sides[0].subset
    if ids is not None and subset is not None:
        ids = ids[subset]
    elif subset is not None:
        ids = subset
    samples = {
        "n": request.n,
        "digest": files[0].sample_digest if files else None,
        "ids": None if ids is None else hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()[:16],
        "sample_set": files[0].manifest.get("sample_set") if files else None,
    }
    return {
        "models": {name: side.provenance() for name, side in request.sides.items()},
        "samples": samples,
        "seed": request.seed,
        "permutations": request.permutations,
        "resamples": request.resamples,
        "level": request.level if request.intervals else None,
        "device": request.device,
        "creator": f"featlens {__version__}",
    }


def _panel(
    request: Request,
    choice: Choice,
    bound: Bound,
    pair: tuple[str, str],
    grids: Sequence[Grid],
    ceiling: NDArray[np.float64],
) -> Panel:
    a, b = pair
    measure = bound.measure
    bounds = (measure.low, measure.high)
    arrays = {name: np.full(ceiling.shape, np.nan) for name in QUANTITIES} | {"ceiling": ceiling}
    for index, grid in enumerate(grids):
        arrays["value"][index] = grid.value
        low, high = interval(grid.value, grid.error, request.level, grid.degrees, bounds)
        arrays["ci_low"][index], arrays["ci_high"][index] = low, high
        for name, column in grid.null.items():
            arrays[name][index] = column
    arrays["q"] = false_discovery_rates(arrays["p"])
    flags, remarks = _remarks(request, bound, a, b, arrays, choice.permutations > 0)
    precision = " and ".join(dict.fromkeys(grid.precision for grid in grids))
    return Panel(
        bound.name,
        measure.direction,
        measure.title,
        bounds,
        a,
        b,
        tuple(request.sites[a]),
        tuple(request.sites[b]),
        arrays,
        flags,
        remarks,
        {"plan": f"{WAYS[choice.way]}, in {precision}", "interval": choice.interval, "null": choice.null},
    )


def _remarks(
    request: Request,
    bound: Bound,
    a: str,
    b: str,
    arrays: Mapping[str, NDArray[np.float64]],
    permuted: bool,
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Warnings of cells: few samples, undefined values, and what the measure says of n and the widths."""
    remarks: list[str] = []
    value = arrays["value"]
    flags = np.zeros(value.shape, dtype=np.int64)

    def mark(remark: str, where: Any) -> None:
        # Bits of an int64: what is one too many is told in general.
        if remark not in remarks:
            remark = (
                remark if len(remarks) < 60 else f"few samples for the widths of its sites, n {request.n}"
            )
            remarks.extend([remark] if remark not in remarks else [])
        bit = remarks.index(remark)
        flags[where] |= np.int64(1) << bit

    if request.n < SMALL_N:
        mark(few_samples(request.n), slice(None))
    undefined = np.isnan(value)
    if undefined.any():
        mark(
            "undefined: a site is constant over the samples, or has no variation that the measure sees",
            undefined,
        )
    unknown = ~undefined & np.isnan(arrays["p"])
    if permuted and unknown.any():
        mark(
            "no p-value: too few of the samples that the null level was computed on carry the variation of "
            "a site; compare with more memory, or fewer sites",
            unknown,
        )
    warning = getattr(bound.method, "warning", None)
    if warning is not None:
        sides: tuple[Side, Side] = (request.sides[a], request.sides[b])
        for i, left in enumerate(request.sites[a]):
            for j, right in enumerate(request.sites[b]):
                told = warning(request.n, sides[0].widths[left], sides[1].widths[right])
                if told:
                    mark(told, (slice(None), i, j))
    return flags, tuple(remarks)
