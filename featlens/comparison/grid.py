"""All sites of A against all sites of B at every common noise level, with a permutation null."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featlens._version import __version__
from featlens.comparison.result import Comparison
from featlens.errors import StoreError, UsageError, choices_hint
from featlens.measures.cka import cka_grid
from featlens.names import match_names
from featlens.seeds import derive
from featlens.store import FeatureStore

__all__ = ["MEASURES", "compare"]

MEASURES = ("cka",)
SMALL_N = 50


class _Side(Protocol):
    """What a comparison needs of either side."""

    sigmas: NDArray[np.float64]

    def select(self, patterns: Sequence[str] | None = None) -> list[str]: ...

    def read(self, site: str, sigma: float) -> NDArray[Any]: ...


class _Arrays:
    """Plain arrays {site: (n, d)} or {site: (sigmas, n, d)} looked at as a store."""

    def __init__(self, name: str, arrays: Mapping[str, NDArray[Any]], sigmas: NDArray[np.float64]) -> None:
        self.name, self.arrays, self.sigmas = name, dict(arrays), sigmas
        if not self.arrays:
            raise UsageError(f"compare: {name!r} has no sites")
        for site, array in self.arrays.items():
            if array.ndim == 3 and len(array) != len(sigmas):
                raise UsageError(
                    f"compare: {name!r}, site {site!r} has {len(array)} noise levels, expected "
                    f"{len(sigmas)}; pass sigmas="
                )
            if array.ndim not in (2, 3):
                raise UsageError(f"compare: {name!r}, site {site!r} must be (n, d), got {array.shape}")

    def select(self, patterns: Sequence[str] | None = None) -> list[str]:
        return list(self.arrays) if patterns is None else match_names(self.arrays, patterns, repr(self.name))

    def read(self, site: str, sigma: float) -> NDArray[Any]:
        array = self.arrays[site]
        return array if array.ndim == 2 else array[int(np.flatnonzero(_same_level(self.sigmas, sigma))[0])]


def _same_level(sigmas: NDArray[np.float64], sigma: float) -> NDArray[np.bool_]:
    return np.isclose(sigmas, sigma, rtol=1e-6, atol=0)


def compare(
    models: Mapping[str, Any],
    measure: str = "cka",
    sites: str | Sequence[str] | None = None,
    sigmas: Sequence[float] | None = None,
    permutations: int = 200,
    seed: int = 0,
    allow_other_samples: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Debiased linear CKA of every site of one model with every site of another, at every common sigma.

    Parameters
    ----------
    models
        Two entries ``{name: source}``; a source is a feature file (path or :class:`FeatureStore`) or a
        mapping ``{site: array}`` with arrays (n, d). The first is A, the second B.
    measure
        ``"cka"``.
    sites
        Glob pattern or patterns; they must match on both sides. All sites if None.
    sigmas
        Noise levels to compare at; by default those that both have.
    permutations
        Random permutations of the samples of B, which give the null level and the p-values; 0 for none.
    seed
        Seed of the permutations.
    allow_other_samples
        Compare although the sample digests differ. Only sensible if you know that rows correspond.
    progress
        Called with (sigmas done, sigmas in all).

    Returns
    -------
    Comparison
        Over (sigma, site_a, site_b).
    """
    if measure not in MEASURES:
        raise UsageError(f"unknown measure {measure!r}: {choices_hint(measure, MEASURES)}")
    if len(models) != 2:
        raise UsageError(
            f"compare: expected two models {{name: features}}, got {len(models)}: {list(models)}"
        )
    if permutations < 0:
        raise UsageError(f"compare: permutations must be 0 or more, got {permutations}")
    names = list(models)
    patterns = [sites] if isinstance(sites, str) else sites
    with contextlib.ExitStack() as stack:
        a, b = (_open(stack, name, models[name], sigmas) for name in names)
        _require_same_samples(a, b, allow_other_samples)
        levels = _common_sigmas(a, b, sigmas)
        sites_a, sites_b = a.select(patterns), b.select(patterns)
        grids = []
        for index, sigma in enumerate(levels):
            left = [a.read(site, sigma) for site in sites_a]
            right = [b.read(site, sigma) for site in sites_b]
            _require_same_rows(names, left, right)
            shuffle = derive(seed, "permutations")
            grids.append(cka_grid(left, right, permutations, shuffle, (sites_a, sites_b)))
            if progress is not None:
                progress(index + 1, len(levels))
        provenance = {
            "a": {"name": names[0], **_provenance(a)},
            "b": {"name": names[1], **_provenance(b)},
            "permutations": permutations,
            "seed": seed,
            "creator": f"featlens {__version__}",
        }
        count = len(left[0])
    values = np.stack([grid.value for grid in grids])
    nulls = np.stack([grid.null for grid in grids])
    return Comparison.from_arrays(
        measure, values, nulls, levels, (sites_a, sites_b), count, provenance, _warnings(count, values)
    )


def _open(stack: contextlib.ExitStack, name: str, source: Any, sigmas: Sequence[float] | None) -> _Side:
    if isinstance(source, Mapping):
        levels = np.asarray(sigmas if sigmas is not None else [0.0], dtype=np.float64)
        return _Arrays(name, {site: _numpy(array) for site, array in source.items()}, levels)
    if isinstance(source, FeatureStore):
        store = source
    elif isinstance(source, (str, os.PathLike)):
        store = stack.enter_context(FeatureStore(source))
    else:
        raise UsageError(
            f"compare: {name!r} is a {type(source).__name__}; expected a feature file or {{site: array}}"
        )
    store.require_complete()
    return store


def _numpy(array: Any) -> NDArray[Any]:
    """Any array as numpy; tensors from wherever they are, without importing torch here."""
    return np.asarray(array.detach().float().cpu().numpy() if hasattr(array, "detach") else array)


def _require_same_samples(a: _Side, b: _Side, allowed: bool) -> None:
    if allowed or not (isinstance(a, FeatureStore) and isinstance(b, FeatureStore)):
        return
    if a.sample_digest != b.sample_digest or not np.array_equal(a.ids, b.ids):
        raise StoreError(
            f"{a.path} and {b.path} hold other samples or other noise ({_samples(a)}; {_samples(b)}): "
            "rows do not correspond; extract both with the same --samples, --split, --n and --seed"
        )
    kinds = [str(store.manifest.get("inputs", "noised")) for store in (a, b)]
    if kinds[0] != kinds[1]:
        raise StoreError(
            f"{a.path} was extracted on {kinds[0]} inputs, {b.path} on {kinds[1]} ones: rows do not "
            "correspond; extract both with the same --inputs"
        )


def _samples(store: FeatureStore) -> str:
    manifest = store.manifest
    return (
        f"{manifest.get('sample_set', '?')}, n {len(store)}, noise seed {manifest.get('noise_seed', '?')}, "
        f"digest {store.sample_digest or '?'}"
    )


def _require_same_rows(names: Sequence[str], left: list[NDArray[Any]], right: list[NDArray[Any]]) -> None:
    counts = {len(x) for x in (*left, *right)}
    if len(counts) != 1:
        raise UsageError(
            f"compare: {names[0]!r} and {names[1]!r} have different numbers of samples: {sorted(counts)}"
        )


def _common_sigmas(a: _Side, b: _Side, sigmas: Sequence[float] | None) -> list[float]:
    wanted = list(a.sigmas) if sigmas is None else [float(sigma) for sigma in sigmas]
    common = [
        float(sigma)
        for sigma in wanted
        if _same_level(a.sigmas, sigma).any() and _same_level(b.sigmas, sigma).any()
    ]
    if not common or (sigmas is not None and len(common) < len(wanted)):
        there = [", ".join(f"{value:g}" for value in side.sigmas) for side in (a, b)]
        raise UsageError(
            f"compare: A has the noise levels {there[0]}, B has {there[1]}; "
            f"{'none is common' if not common else 'not all that were asked for are in both'}"
        )
    return common


def _provenance(side: _Side) -> dict[str, Any]:
    if isinstance(side, FeatureStore):
        return {"file": str(side.path), **side.manifest}
    return {"file": None}


def _warnings(count: int, values: NDArray[np.float64]) -> list[str]:
    out = []
    if count < SMALL_N:
        out.append(f"only {count} samples: debiased values scatter widely; use at least {SMALL_N}")
    if np.isnan(values).any():
        out.append(
            f"{int(np.isnan(values).sum())} cells are undefined (NaN): a site is constant over the samples"
        )
    return out
