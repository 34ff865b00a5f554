"""Either side of a comparison: a feature file or plain arrays, read block by block under one name."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import StoreError, UsageError
from featlens.names import match_names
from featlens.store import FeatureStore

__all__ = ["Side", "noise_levels", "open_sides", "require_same_samples", "same_level"]

BLOCK_BYTES = 1 << 22


def same_level(sigmas: NDArray[np.float64], sigma: float) -> NDArray[np.bool_]:
    """Where a noise level is, up to rounding in a text."""
    return np.isclose(sigmas, sigma, rtol=1e-6, atol=0)


class Side:
    """Features of one model under its name.

    Attributes
    ----------
    name
        Name of the model.
    sigmas
        (S,) noise levels.
    widths
        Number of features by site, in order of execution.
    n
        Number of samples.
    store
        The feature file, or None for plain arrays.
    """

    name: str
    sigmas: NDArray[np.float64]
    widths: dict[str, int]
    n: int
    store: FeatureStore | None = None
    subset: NDArray[np.int64] | None = None

    def select(self, patterns: Sequence[str] | None) -> list[str]:
        """Names of the sites that match any of the glob patterns; all if None."""
        place = repr(self.name) if self.store is None else str(self.store.path)
        return list(self.widths) if patterns is None else match_names(self.widths, patterns, place)

    def read(self, site: str, sigma: float, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows start..stop of the samples compared, (rows, D) in float32 or float64."""
        stop = len(self) if stop is None else stop
        if self.subset is None:
            return self._rows(site, sigma, start, stop)
        chosen = self.subset[start:stop]
        if not len(chosen):
            return self._rows(site, sigma, 0, 0)
        parts = []
        step = max(1, BLOCK_BYTES // (4 * self.widths[site]))
        for low in range(int(chosen[0]), int(chosen[-1]) + 1, step):
            inside = chosen[(chosen >= low) & (chosen < low + step)]
            if len(inside):
                parts.append(self._rows(site, sigma, low, int(inside[-1]) + 1)[inside - low])
        return np.concatenate(parts)

    def __len__(self) -> int:
        return self.n if self.subset is None else len(self.subset)

    def _rows(self, site: str, sigma: float, start: int, stop: int) -> NDArray[Any]:
        raise NotImplementedError

    def provenance(self) -> dict[str, Any]:
        """Where the features come from."""
        return {"file": None}


class _File(Side):
    def __init__(self, name: str, store: FeatureStore) -> None:
        store.require_complete()
        self.name, self.store, self.sigmas, self.n = name, store, store.sigmas, len(store)
        self.widths = {site: info.width for site, info in store.sites.items()}
        self._open = store

    def _rows(self, site: str, sigma: float, start: int, stop: int) -> NDArray[Any]:
        return self._open.read(site, sigma, slice(start, stop))

    def provenance(self) -> dict[str, Any]:
        return {"file": str(self._open.path), **self._open.manifest}


class _Arrays(Side):
    def __init__(self, name: str, arrays: Mapping[str, Any], sigmas: NDArray[np.float64]) -> None:
        self.name, self.sigmas = name, sigmas
        self._arrays = {str(site): _numpy(array) for site, array in arrays.items()}
        if not self._arrays:
            raise UsageError(f"compare: {name!r} has no sites")
        for site, array in self._arrays.items():
            if array.ndim == 3 and len(array) != len(sigmas):
                raise UsageError(
                    f"compare: {name!r}, site {site!r} has {len(array)} noise levels, expected "
                    f"{len(sigmas)}; pass sigmas="
                )
            if array.ndim not in (2, 3) or array.shape[-1] == 0:
                raise UsageError(f"compare: {name!r}, site {site!r} must be (n, d), got {array.shape}")
        self.widths = {site: array.shape[-1] for site, array in self._arrays.items()}
        counts = {site: array.shape[-2] for site, array in self._arrays.items()}
        if len(set(counts.values())) != 1:
            raise UsageError(f"compare: sites of {name!r} have different numbers of samples: {counts}")
        self.n = next(iter(counts.values()))

    def _rows(self, site: str, sigma: float, start: int, stop: int) -> NDArray[Any]:
        array = self._arrays[site]
        if array.ndim == 3:
            array = array[int(np.flatnonzero(same_level(self.sigmas, sigma))[0])]
        return array[start:stop]


def _numpy(array: Any) -> NDArray[Any]:
    """Any array as numpy in float32 or float64; tensors from wherever they are, without importing torch."""
    if isinstance(array, np.ma.MaskedArray):
        raise UsageError("compare: masked arrays have no defined rows; fill or leave out what is masked")
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        if array.is_complex():
            raise UsageError(f"compare: expected real numbers, got a tensor of {array.dtype}")
        array = array if str(array.dtype) == "torch.float64" else array.float()
    out = np.asarray(array)
    if out.dtype.kind not in "fiub":
        raise UsageError(f"compare: expected real numbers, got an array of {out.dtype}")
    return out if out.dtype in (np.float32, np.float64) else out.astype(np.float64)


def noise_levels(sigmas: Any) -> list[float] | None:
    """Noise levels as numbers, each once; a single number is taken as a list of it."""
    if sigmas is None:
        return None
    wrong = UsageError(f"compare: sigmas must be numbers such as [0.5, 2.5], got {sigmas!r}")
    if isinstance(sigmas, str):
        raise wrong
    try:
        found = [float(sigma) for sigma in np.atleast_1d(np.asarray(sigmas)).tolist()]
    except (TypeError, ValueError):
        raise wrong from None
    if not np.isfinite(found).all():
        raise wrong
    return list(dict.fromkeys(found))


def open_sides(
    stack: contextlib.ExitStack, models: Mapping[str, Any], sigmas: Sequence[float] | None
) -> dict[str, Side]:
    """Sides by name; files that are opened here are closed with the stack."""
    if not isinstance(models, Mapping):
        raise UsageError(
            f"compare: expected two or more models {{name: features}}, got a {type(models).__name__}; "
            "give each a name"
        )
    out: dict[str, Side] = {}
    for name, source in models.items():
        if isinstance(source, Mapping):
            levels = np.asarray(sigmas if sigmas is not None else [0.0], dtype=np.float64)
            out[name] = _Arrays(name, source, levels)
        elif isinstance(source, FeatureStore):
            out[name] = _File(name, source)
        elif isinstance(source, (str, os.PathLike)):
            out[name] = _File(name, stack.enter_context(FeatureStore(source)))
        else:
            raise UsageError(
                f"compare: {name!r} is a {type(source).__name__}; expected a feature file or {{site: array}}"
            )
    return out


def require_same_samples(sides: Sequence[Side], allowed: bool) -> None:
    """Refuse sides whose rows do not correspond."""
    files = [side.store for side in sides if side.store is not None]
    for a, b in () if allowed else itertools.pairwise(files):
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
    first = sides[0]
    for side in sides[1:]:
        if len(side) != len(first):
            raise UsageError(
                f"compare: {first.name!r} has {len(first)} samples, {side.name!r} {len(side)}; row i of "
                "both must be the features of the same sample"
            )


def _samples(store: FeatureStore) -> str:
    manifest = store.manifest
    return (
        f"{manifest.get('sample_set', '?')}, n {len(store)}, noise seed {manifest.get('noise_seed', '?')}, "
        f"digest {store.sample_digest or '?'}"
    )
