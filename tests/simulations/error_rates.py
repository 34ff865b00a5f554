"""How often p, p_family and q of ``featlens.compare`` call unrelated features related.

    python -m tests.simulations.error_rates [--replications 200] [--quick]

Every data set is a noise level of one comparison of two models with six sites each. The sites of a model
share most of what they hold, as those of a network do. Told are, where nothing is related: the share of p
at or below a level, which should be that level; the share of data sets with any p_family at or below 0.05,
which should be 0.05; and the same for ordinary random permutations of the same data. Where some cells are
related: the mean share of null cells among those with q at or below 0.05, which should be at most 0.05 times
the share of null cells, and how many of the related ones are found.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from featlens import compare
from featlens.comparison import plan
from featlens.comparison.statistics import Tally, false_discovery_rates
from featlens.measures import resolve

Floats = NDArray[np.float64]
MEASURES = ("cka", "rsa", "mutual_knn", "procrustes")
SITES, WIDTH = 6, 8
LEVELS = (0.01, 0.05, 0.1, 0.5)
CHUNK = 50


def draw(rng: np.random.Generator, sets: int, n: int, related: int = 0, sites: int = SITES) -> dict[str, Any]:
    """Models A and B, with sites (sets, n, WIDTH); the first ``related`` sites of both share a signal."""
    common = rng.normal(size=(sets, n, WIDTH))
    models = {}
    for name in "ab":
        own = rng.normal(size=(sets, n, WIDTH))
        parts = (own @ rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5 for _ in range(sites))
        models[name] = {
            f"{name}{site}": part + 0.5 * rng.normal(size=part.shape) + (site < related) * 0.8 * common
            for site, part in enumerate(parts)
        }
    return models


def shifted(
    measure: str, n: int, count: int, permutations: int, seed: int = 1, **options: Any
) -> dict[str, Floats]:
    """Columns p, p_family, ... (sets, A, B) that ``compare`` gives for many data sets."""
    parts = []
    for start in range(0, count, CHUNK):
        sets = min(CHUNK, count - start)
        models = draw(np.random.default_rng([seed, n, start]), sets, n, **options)
        levels = [float(level + 1) for level in range(sets)]
        found = compare(
            models, measure, sigmas=levels, permutations=permutations, intervals=False, seed=start
        ).panel()
        parts.append(found.arrays)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def ordinary(measure: str, n: int, count: int, permutations: int, seed: int = 1) -> dict[str, Floats]:
    """The same for the same data sets from ordinary random permutations, each combined by itself."""
    method = resolve(measure).method
    direction = resolve(measure).measure.direction
    columns: list[dict[str, Floats]] = []
    for start in range(0, count, CHUNK):
        sets = min(CHUNK, count - start)
        models = draw(np.random.default_rng([seed, n, start]), sets, n)
        rng = np.random.default_rng([seed, 7, start])
        for index in range(sets):
            a, b = ([method.prepare(x[index]) for x in model.values()] for model in models.values())
            tally = Tally(np.array([[method.combine(x, y) for y in b] for x in a]), direction)
            for _ in range(permutations):
                order = rng.permutation(n)
                moved = [method.permute(y, order) for y in b]
                tally.add(np.array([[[method.combine(x, y) for y in moved] for x in a]]))
            columns.append(tally.columns())
    return {name: np.stack([column[name] for column in columns]) for name in columns[0]}


def rates(columns: dict[str, Floats]) -> tuple[list[float], float]:
    """Shares of p at or below every level, over all cells, and of data sets with a p_family up to 0.05."""
    p = columns["p"]
    family = columns["p_family"].min(axis=(1, 2))
    return [float(np.mean(p <= level + 1e-9)) for level in LEVELS], float(np.mean(family <= 0.05 + 1e-9))


def discoveries(
    measure: str, n: int, count: int, related: int, permutations: int = 999
) -> tuple[float, float]:
    """Mean share of null cells among those with q up to 0.05, and the share of related cells found."""
    p = shifted(measure, n, count, permutations, seed=2, related=related)["p"]
    true = np.zeros(p.shape[1:], dtype=bool)
    true[:related, :related] = True
    found = np.stack([false_discovery_rates(cells) <= 0.05 for cells in p])
    false = (found & ~true).sum(axis=(1, 2)) / np.maximum(found.sum(axis=(1, 2)), 1)
    return float(false.mean()), float(found[:, true].mean())


def on_some_rows(n: int, rows: int, count: int) -> dict[str, dict[str, Floats]]:
    """Null levels of debiased CKA from all samples, and from ``rows`` of them, scaled."""
    out = {"all": shifted("cka", n, count, 999, seed=3, sites=2)}
    with mock.patch.object(plan, "NULL_ROWS", rows):
        out["some"] = shifted("cka", n, count, 999, seed=3, sites=2)
    return out


def tell(name: str, columns: dict[str, Floats]) -> str:
    """A line of the table."""
    shares, family = rates(columns)
    doubt = math.sqrt(max(family * (1 - family), 1e-4) / len(columns["p"]))
    told = "".join(f"{share:>9.3f}" for share in shares)
    return f"{name:<44}{told}{family:>10.3f} +- {doubt:.3f}"


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--replications", type=int, default=200, help="data sets")
    parser.add_argument("--quick", action="store_true", help="a fifth of them")
    args = parser.parse_args()
    count = args.replications // 5 if args.quick else args.replications
    begin = time.process_time()
    print(
        f"{'unrelated features, n 40, 6 x 6 cells':<44}"
        + "".join(f"  p<={level:<5}" for level in LEVELS)
        + "p_family<=0.05"
    )
    for measure in MEASURES:
        how = "random permutations" if measure == "procrustes" else "cyclic shifts"
        print(tell(f"{measure}, {how} of compare", shifted(measure, 40, count, 199)), flush=True)
        if measure != "procrustes":
            some = count // 4
            print(
                tell(f"{measure}, random permutations, {some} sets", ordinary(measure, 40, some, 199)),
                flush=True,
            )
    for n, permutations in ((40, 39), (20, 190)):
        columns = shifted("cka", n, 5 * count, permutations, seed=4, sites=1)
        orders = f"{-(-permutations // (n - 1))} x {n - 1}"
        print(tell(f"cka, n {n}, {orders} shifts, one cell, {5 * count} sets", columns), flush=True)
    found = on_some_rows(1000, 256, count // 2)
    for name, columns in found.items():
        print(tell(f"cka, n 1000, null level from {name} samples", columns), flush=True)
    ratio = found["some"]["null_high"] / found["all"]["null_high"]
    apart = np.abs(found["some"]["p"] - found["all"]["p"])
    print(
        f"null_high from 256 of 1000 samples / from all: {ratio.mean():.2f} (sd {ratio.std():.2f}); "
        f"p differs by {apart.mean():.3f} on average, at most {apart.max():.3f}"
    )
    print("9 of 36 cells related, q <= 0.05: false among the found (at most 0.0375), found of the related")
    for measure in MEASURES[:3]:
        false, power = discoveries(measure, 60, count, 3)
        print(f"{measure:<44}{false:>9.3f}{power:>9.3f}", flush=True)
    print(f"{time.process_time() - begin:.0f} s of processor time")


if __name__ == "__main__":
    main()
