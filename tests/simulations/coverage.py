"""How often the 95 % intervals of ``featlens.compare`` hold what they are about.

    python -m tests.simulations.coverage [--replications 400] [--measures cka rsa ...] [--n 100 ...] [--quick]

A data set is drawn, compared, and thrown away, many times; each is a noise level of one comparison. The
target is the expected value of the measure at this n, from further data sets. For debiased linear CKA the
value of the whole population is known in closed form, and is the target. Measures without a jackknife are
drawn a quarter as often. At the end: what a bootstrap, which draws samples with replacement, does to a
neighbour measure.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from featlens import compare
from featlens.comparison.plan import ANCHORS

Floats = NDArray[np.float64]
LEVEL = 0.95
SIGNAL, WIDTH = 12, 20
"""Features of x and of y."""
NOISE = {"low": 3.0, "middle": 0.7, "high": 0.15}
"""Data models that share x: y is a linear map of x plus noise of this standard deviation."""
DATA = (*NOISE, "heavy", "none")
"""Heavy tails: x follows t with 6 degrees of freedom. None: y is unrelated to x."""
TAILS = 6
CHUNK = 50
"""Data sets of one comparison."""
SPLITS = 50


@dataclass(frozen=True)
class Run:
    """One measure at one number of samples."""

    measure: str
    n: int
    jackknife: bool = True
    plan: str = "auto"
    data: Sequence[str] = DATA

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the standard errors."""
        return min(self.n, ANCHORS if self.plan == "features" else self.n) - 1 if self.jackknife else SPLITS


MAIN = ("low", "middle", "high")
EUCLIDEAN = "rsa(distance=euclidean, comparison=pearson)"
HALVES = (
    "rsa",
    "mutual_knn",
    "cknna",
    "procrustes",
    "angular_shape",
    "bures",
    "permutation_matching",
    "svcca",
    "mean_squared_cca",
    "subspace_overlap",
    "linear_predictivity",
)
RUNS = (
    *(Run("cka", n, plan="tiles") for n in (50, 100, 300, 1000)),
    Run("cka", 5000, plan="features"),
    *(Run("cka(kernel=rbf)", n) for n in (50, 100, 300)),
    *(Run("cka(estimator=biased)", n, plan="tiles") for n in (50, 100, 300)),
    *(Run("distance_correlation", n) for n in (50, 100, 300)),
    *(Run(EUCLIDEAN, n) for n in (50, 100, 300)),
    *(Run(measure, n, False, data=MAIN) for n in (100, 300) for measure in HALVES),
)


def parameters() -> tuple[Floats, Floats]:
    """Standard deviations of the features of x, and the map from x to y, the same in every data set."""
    rng = np.random.default_rng(5)
    return 1 / np.sqrt(np.arange(1, SIGNAL + 1)), rng.normal(size=(SIGNAL, WIDTH)) / SIGNAL**0.5


def draw(rng: np.random.Generator, shape: tuple[int, int], data: Sequence[str]) -> dict[str, Any]:
    """Models of one comparison, for sets x samples: A with x and B with every y, or both with heavy tails."""
    scales, weights = parameters()
    x = rng.normal(size=(*shape, SIGNAL))
    if "heavy" in data:
        x /= np.sqrt(rng.chisquare(TAILS, size=(*shape, 1)) / TAILS)
    x *= scales
    y = {
        name: x @ weights * (name != "none") + NOISE.get(name, 0.5) * rng.normal(size=(*shape, WIDTH))
        for name in data
    }
    return {"a": {"x": x}, "b": y}


def population(name: str) -> float:
    """Linear CKA of the population: |S_xy|^2 / (|S_xx| |S_yy|) of the covariances."""
    scales, weights = parameters()
    own = np.diag(scales**2) * (TAILS / (TAILS - 2) if name == "heavy" else 1.0)
    if name == "none":
        return 0.0
    cross = own @ weights
    other = weights.T @ cross + NOISE.get(name, 0.5) ** 2 * np.eye(WIDTH)
    return float((cross**2).sum() / math.sqrt((own**2).sum() * (other**2).sum()))


def sample(run: Run, name: Sequence[str], count: int, seed: int, intervals: bool = True) -> Floats:
    """(value, low, high) x data x sets."""
    parts = []
    for start in range(0, count, CHUNK):
        sets = min(CHUNK, count - start)
        models = draw(np.random.default_rng([seed, run.n, start]), (sets, run.n), name)
        sigmas = [float(level + 1) for level in range(sets)]
        found = compare(
            models, run.measure, sigmas=sigmas, permutations=0, intervals=intervals, plan=run.plan, seed=start
        ).panel()
        parts.append(np.stack([found.arrays[key][:, 0].T for key in ("value", "ci_low", "ci_high")]))
    return np.concatenate(parts, axis=2)


@dataclass(frozen=True)
class Line:
    """Result of one measure, number of samples and data model."""

    run: Run
    data: str
    target: float
    mean: float
    spread: float
    error: float
    covered: float
    count: int

    @property
    def doubt(self) -> float:
        """Monte Carlo standard error of the coverage."""
        share = min(max(self.covered, 0.5 / self.count), 1 - 0.5 / self.count)
        return math.sqrt(share * (1 - share) / self.count)


def cover(run: Run, count: int, others: int) -> list[Line]:
    """Coverage under every data model of a run, from ``count`` sets; targets from ``others`` more."""
    lines = []
    for names in (tuple(name for name in run.data if name != "heavy"), ("heavy",)):
        if not set(names) <= set(run.data):
            continue
        value, low, high = sample(run, names, count, 1)
        exact = run.measure == "cka"
        further = None if exact else sample(run, names, others, 2, intervals=False)[0]
        for at, name in enumerate(names):
            target = population(name) if further is None else float(np.mean(further[at]))
            # An end that was cut at the bound of the measure says nothing of the standard error.
            half = np.maximum(value[at] - low[at], high[at] - value[at])
            error = half / float(stdtrit(run.degrees, 0.5 + LEVEL / 2))
            spread = np.concatenate([value[at], further[at]]) if further is not None else value[at]
            lines.append(
                Line(
                    run,
                    name,
                    target,
                    float(value[at].mean()),
                    float(spread.std(ddof=1)),
                    float(np.sqrt((error**2).mean())),
                    float(np.mean((low[at] <= target) & (target <= high[at]))),
                    count,
                )
            )
    return lines


def bootstrap(count: int, n: int = 100, resamples: int = 100) -> dict[str, float]:
    """What drawing with replacement does to mutual nearest neighbours; no part of featlens.

    Means of the value and of its bootstrap values, and the coverage of the percentile interval.
    """
    from featlens.measures import mutual_knn

    run = Run("mutual_knn", n, False)
    target = float(np.mean(sample(run, ("middle",), 5 * resamples, 2, intervals=False)[0]))
    rng = np.random.default_rng(3)
    values, means, covered = [], [], 0
    for _ in range(count):
        models = draw(rng, (1, n), ("middle",))
        x, y = models["a"]["x"][0], models["b"]["middle"][0]
        chosen = [rng.integers(n, size=n) for _ in range(resamples)]
        found = np.array([mutual_knn(x[rows], y[rows]) for rows in chosen])
        low, high = np.quantile(found, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
        values.append(mutual_knn(x, y))
        means.append(found.mean())
        covered += bool(low <= target <= high)
    return {"value": float(np.mean(values)), "bootstrap": float(np.mean(means)), "covered": covered / count}


HEAD = f"{'measure':<44}{'data':<8}{'n':>5}{'target':>8}{'mean':>8}{'sd':>9}{'se':>9}{'se/sd':>7}  covered"


def tell(line: Line) -> str:
    """A line of the table."""
    return (
        f"{line.run.measure:<44}{line.data:<8}{line.run.n:>5}{line.target:>8.3f}{line.mean:>8.3f}"
        f"{line.spread:>9.4f}{line.error:>9.4f}{line.error / line.spread:>7.2f}"
        f"  {100 * line.covered:5.1f} % +- {100 * line.doubt:.1f}"
    )


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--replications", type=int, default=400, help="data sets; a quarter without jackknife"
    )
    parser.add_argument("--measures", nargs="+", help="stems of measures, such as cka rsa; all by default")
    parser.add_argument(
        "--n", nargs="+", type=int, help="numbers of samples; without jackknife 100 by default"
    )
    parser.add_argument("--quick", action="store_true", help="a fifth of the replications")
    args = parser.parse_args()
    count = args.replications // 5 if args.quick else args.replications
    begin = time.process_time()
    print(HEAD)
    for run in RUNS:
        usual = run.jackknife or run.n == 100
        if (run.n not in args.n) if args.n else not usual:
            continue
        if args.measures and run.measure.partition("(")[0] not in args.measures:
            continue
        for line in cover(run, count if run.jackknife else max(count // 4, 2), 5 * count // 2):
            print(tell(line), flush=True)
    if not args.measures or "mutual_knn" in args.measures:
        told = bootstrap(max(count // 10, 2))
        print(
            f"mutual_knn, n 100, middle, drawn with replacement: mean value {told['value']:.3f}, mean of the "
            f"bootstrap {told['bootstrap']:.3f}, percentile interval covers {100 * told['covered']:.0f} %"
        )
    print(f"{time.process_time() - begin:.0f} s of processor time")


if __name__ == "__main__":
    main()
