"""Which way a comparison is computed, by cost, and what it will take."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featlens.comparison.forms import Form, form_of
from featlens.comparison.request import Request
from featlens.errors import UsageError
from featlens.files import human_bytes
from featlens.measures.declare import Alignment, Bound

__all__ = ["Choice", "ComparisonPlan", "make_plan", "split_sites"]

ANCHORS = 2048
"""Samples that are left out in turn where features are streamed."""
LEAST_LEFT_OUT = 6
"""Fewest samples for a jackknife."""
NULL_ROWS = 4096
"""Most samples that a null level is computed on."""
EXACT = 2e10
"""Multiplications up to which products are made in float64."""
MOST_PASSES = 64
"""Most passes over the rows."""
ENTRY = 15.0
"""Multiplications that take as long as looking at one entry of one site's Gram matrix once."""
TRANSFORM = 400.0
"""The same for the Fourier transform of one entry."""
ENTRY_LEFT_OUT = 250.0
"""The same for the sums that leaving one sample out needs."""


@dataclass(frozen=True)
class Choice:
    """How one measure is computed."""

    measure: str
    way: str
    """``"features"``, ``"tiles"``, ``"matrices"`` or ``"states"``."""
    why: str
    precision: str
    products: float
    """Multiplications of the values, over all levels and pairs; NaN for measures without a plan."""
    bytes: float
    """Memory beyond one site's features."""
    interval: str
    null: str
    null_rows: int
    permutations: int
    null_products: float = float("nan")
    """Multiplications that the null level takes as long as, over all levels; NaN where that is not known."""


@dataclass(frozen=True)
class ComparisonPlan:
    """What a comparison will do."""

    n: int
    levels: tuple[tuple[float, float], ...]
    pairs: tuple[tuple[str, str], ...]
    sites: dict[str, int]
    cells: int
    choices: tuple[Choice, ...]
    notices: tuple[str, ...]

    def explain(self) -> str:
        """Several lines: what is compared, how and why, and about how long the matrix products take here."""
        told = ", ".join(f"{name} ({count} site{'s' * (count != 1)})" for name, count in self.sites.items())
        lines = [
            f"{told}: {self.cells} cells over {len(self.pairs)} pair{'s' * (len(self.pairs) > 1)} and "
            f"{len(self.levels)} noise level{'s' * (len(self.levels) > 1)}, n {self.n}"
        ]
        lines += [f"note: {notice}" for notice in self.notices]
        for choice in self.choices:
            lines.append(f"{choice.measure}: {choice.way}, {choice.precision}; {choice.why}")
            if np.isfinite(choice.products):
                seconds = choice.products / _rate(choice.precision)
                lines.append(
                    f"  values: {choice.products:.2g} multiplications, about {_seconds(seconds)} of products "
                    f"here; memory about {human_bytes(choice.bytes)}"
                )
            else:
                lines.append(f"  memory about {human_bytes(choice.bytes)}")
            lines.append(f"  intervals: {choice.interval}")
            cost = ""
            if np.isfinite(choice.null_products):
                cost = f", about {_seconds(choice.null_products / _rate('float32'))}"
            lines.append(f"  null level: {choice.null}{cost}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        told = asdict(self)
        for choice in told["choices"]:
            for name in ("products", "null_products"):
                if not np.isfinite(choice[name]):
                    choice[name] = None
        return told


def _rate(precision: str) -> float:
    """Multiplications a second of a matrix product, measured here."""
    x = np.ones((768, 768), dtype=precision)
    x @ x
    start = time.perf_counter()
    for _ in range(3):
        x @ x
    return 3 * 768**3 / (time.perf_counter() - start)


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def widths_of(request: Request, model: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers of features of a model's chosen sites."""
    side = request.sides[model]
    return np.array([side.widths[site] for site in request.sites[model]], dtype=np.float64)


def _held_at_once(request: Request) -> list[str]:
    """Models whose sites are looked at together at one noise level; twice if at two noise levels."""
    if any(low != high for low, high in request.levels):
        firsts, seconds = (dict.fromkeys(names) for names in zip(*request.pairs, strict=True))
        return [*firsts, *seconds]
    return list(dict.fromkeys(name for pair in request.pairs for name in pair))


def feature_cost(request: Request) -> float:
    """Multiplications of streaming."""
    total = 0.0
    for a, b in request.pairs:
        p, q = widths_of(request, a), widths_of(request, b)
        total += p.sum() * q.sum() + (p**2).sum() + (q**2).sum()
    cost = total * request.n * len(request.levels)
    if request.intervals:
        cost += total * min(request.n, ANCHORS) * len(request.levels)
    return cost


def tile_cost(request: Request) -> float:
    """Multiplications of upper-triangular tiles."""
    half = request.n**2 / 2
    grams = sum(widths_of(request, name).sum() for name in _held_at_once(request))
    cells = sum(len(request.sites[a]) * len(request.sites[b]) for a, b in request.pairs)
    sites = sum(len(request.sites[name]) for name in _held_at_once(request))
    # Found by measurement on products of 2 to 100 sites a side; tests/benchmarks/bench_compare_scaling.py.
    each = grams + cells + ENTRY * sites
    if request.intervals:
        each += 2 * cells + ENTRY_LEFT_OUT * sites
    return float(half * each * len(request.levels))


def split_sites(left: Sequence[int], right: Sequence[int], memory: float) -> list[tuple[slice, slice]] | None:
    """Groups of sites whose sums fit into memory, fewest passes first; None if that takes too many."""
    if max(left) * max(right) * 8.0 + 8.0 * (max(left) ** 2 + max(right) ** 2) > memory:
        return None
    for passes in range(1, min(len(left) * len(right), MOST_PASSES) + 1):
        for parts in range(1, passes + 1):
            if passes % parts or parts > len(left) or passes // parts > len(right):
                continue
            rows, columns = _parts(left, parts), _parts(right, passes // parts)
            groups = [(a, b) for a in rows for b in columns]
            if all(_held(left[a], right[b]) <= memory for a, b in groups):
                return groups
    return None


def _parts(widths: Sequence[int], count: int) -> list[slice]:
    """Cut into consecutive parts of about equal width."""
    if count == len(widths):
        return [slice(index, index + 1) for index in range(count)]
    ends = np.searchsorted(np.cumsum(widths), np.arange(1, count + 1) / count * sum(widths) * (1 - 1e-12))
    cuts = [0, *np.minimum(ends + 1, len(widths))]
    cuts[-1] = len(widths)
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(cuts) if b > a]


def _held(left: Sequence[int], right: Sequence[int]) -> float:
    return 8.0 * (sum(left) * sum(right) + sum(width**2 for width in (*left, *right)))


def make_plan(request: Request) -> ComparisonPlan:
    """Choose for every measure."""
    cells = sum(len(request.sites[a]) * len(request.sites[b]) for a, b in request.pairs)
    return ComparisonPlan(
        request.n,
        tuple(request.levels),
        tuple(request.pairs),
        {name: len(sites) for name, sites in request.sites.items()},
        cells * len(request.levels),
        tuple(_choose(request, bound) for bound in request.measures),
        tuple(request.notices),
    )


def _choose(request: Request, bound: Bound) -> Choice:
    form = form_of(bound)
    if form is not None:
        return _choose_form(request, bound, form)
    held = [widths_of(request, name) for name in _held_at_once(request)]
    sites = sum(map(len, held))
    alignment = isinstance(bound.method, Alignment)
    if alignment or getattr(bound.method, "n_squared", False):
        memory = 8.0 * request.n**2 * (sites + 4)
        if memory > request.memory:
            fits = int((request.memory / (8.0 * (sites + 4))) ** 0.5)
            raise UsageError(
                f"compare: {bound.name} keeps an n x n matrix of each of {sites} sites, "
                f"{human_bytes(memory)} for {request.n} samples, more than {human_bytes(request.memory)}; "
                f"compare fewer sites, a random subset of {fits} samples (n={fits}), or allow more memory"
            )
        way, why = "matrices", "one n x n matrix a site, prepared once"
        usual, how = (1000, "cyclic shifts of random orders") if alignment else (200, "random permutations")
        null = _null_words(request, usual, request.n, f"{how} of the samples")
    else:
        widest = max(widths.max() for widths in held)
        each = 8.0 * (sum(widths.sum() for widths in held) + 4 * widest)
        memory = each * request.n
        if memory > request.memory:
            fits = int(request.memory / each)
            raise UsageError(
                f"compare: {bound.name} keeps what it prepares of {sites} sites, about {human_bytes(memory)} "
                f"for {request.n} samples, more than {human_bytes(request.memory)}; compare fewer sites, a "
                f"random subset of {fits} samples (n={fits}), or allow more memory"
            )
        way, why = "states", "the work of one site is done once, then every pair is combined"
        null = _null_words(request, 200, request.n, "random permutations of the samples")
    resamples = 100 if request.resamples is None else request.resamples
    halves = request.intervals and resamples >= 2 and request.n // 2 >= bound.least
    # They come in pairs that share no sample.
    resamples += resamples % 2
    interval = f"{resamples} random halves of the samples, without replacement" if halves else "none"
    return Choice(
        bound.name,
        way,
        why,
        "float64",
        float("nan"),
        memory,
        interval,
        *null,
    )


def _null_words(request: Request, usual: int, rows: int, how: str) -> tuple[str, int, int]:
    count = usual if request.permutations is None else request.permutations
    if not count:
        return "none", 0, 0
    if rows < request.n:
        how += f" on a random {rows} of {request.n} samples, scaled by {rows / request.n:.3g}"
    return f"at least {count} {how}", rows, count


def _interval_words(request: Request, anchors: int) -> str:
    if not request.intervals or request.n < LEAST_LEFT_OUT:
        return "none"
    if request.n <= anchors:
        return "jackknife, each sample left out in turn"
    return f"jackknife, {anchors} random samples left out in turn"


def tile_anchors(request: Request, kernels: int) -> int:
    """Most samples to leave out in turn beside tiles: sums of every cell are kept for each."""
    cells = sum(len(request.sites[a]) * len(request.sites[b]) for a, b in request.pairs)
    return max(256, int(request.memory / 8 / (8.0 * cells * kernels)))


def _choose_form(request: Request, bound: Bound, form: Form) -> Choice:
    tiles, features = tile_cost(request), feature_cost(request)
    linear = form.kernel.kind == "linear"
    groups = None
    if linear:
        groups = [
            split_sites(
                widths_of(request, a).astype(int).tolist(),
                widths_of(request, b).astype(int).tolist(),
                0.6 * request.memory,
            )
            for a, b in request.pairs
        ]
    possible = groups is not None and all(group is not None for group in groups)
    if request.plan == "features" and not possible:
        why = "its sums do not fit into memory" if linear else "its kernel has no feature space"
        raise UsageError(f"compare: {bound.name} cannot be streamed: {why}; use plan='tiles'")
    if not possible:
        way, why = (
            "tiles",
            "the kernel has no feature space" if not linear else "feature sums exceed the memory",
        )
    elif request.plan != "auto":
        way, why = request.plan, "as asked for"
    else:
        way = "features" if features < tiles else "tiles"
        why = f"{features:.2g} multiplications through features, {tiles:.2g} through tiles of Gram matrices"
    products = features if way == "features" else tiles
    widest = max(widths_of(request, name).sum() for name in request.sites)
    if way == "features":
        passes = max(len(group or []) for group in groups or [])
        why += f"; {passes} pass{'es' * (passes > 1)} over the rows"
        memory = min(0.6 * request.memory, 8.0 * widest**2) + 4.0 * 2048 * 4 * widest
        anchors = ANCHORS
    else:
        memory = min(request.memory / 2, 8.0 * request.n * widest) + request.memory / 4
        anchors = tile_anchors(request, 1)
    interval = _interval_words(request, anchors)
    rows = null_rows(request, bound, form)
    usual = 1000
    how = "cyclic shifts of random orders of the samples"
    precision = "float64" if products <= EXACT else "float32"
    return Choice(
        bound.name,
        way,
        why,
        precision,
        products,
        memory,
        interval,
        *_null_words(request, usual, rows, how),
        null_products=_null_cost(request, rows, usual),
    )


def _null_cost(request: Request, rows: int, usual: int) -> float:
    """Half of all Gram matrices for every order of the samples, and their transforms."""
    count = usual if request.permutations is None else request.permutations
    held = _held_at_once(request)
    widths = sum(widths_of(request, name).sum() for name in held)
    sites = sum(len(request.sites[name]) for name in held)
    cells = sum(len(request.sites[a]) * len(request.sites[b]) for a, b in request.pairs)
    each = rows**2 / 2 * (widths + 4 * cells + TRANSFORM * sites)
    return float(-(-count // max(rows - 1, 1)) * each * len(request.levels))


def null_rows(request: Request, bound: Bound, form: Form) -> int:
    """Samples to compute the null level on: all, or as many as fit where values then shrink as 1 / n."""
    held = sum(widths_of(request, name).sum() for name in _held_at_once(request))
    cells = sum(len(request.sites[a]) * len(request.sites[b]) for a, b in request.pairs)
    # Features in float32, and spectra and values of every cell.
    each = 4 * held + 64 * cells
    if form.degenerate:
        return min(request.n, NULL_ROWS, max(int(request.memory / 2 / each), 256))
    fits = int(request.memory / each)
    if request.permutations != 0 and fits < request.n:
        raise UsageError(
            f"compare: the null level of {bound.name} takes {human_bytes(each * request.n)} for "
            f"{request.n} samples, more than {human_bytes(request.memory)}; leave it out (permutations=0), "
            f"compare a random subset of {fits} samples (n={fits}), or allow more memory"
        )
    return request.n
