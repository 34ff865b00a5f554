"""Debiased linear CKA of all pairs of sites: ours beside pure matrix products and the formula pair by pair.

    python -m tests.benchmarks.bench_compare [--n 5000] [--sites 12] [--widths 256 512 768 1024] [--rounds 3]

Pure products: the cheapest of three plans that make nothing but the products that are needed, into memory
that is there already: upper-triangular tiles of Gram matrices, whole Gram matrices, products of features.
Ours: ``featlens.compare`` from arrays to the labelled result, without intervals and permutations, then with
each of them. Pair by pair: |X'Y|^2, |X'X|^2 and |Y'Y|^2 of centred float32 features for every pair, debiased,
with torch as in the packages that do so, and with numpy, which makes only half of X'X. Features are float32
noise with a shared part. Times are CPU seconds of this process, the least of the rounds, which go in turn.
The pairs of the last way are sampled where there are many (``--pairs``), and its time scaled.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from featlens import compare

Features = dict[str, np.ndarray]


def features(n: int, sites: int, widths: list[int], seed: int) -> Features:
    """Sites of the given widths in turn, which share a part."""
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(0).normal(size=(n, 32)).astype(np.float32)
    out = {}
    for index in range(sites):
        width = widths[index % len(widths)]
        mixed = shared @ rng.normal(size=(32, width)).astype(np.float32)
        out[f"site{index}"] = mixed + rng.normal(size=(n, width)).astype(np.float32) * 3 + 5
    return out


def tiles(a: Features, b: Features, size: int) -> None:
    """Upper-triangular tiles of the Gram matrices of all sites."""
    out = np.empty((size, size), dtype=np.float32)
    for x in (*a.values(), *b.values()):
        for i in range(0, len(x), size):
            for j in range(i, len(x), size):
                left, right = x[i : i + size], x[j : j + size]
                np.matmul(left, right.T, out=out[: len(left), : len(right)])


def whole(a: Features, b: Features) -> None:
    """Gram matrices; numpy makes half of a symmetric product."""
    n = len(next(iter(a.values())))
    out = np.empty((n, n), dtype=np.float32)
    for x in (*a.values(), *b.values()):
        np.matmul(x, x.T, out=out)


def products(a: Features, b: Features) -> None:
    """Products of features of all pairs, and of every site with itself."""
    left, right = (np.concatenate(list(side.values()), axis=1) for side in (a, b))
    left.T @ right
    for x in (*a.values(), *b.values()):
        x.T @ x


def pairwise(a: Features, b: Features, pairs: list[tuple[str, str]], kind: str) -> list[float]:
    """The formula pair by pair."""
    out = []
    for i, j in pairs:
        x, y = a[i], b[j]
        x, y = x - x.mean(0), y - y.mean(0)
        n, k, m = len(x), (x * x).sum(1, dtype=np.float64), (y * y).sum(1, dtype=np.float64)
        if kind == "torch":
            import torch

            x, y = torch.from_numpy(x), torch.from_numpy(y)

        def hsic(p: Any, q: Any, r: np.ndarray, s: np.ndarray, n: int = n) -> float:
            product = p.T @ q
            cross = float((product * product).sum())
            return cross - n / (n - 2) * float(r @ s) + r.sum() * s.sum() / ((n - 1) * (n - 2))

        out.append(hsic(x, y, k, m) / np.sqrt(hsic(x, x, k, k) * hsic(y, y, m, m)))
    return out


def cpu(call: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--sites", type=int, default=12)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512, 768, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=48, help="pairs to time the formula pair by pair on")
    parser.add_argument("--permutations", type=int, default=1000)
    args = parser.parse_args()
    a, b = (features(args.n, args.sites, args.widths, seed) for seed in (1, 2))
    every = [(i, j) for i in a for j in b]
    some = [every[k] for k in np.random.default_rng(0).permutation(len(every))[: args.pairs]]
    models, quick = {"a": a, "b": b}, {"permutations": 0, "intervals": False}
    count = args.permutations
    ways = {
        "tiles of 512": lambda: tiles(a, b, 512),
        "tiles of 1024": lambda: tiles(a, b, 1024),
        "whole Gram matrices": lambda: whole(a, b),
        "products of features": lambda: products(a, b),
        "ours, values": lambda: compare(models, **quick),
        "ours, with intervals": lambda: compare(models, permutations=0),
        "ours, with permutations": lambda: compare(models, permutations=count, intervals=False),
        "pair by pair, torch": lambda: pairwise(a, b, some, "torch"),
        "pair by pair, numpy": lambda: pairwise(a, b, some, "numpy"),
    }
    # Imports and first calls are not what is compared.
    pairwise(a, b, some[:1], "torch")
    compare({"a": {"x": a["site0"][:50]}, "b": {"x": b["site0"][:50]}}, permutations=9)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            times[name].append(cpu(way))
    least = {name: min(found) for name, found in times.items()}
    for kind in ("torch", "numpy"):
        least[f"pair by pair, {kind}"] *= len(every) / len(some)
    print(f"n {args.n}, {args.sites} x {args.sites} sites, widths {args.widths}, CPU seconds")
    for name, seconds in least.items():
        print(f"  {name:24} {seconds:8.2f}")
    ours = least["ours, values"]
    pure = min(list(least.values())[:4])
    print(f"ours / cheapest pure products: {ours / pure:.2f} (goal at most 1.25)")
    for kind in ("torch", "numpy"):
        print(f"pair by pair with {kind} / ours: {least[f'pair by pair, {kind}'] / ours:.1f}")
    print(f"with intervals / values: {least['ours, with intervals'] / ours:.2f}")
    extra = least["ours, with permutations"] - ours
    print(f"null level of {count} permutations / values: {extra / ours:.2f} (goal at most 2)")
    grid = compare(models, **quick).panels[0].arrays["value"][0]
    places = [(list(a).index(i), list(b).index(j)) for i, j in some[:12]]
    exact = [{i: x.astype(np.float64) for i, x in side.items()} for side in (a, b)]
    apart = np.array([grid[place] for place in places]) - pairwise(*exact, some[:12], "numpy")
    print(f"largest difference from the formula in float64, {len(places)} pairs: {np.abs(apart).max():.1e}")


if __name__ == "__main__":
    main()
