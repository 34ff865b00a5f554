"""Brute force for the comparison engine: kernel matrices, textbook formulas, samples left out one by one."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist, squareform

from featlens.comparison import plan
from featlens.comparison.device import open_device
from featlens.comparison.forms import Form, Kernel
from featlens.comparison.request import Handle
from featlens.comparison.rows import Rows
from featlens.comparison.side import Side, open_sides

KINDS = ("linear", "rbf", "distance")
FORMULAS = ("debiased", "biased", "correlation")
FORMS = [
    Form(Kernel(kind), formula)
    for kind in KINDS
    for formula in FORMULAS
    # No measure correlates inner products: they would depend on the mean, which changes without a sample.
    if (kind, formula) != ("linear", "correlation")
]
ROOT = Form(Kernel("distance"), "biased", root=True)
"""Classical distance correlation."""
NAMED = [
    ("cka", FORMS[0]),
    ("cka(estimator=biased)", FORMS[1]),
    ("distance_correlation", FORMS[5]),
    ("distance_correlation(estimator=biased)", ROOT),
    ("rsa(distance=euclidean,comparison=pearson)", FORMS[7]),
]
"""Measures and the forms that they are."""
WIDTH = 5.0
"""Bandwidth of all sites where it is fixed."""


def features(
    n: int, widths: Sequence[Sequence[int]] = ((5, 17, 40), (6, 30)), seed: int = 0, mean: float = 3.0
) -> list[dict[str, Any]]:
    """Sites of several models that share a signal, float64, off the origin."""
    rng = np.random.default_rng([seed, n])
    signal = rng.normal(size=(n, 4))
    models = []
    for number, sizes in enumerate(widths):
        sites = {}
        for index, width in enumerate(sizes):
            noise = rng.normal(size=(n, width))
            sites[f"{'abcdef'[number]}{index}"] = signal @ rng.normal(size=(4, width)) + noise + mean
        models.append(sites)
    return models


def unrelated(n: int, widths: Sequence[Sequence[int]], seed: int) -> dict[str, dict[str, Any]]:
    """Models that share nothing."""
    rng = np.random.default_rng([seed, n])
    return {
        "abcdef"[number]: {f"s{index}": rng.normal(size=(n, width)) for index, width in enumerate(sizes)}
        for number, sizes in enumerate(widths)
    }


class Made(Side):
    """Features that are made when they are read, row block by row block: far more than would fit."""

    def __init__(
        self, name: str, widths: Mapping[str, int], n: int, make: Callable[[str, int, int], Any]
    ) -> None:
        self.name, self.widths, self.n, self.sigmas = name, dict(widths), n, np.array([0.0])
        self.make, self.largest = make, 0

    def _rows(self, site: str, sigma: float, start: int, stop: int) -> Any:
        self.largest = max(self.largest, stop - start)
        return self.make(site, start, stop)


def handles(*models: Mapping[str, Any]) -> list[Handle]:
    """Sites of all models, in order."""
    sides = open_sides(contextlib.ExitStack(), {f"m{i}": model for i, model in enumerate(models)}, None)
    return [Handle(side, site, 0.0) for side in sides.values() for site in side.widths]


def rows_of(*models: Mapping[str, Any], size: int = 16, dtype: str = "float64", **told: Any) -> Rows:
    """Blocks of the features of all models."""
    sites = handles(*models)
    device = open_device(told.pop("device", "cpu"))
    return Rows(sites, len(sites[0].side), size, dtype, device, told.pop("memory", 1e9), **told)


def groups(*models: Mapping[str, Any]) -> list[slice]:
    """Where the sites of each model are among the handles of all."""
    ends = np.cumsum([0, *map(len, models)])
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]


def kernel(x: Any, kind: str, width: float = WIDTH) -> Any:
    """Kernel matrix (n, n), from distances taken one by one."""
    x = np.asarray(x, dtype=np.float64)
    if kind == "linear":
        x = x - x.mean(axis=0)
        return x @ x.T
    apart = squareform(pdist(x))
    return apart if kind == "distance" else np.exp(-(apart**2) / (2 * width**2))


def hsic(k: Any, l: Any, formula: str) -> float:  # noqa: E741
    """Textbook: Song et al. (2012), Gretton et al. (2005), or a covariance of entries off the diagonal."""
    n = len(k)
    if formula == "biased":
        centre = np.eye(n) - 1 / n
        return float(np.trace(k @ centre @ l @ centre))
    if formula == "correlation":
        off = ~np.eye(n, dtype=bool)
        return float(np.mean((k[off] - k[off].mean()) * (l[off] - l[off].mean())))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    one = np.ones(n)
    total = np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return float(total - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))


def cosine(k: Any, l: Any, formula: str) -> float:  # noqa: E741
    """HSIC of both divided by the root of the self terms."""
    return hsic(k, l, formula) / (hsic(k, k, formula) * hsic(l, l, formula)) ** 0.5


def brute(a: Mapping[str, Any], b: Mapping[str, Any], form: Form, width: float = WIDTH) -> Any:
    """(A, B) values."""
    left, right = ([kernel(x, form.kernel.kind, width) for x in side.values()] for side in (a, b))
    found = np.array([[cosine(k, m, form.formula) for m in right] for k in left])
    return np.sqrt(np.maximum(found, 0)) if form.root else found


def left_out(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    form: Form,
    samples: Sequence[int] | None = None,
    width: float = WIDTH,
) -> Any:
    """(samples, A, B) values without each sample; means are those of the samples that are left."""
    n = len(next(iter(a.values())))
    out = []
    for sample in range(n) if samples is None else samples:
        some = ({site: np.delete(x, sample, axis=0) for site, x in side.items()} for side in (a, b))
        out.append(brute(*some, form, width))
    return np.array(out)


def jackknife(values: Any, n: int) -> Any:
    """Standard errors from values with some of n samples left out in turn (Efron and Stein 1981)."""
    return np.sqrt((n - 1) * np.mean((values - values.mean(axis=0)) ** 2, axis=0))


def precise(monkeypatch: Any, kind: str) -> None:
    """Make the planner take float32 or float64, however small the comparison is."""
    monkeypatch.setattr(plan, "EXACT", {"float32": 0.0, "float64": np.inf}[kind])


def values(result: Any, **which: Any) -> Any:
    """(levels, A, B) values of the one panel."""
    return result.panel(**which).arrays["value"]


def errors_of(result: Any, **which: Any) -> Any:
    """(levels, A, B) widths of the intervals where no bound cuts them."""
    arrays = result.panel(**which).arrays
    return arrays["ci_high"] - arrays["ci_low"]
