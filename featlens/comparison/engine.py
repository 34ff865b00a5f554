"""Carrying out a plan: values, standard errors and values under permutations, noise level by noise level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.device import Device, open_device
from featlens.comparison.forms import Form, Kernel, form_of
from featlens.comparison.jackknife import ILL, Sums, standard_errors, values
from featlens.comparison.null import orders_for, shifts_of_forms, shifts_of_matrices
from featlens.comparison.plan import (
    ANCHORS,
    LEAST_LEFT_OUT,
    Choice,
    ComparisonPlan,
    split_sites,
    tile_anchors,
)
from featlens.comparison.request import Handle, Request
from featlens.comparison.rows import Rows, gather
from featlens.comparison.statistics import Tally, error_of_halves
from featlens.comparison.streaming import stream
from featlens.comparison.tiles import Pair, accumulate, tile_size
from featlens.measures.arrays import checked
from featlens.measures.declare import Alignment, Bound
from featlens.seeds import derive

__all__ = ["Grid", "carry_out"]

Floats = NDArray[np.float64]
Report = Callable[[float], None]
OVERLAP = 5.0
"""Samples that must carry the variance of both sites by chance, lest a subset's null says nothing."""
MEDIAN_ROWS = 2048
"""Samples whose distances give the median bandwidth."""


@dataclass
class Grid:
    """Results of one measure, pair and level."""

    value: Floats
    error: Floats
    degrees: int
    precision: str = "float64"
    null: dict[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class _Level:
    """All sites that one noise level needs, and the groups of them that make the pairs."""

    handles: list[Handle]
    pairs: list[Pair]


def carry_out(request: Request, plan: ComparisonPlan, report: Report) -> dict[tuple[int, int, int], Grid]:
    """Grids by (measure, pair, level); ``report`` is called with the share that is done."""
    device = open_device(request.device)
    out: dict[tuple[int, int, int], Grid] = {}
    stages = len(request.levels) * len(request.measures)
    done = 0
    for number, (low, high) in enumerate(request.levels):
        level = _level(request, low, high)
        forms = {index: form_of(bound) for index, bound in enumerate(request.measures)}
        tiled = [index for index, form in forms.items() if form and plan.choices[index].way == "tiles"]
        # Measures of the same precision share one pass over the tiles.
        for precision in dict.fromkeys(plan.choices[index].precision for index in tiled):
            chosen = [index for index in tiled if plan.choices[index].precision == precision]
            stage = _stage(report, done, len(chosen), stages)
            found = _tiles(request, level, [forms[index] for index in chosen], precision, device, stage)
            out |= {(chosen[i], pair, number): grid for (i, pair), grid in found.items()}
            done += len(chosen)
        for index, bound in enumerate(request.measures):
            if index in tiled:
                continue
            stage = _stage(report, done, 1, stages)
            form, choice = forms[index], plan.choices[index]
            if form is not None:
                grids = _features(request, level, form, choice, device, stage)
            else:
                grids = _prepared(request, level, bound, choice, stage)
            out |= {(index, pair, number): grid for pair, grid in enumerate(grids)}
            done += 1
        _nulls(request, plan, level, forms, number, out)
    return out


def _silent(step: int, total: int) -> None:
    """No report: the stage was counted already."""


def _stage(report: Report, done: int, size: int, stages: int) -> Callable[[int, int], None]:
    return lambda step, total: report((done + size * step / max(total, 1)) / stages)


def _level(request: Request, low: float, high: float) -> _Level:
    handles: list[Handle] = []
    place: dict[tuple[str, float], slice] = {}

    def where(name: str, sigma: float) -> slice:
        if (name, sigma) not in place:
            start = len(handles)
            handles.extend(request.handles(name, sigma))
            place[name, sigma] = slice(start, len(handles))
        return place[name, sigma]

    pairs = [(where(a, low), where(b, high)) for a, b in request.pairs]
    return _Level(handles, pairs)


def _bandwidths(request: Request, level: _Level, kernel: Kernel, limit: int) -> list[float]:
    """Bandwidth of every site in units of its features; a random subset gives the median where n is large."""
    if kernel.kind != "rbf":
        return [1.0] * len(level.handles)
    from featlens.measures.kernels import median_distance, squared_distances

    rows = np.arange(request.n)
    if request.n > limit:
        chosen = np.random.default_rng(derive(request.seed, "bandwidth")).permutation(request.n)[:limit]
        rows = np.sort(chosen)
    out = []
    for handle in level.handles:
        x = checked(gather(handle, rows), handle.label, 2, "cka")
        scale = float(np.abs(x - x[:1]).max()) or 1.0
        # Distances come up to a power of two: the ratio to a known one tells which.
        x = (x - x[:1]) / scale
        squared = squared_distances(x)
        out.append(kernel.bandwidth * median_distance(squared) * _unit(x, squared) * scale)
    return out


def _unit(x: Floats, squared: Floats) -> float:
    """Length that 1 stands for in ``squared``."""
    far = int(np.argmax(squared[0]))
    known = float(np.sqrt(((x[0] - x[far]) ** 2).sum()))
    return known / float(np.sqrt(squared[0, far])) if squared[0, far] > 0 else 1.0


def _tiles(
    request: Request,
    level: _Level,
    forms: Sequence[Form | None],
    precision: str,
    device: Device,
    report: Callable[[int, int], None],
) -> dict[tuple[int, int], Grid]:
    wanted = [form for form in forms if form is not None]
    kernels = list(dict.fromkeys(form.kernel for form in wanted))
    total = sum(handle.width for handle in level.handles)
    size = tile_size(request.n, len(level.handles), request.memory, total, np.dtype(precision).itemsize)
    rows = Rows(level.handles, request.n, size, precision, device, request.memory / 2)
    scales = np.asarray(rows.scales)
    widths = [
        (np.asarray(_bandwidths(request, level, kernel, MEDIAN_ROWS)) / scales).tolist() for kernel in kernels
    ]
    widths = [[width if width > 0 else 1.0 for width in each] for each in widths]
    anchors = anchors_of(request, tile_anchors(request, len(kernels)))
    moments = accumulate(rows, level.pairs, kernels, widths, anchors, report)
    every = [Sums(form, moments[kernels.index(form.kernel)], precision) for form in wanted]
    if _redo(precision, min(sums.share() for sums in every), device):
        return _tiles(request, level, forms, "float64", device, _silent)
    out = {}
    for index, (form, sums) in enumerate(zip(wanted, every, strict=True)):
        which = kernels.index(form.kernel)
        errors = None
        if anchors is not None:
            errors = standard_errors(rows, sums, level.pairs, widths[which], anchors)
        for pair, groups in enumerate(level.pairs):
            value = values(sums, pair, groups)
            error = errors[pair] if errors is not None else np.full(value.shape, np.nan)
            degrees = 1 if anchors is None else len(anchors) - 1
            out[index, pair] = Grid(value, error, degrees, precision)
    return out


def anchors_of(request: Request, most: int) -> NDArray[np.int64] | None:
    """Samples that are left out in turn, all or some at random; None without intervals."""
    if not request.intervals or request.n < LEAST_LEFT_OUT:
        return None
    rng = np.random.default_rng(derive(request.seed, "anchors"))
    return np.sort(rng.permutation(request.n)[:most])


def _redo(precision: str, share: float, device: Device) -> bool:
    """Whether float32 was not enough: a few samples far from all others, say, or all equally far apart."""
    return precision == "float32" and share < ILL and not device.half_precision


def _features(
    request: Request,
    level: _Level,
    form: Form,
    choice: Choice,
    device: Device,
    report: Callable[[int, int], None],
) -> list[Grid]:
    anchors = anchors_of(request, ANCHORS)
    grids, done, precision = [], 0, choice.precision
    parts = [_groups(request, level.handles[a], level.handles[b]) for a, b in level.pairs]
    steps = sum(map(len, parts))
    for (a, b), groups in zip(level.pairs, parts, strict=True):
        left, right = level.handles[a], level.handles[b]
        value, error = (np.full((len(left), len(right)), np.nan) for _ in range(2))
        for rows, columns in groups:
            some = [*left[rows], *right[columns]]
            middle = rows.stop - rows.start
            pair = (slice(0, middle), slice(middle, len(some)))

            def advance(step: int, total: int, start: int = done) -> None:
                report(int(1000 * (start + step / total)), 1000 * steps)

            found = stream(some, pair, [form.formula], request.n, precision, device, anchors, advance)[0]
            if _redo(precision, found.share, device):
                precision = "float64"
                found = stream(some, pair, [form.formula], request.n, precision, device, anchors)[0]
            value[rows, columns], error[rows, columns] = found.value, found.error
            done += 1
        grids.append(Grid(value, error, min(request.n, ANCHORS) - 1, precision))
    return grids


def _groups(request: Request, left: Sequence[Handle], right: Sequence[Handle]) -> list[Pair]:
    rows, columns = ([handle.width for handle in side] for side in (left, right))
    return split_sites(rows, columns, 0.6 * request.memory) or []


def _prepared(
    request: Request,
    level: _Level,
    bound: Bound,
    choice: Choice,
    report: Callable[[int, int], None],
) -> list[Grid]:
    """Measures without a form: states of all sites, values, standard errors from halves, and null levels."""
    resamples = 100 if request.resamples is None else request.resamples
    # Halves come in pairs that share no sample.
    resamples = resamples + resamples % 2 if resamples >= 2 else 0
    resamples = resamples if request.intervals and request.n // 2 >= bound.least else 0
    explicit = 0 if isinstance(bound.method, Alignment) else choice.permutations
    steps, done = 1 + resamples + explicit, 0

    states = [_prepare(bound, handle) for handle in level.handles]
    grids = []
    for a, b in level.pairs:
        value = _combine(bound, states[a], states[b])
        grids.append(Grid(value, np.full(value.shape, np.nan), max(resamples // 2, 1)))
    report(1, steps)
    if isinstance(bound.method, Alignment):
        _shift_matrices(request, level, bound, choice, states, grids)
    elif choice.permutations:
        rng = np.random.default_rng(derive(request.seed, "permutations"))
        tallies = [Tally(grid.value, bound.measure.direction) for grid in grids]
        for number in range(choice.permutations):
            order = rng.permutation(request.n)
            moved = {
                index: bound.method.permute(states[index], order)
                for index in {i for _, b in level.pairs for i in range(b.start, b.stop)}
            }
            for tally, (a, b) in zip(tallies, level.pairs, strict=True):
                tally.add(_combine(bound, states[a], [moved[i] for i in range(b.start, b.stop)])[None])
            report(2 + number, steps)
        for grid, tally in zip(grids, tallies, strict=True):
            grid.null = tally.columns()
    del states
    done = 1 + explicit
    rng = np.random.default_rng(derive(request.seed, "halves"))
    kept = request.n // 2
    found: list[list[Floats]] = [[] for _ in level.pairs]
    for number in range(resamples):
        if number % 2 == 0:
            order = rng.permutation(request.n)
        # In the order of the samples, so that folds and ties fall as they do for all samples.
        half = np.sort(order[:kept] if number % 2 == 0 else order[kept : 2 * kept])
        some = [_prepare(bound, handle, half) for handle in level.handles]
        for index, (a, b) in enumerate(level.pairs):
            found[index].append(_combine(bound, some[a], some[b]))
        report(done + number + 1, steps)
    for grid, values_ in zip(grids, found, strict=True):
        if values_:
            grid.error = error_of_halves(np.stack(values_), request.n)
    return grids


def _prepare(bound: Bound, handle: Handle, rows: NDArray[np.int64] | None = None) -> Any:
    x = checked(handle.read(), handle.label, bound.least, bound.measure.name)
    return bound.method.prepare(x if rows is None else x[rows])


def _combine(bound: Bound, left: Sequence[Any], right: Sequence[Any]) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.array([[bound.method.combine(a, b) for b in right] for a in left], dtype=np.float64)


def _shift_matrices(
    request: Request,
    level: _Level,
    bound: Bound,
    choice: Choice,
    states: Sequence[Any],
    grids: Sequence[Grid],
) -> None:
    if not choice.permutations or not isinstance(bound.method, Alignment):
        return
    rng = np.random.default_rng(derive(request.seed, "permutations"))
    finish = np.vectorize(bound.method.finish, otypes=[np.float64])
    tallies = [Tally(grid.value, bound.measure.direction) for grid in grids]
    for order in orders_for(request.n, choice.permutations, rng):
        found = shifts_of_matrices(states, level.pairs, order, request.memory / 2)
        for tally, cosines in zip(tallies, found, strict=True):
            tally.add(finish(cosines))
    for grid, tally in zip(grids, tallies, strict=True):
        grid.null = tally.columns()


def _effective_samples(level: _Level, rows: NDArray[np.int64]) -> Floats:
    """(H,) samples that carry the variance of each site: (sum k)^2 / sum k^2 of squared norms k."""
    out = np.zeros(len(level.handles))
    for index, handle in enumerate(level.handles):
        x = gather(handle, rows).astype(np.float64)
        x -= x.mean(axis=0)
        x /= float(np.abs(x).max()) or 1.0
        norms = np.einsum("ij,ij->i", x, x)
        total = float(norms.sum())
        out[index] = total**2 / float(norms @ norms) if total > 0 else 0.0
    return out


def _nulls(
    request: Request,
    plan: ComparisonPlan,
    level: _Level,
    forms: dict[int, Form | None],
    number: int,
    out: dict[tuple[int, int, int], Grid],
) -> None:
    """Null levels of all measures that are forms, from the same permutations."""
    wanted = [index for index, form in forms.items() if form and plan.choices[index].permutations]
    for rows in dict.fromkeys(plan.choices[index].null_rows for index in wanted):
        chosen = [index for index in wanted if plan.choices[index].null_rows == rows]
        some = [form for index in chosen if (form := forms[index]) is not None]
        count = max(plan.choices[index].permutations for index in chosen)
        rng = np.random.default_rng(derive(request.seed, "permutations"))
        subset = np.arange(request.n) if rows == request.n else rng.permutation(request.n)[:rows]
        widths = [_bandwidths(request, level, form.kernel, MEDIAN_ROWS) for form in some]
        widths = [[width if width > 0 else 1.0 for width in each] for each in widths]
        ill = any(
            plan.choices[index].precision == "float32" and out[index, pair, number].precision == "float64"
            for index in chosen
            for pair in range(len(level.pairs))
        )
        dtype = "float64" if rows <= 512 or ill else "float32"
        tallies = {
            (index, pair): Tally(out[index, pair, number].value, "similarity")
            for index in chosen
            for pair in range(len(level.pairs))
        }
        spread = _effective_samples(level, subset) if rows < request.n else None
        for order in orders_for(rows, count, rng):
            found = shifts_of_forms(
                level.handles, level.pairs, some, widths, subset[order], dtype, request.memory / 2
            )
            for index, by_pair in zip(chosen, found, strict=True):
                for pair, null in enumerate(by_pair):
                    if spread is not None:
                        a, b = level.pairs[pair]
                        null[:, spread[a, None] * spread[None, b] < OVERLAP * rows] = np.nan
                    # Debiased values of unrelated samples scatter around 0 as 1 / n.
                    tallies[index, pair].add(null * (rows / request.n))
        for (index, pair), tally in tallies.items():
            out[index, pair, number].null = tally.columns()
