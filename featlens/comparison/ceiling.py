"""The noise ceiling: how similar a site is to itself under another draw of the noise."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.engine import carry_out
from featlens.comparison.plan import make_plan
from featlens.comparison.request import Request
from featlens.comparison.side import Side, open_sides, same_level
from featlens.errors import StoreError, UsageError, choices_hint

__all__ = ["ceilings"]

Floats = NDArray[np.float64]
OTHER = "another draw"


def ceilings(
    stack: contextlib.ExitStack, request: Request, draws: Mapping[str, Any], allow_other_samples: bool
) -> dict[tuple[int, int], Floats]:
    """By (measure, pair): (levels, A, B) largest similarity to expect where only the noise differs.

    For sites a and b it is the root of the product of both reliabilities, the similarity of each site with
    itself under another draw of the noise (Spearman 1904, American Journal of Psychology 15, 72-101); a model
    without another draw counts as 1. NaN for distances and without draws.
    """
    reliability = {
        name: _reliability(stack, request, name, source, allow_other_samples)
        for name, source in _known(request, draws).items()
    }
    out = {}
    for index, bound in enumerate(request.measures):
        for number, (a, b) in enumerate(request.pairs):
            shape = (len(request.levels), len(request.sites[a]), len(request.sites[b]))
            grid = np.full(shape, np.nan)
            if bound.measure.direction == "similarity" and (a in reliability or b in reliability):
                for at, (low, high) in enumerate(request.levels):
                    left = reliability[a][index, low] if a in reliability else np.ones(shape[1])
                    right = reliability[b][index, high] if b in reliability else np.ones(shape[2])
                    product = left[:, None] * right[None, :]
                    grid[at] = np.where(product > 0, np.sqrt(np.maximum(product, 0)), np.nan)
            out[index, number] = grid
    return out


def _known(request: Request, draws: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in draws:
        if name not in request.sides:
            raise UsageError(
                f"compare: draws are given for {name!r}: {choices_hint(name, list(request.sides))}"
            )
    return draws


def _reliability(
    stack: contextlib.ExitStack, request: Request, name: str, source: Any, allowed: bool
) -> dict[tuple[int, float], Floats]:
    """By (measure, sigma): (sites,) similarity of each site with itself under the other draw."""
    side = request.sides[name]
    # In the order of the request, which is that of arrays of several noise levels.
    sigmas = list(dict.fromkeys(_uses(request, name)))
    other = open_sides(stack, {OTHER: source}, sigmas)[OTHER]
    other.subset = side.subset
    _require_other_draw(side, other, allowed)
    for site in request.sites[name]:
        if other.widths.get(site) != side.widths[site]:
            raise UsageError(f"compare: the other draw of {name!r} has no site {site!r} of the same width")
    for sigma in sigmas:
        if not same_level(other.sigmas, sigma).any():
            raise UsageError(f"compare: the other draw of {name!r} has no sigma {sigma:g}")
    alone = replace(
        request,
        sides={name: side, OTHER: other},
        sites={name: request.sites[name], OTHER: request.sites[name]},
        pairs=[(name, OTHER)],
        levels=[(sigma, sigma) for sigma in sigmas],
        permutations=0,
        intervals=False,
    )
    grids = carry_out(alone, make_plan(alone), lambda share: None)
    return {
        (index, sigma): grids[index, 0, at].value.diagonal()
        for index in range(len(request.measures))
        for at, sigma in enumerate(sigmas)
    }


def _uses(request: Request, name: str) -> list[float]:
    """Noise levels at which a model is looked at."""
    return [
        sigma
        for pair in request.pairs
        for level in request.levels
        for model, sigma in zip(pair, level, strict=True)
        if model == name
    ]


def _require_other_draw(side: Side, other: Side, allowed: bool) -> None:
    a, b = side.store, other.store
    if side.n != other.n:
        raise UsageError(
            f"compare: {side.name!r} has {side.n} samples, its other draw {other.n}; extract both with "
            "the same --samples and --n"
        )
    if a is None or b is None or allowed:
        return
    if not np.array_equal(a.ids, b.ids) or a.manifest.get("sample_set") != b.manifest.get("sample_set"):
        raise StoreError(
            f"{b.path} holds other samples than {a.path}; another draw of the noise needs the same images: "
            "extract it with the same --samples and another --seed"
        )
    if a.sample_digest and a.sample_digest == b.sample_digest:
        raise StoreError(
            f"{b.path} holds the same noise as {a.path}; another draw needs another --seed of extract"
        )
    if a.manifest.get("weights_digest") != b.manifest.get("weights_digest"):
        raise StoreError(f"{b.path} comes from other weights than {a.path}; extract it from the same model")
