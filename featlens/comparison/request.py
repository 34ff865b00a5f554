"""What a comparison was asked for, resolved against what the files hold."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featlens.comparison.side import Side, same_level
from featlens.errors import UsageError, choices_hint
from featlens.measures.declare import Bound, resolve

__all__ = ["Handle", "Request", "resolve_request"]

SMALL_N = 50


@dataclass(frozen=True)
class Handle:
    """Features of one site of one model at one noise level."""

    side: Side
    site: str
    sigma: float

    @property
    def width(self) -> int:
        """Number of features."""
        return self.side.widths[self.site]

    @property
    def label(self) -> str:
        """What to call it in errors."""
        return f"site {self.site!r} of {self.side.name!r} at sigma {self.sigma:g}"

    def read(self, start: int = 0, stop: int | None = None) -> Any:
        """Rows (stop - start, D)."""
        return self.side.read(self.site, self.sigma, start, stop)


@dataclass(frozen=True)
class Request:
    """A comparison, with all defaults settled."""

    sides: dict[str, Side]
    sites: dict[str, list[str]]
    pairs: list[tuple[str, str]]
    levels: list[tuple[float, float]]
    measures: list[Bound]
    n: int
    permutations: int | None
    resamples: int | None
    intervals: bool
    level: float
    seed: int
    device: str
    memory: float
    plan: str
    notices: list[str]

    def handles(self, model: str, sigma: float) -> list[Handle]:
        """All chosen sites of a model at a noise level."""
        return [Handle(self.sides[model], site, sigma) for site in self.sites[model]]


def few_samples(count: int) -> str:
    """Warning of few samples."""
    return f"only {count} samples: values scatter widely; use at least {SMALL_N}"


def resolve_pairs(names: Sequence[str], reference: str | None) -> list[tuple[str, str]]:
    """All pairs in order, or the reference with each of the others."""
    if len(names) < 2:
        raise UsageError(
            f"compare: expected two or more models {{name: features}}, got {len(names)}: {list(names)}"
        )
    if reference is None:
        return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    if reference not in names:
        raise UsageError(f"compare: unknown reference {reference!r}: {choices_hint(reference, list(names))}")
    return [(reference, name) for name in names if name != reference]


def resolve_measures(measure: str | Bound | Sequence[str | Bound]) -> list[Bound]:
    """Measures by name, each once."""
    if measure is None:
        raise UsageError("compare: no measure was chosen; give one, such as 'cka'")
    wanted = [measure] if isinstance(measure, (str, Bound)) else list(measure)
    found = {bound.name: bound for bound in map(resolve, wanted)}
    if not found:
        raise UsageError("compare: no measure was chosen; give one, such as 'cka'")
    return list(found.values())


def resolve_sites(
    sides: Mapping[str, Side], sites: str | Sequence[str] | Mapping[str, Any] | None
) -> dict[str, list[str]]:
    """Chosen sites of each model."""
    if isinstance(sites, Mapping):
        for name in sites:
            if name not in sides:
                raise UsageError(
                    f"compare: sites are given for {name!r}: {choices_hint(str(name), list(sides))}"
                )
        wanted = {name: sites.get(name) for name in sides}
    else:
        wanted = dict.fromkeys(sides, sites)
    chosen = {}
    for name, side in sides.items():
        patterns = wanted[name]
        chosen[name] = side.select([patterns] if isinstance(patterns, str) else patterns)
        if not chosen[name]:
            raise UsageError(f"compare: no site of {name!r} was chosen; it has {len(side.widths)} sites")
    return chosen


def resolve_levels(
    sides: Mapping[str, Side], sigmas: Sequence[float] | None, cross: bool
) -> tuple[list[tuple[float, float]], list[str]]:
    """Noise levels to compare at, and what was left out."""
    models = list(sides.values())
    wanted = list(models[0].sigmas) if sigmas is None else [float(sigma) for sigma in sigmas]
    if not wanted:
        raise UsageError("compare: no noise level was chosen; leave sigmas away for all that are common")
    common = [
        float(sigma) for sigma in wanted if all(same_level(side.sigmas, sigma).any() for side in models)
    ]
    common = list(dict.fromkeys(common))
    there = "; ".join(
        f"{side.name!r} has {', '.join(f'{value:g}' for value in side.sigmas)}" for side in models
    )
    if cross and sigmas is None and len(models) == 2:
        return [(float(a), float(b)) for a in models[0].sigmas for b in models[1].sigmas], []
    for sigma in wanted if sigmas is not None else ():
        if not any(same_level(side.sigmas, sigma).any() for side in models):
            raise UsageError(f"compare: no model has sigma {sigma:g}; {there}")
    if not common or (sigmas is not None and len(common) < len(dict.fromkeys(wanted))):
        raise UsageError(
            f"compare: the models have different noise levels ({there}); "
            f"{'none is common' if not common else 'not all that were asked for are in all of them'}"
        )
    notices = []
    if any(len(side.sigmas) > len(common) for side in models) and sigmas is None:
        told = ", ".join(f"{value:g}" for value in common)
        notices.append(f"only the common noise levels are compared, {told} ({there})")
    if cross:
        return [(a, b) for a in common for b in common], notices
    return [(sigma, sigma) for sigma in common], notices


def thin(sides: Mapping[str, Side], n: int | None, seed: int) -> list[str]:
    """Restrict all sides to the same random subset of ``n`` samples."""
    total = len(next(iter(sides.values())))
    if n is None:
        return []
    if n == total:
        return []
    if n > total:
        return [f"all {total} samples are compared, fewer than the {n} that were asked for"]
    from featlens.seeds import derive

    chosen = np.sort(np.random.default_rng(derive(seed, "subset")).permutation(total)[:n])
    for side in sides.values():
        side.subset = chosen
    return [f"a random subset of {n} of {total} samples is compared (seed {seed})"]


def _count(value: Any, name: str, least: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise UsageError(f"compare: {name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def resolve_request(
    sides: dict[str, Side],
    measure: str | Bound | Sequence[str | Bound],
    sites: str | Sequence[str] | Mapping[str, Any] | None,
    sigmas: Sequence[float] | None,
    *,
    cross_sigmas: bool,
    reference: str | None,
    n: int | None,
    seed: int,
    **settings: Any,
) -> Request:
    """Settle everything that can be wrong before any feature is read."""
    for name in ("permutations", "resamples"):
        settings[name] = _count(settings[name], name, 0)
    n = _count(n, "n", 1)
    for name in ("level", "memory"):
        if isinstance(settings[name], bool) or not isinstance(settings[name], numbers.Real):
            raise UsageError(f"compare: {name} must be a number, got {settings[name]!r}")
    if not 0 < settings["level"] < 1:
        raise UsageError(f"compare: level must be between 0 and 1, got {settings['level']}")
    if settings["plan"] not in ("auto", "features", "tiles"):
        hint = choices_hint(str(settings["plan"]), ["auto", "features", "tiles"])
        raise UsageError(f"compare: unknown plan {settings['plan']!r}: {hint}")
    if not 16e6 <= settings["memory"] < float("inf"):
        raise UsageError(f"compare: memory must be at least 16e6 bytes, got {settings['memory']}")
    pairs = resolve_pairs(list(sides), reference)
    measures = resolve_measures(measure)
    chosen = resolve_sites(sides, sites)
    levels, notices = resolve_levels(sides, sigmas, cross_sigmas)
    notices += thin(sides, n, seed)
    count = len(next(iter(sides.values())))
    for bound in measures:
        if count < bound.least:
            raise UsageError(f"compare: {bound.name} needs at least {bound.least} samples, there are {count}")
    if count < SMALL_N:
        notices.append(few_samples(count))
    return Request(sides, chosen, pairs, levels, measures, count, seed=seed, notices=notices, **settings)
