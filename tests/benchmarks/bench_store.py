"""Writing and reading feature files beside plain h5py, in one run, in turn.

    python -m tests.benchmarks.bench_store [FOLDER]

The same features, in the same blocks, go through featlens, through plain h5py (contiguous datasets, no
checksums, no promise about kills) and through h5py with chunks and checksums. Told are medians of the ratios
of neighbouring runs, so that a busy machine slows all of them alike; 1.00 is as fast, more is faster.
"""

from __future__ import annotations

import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featlens.store import FeatureStore, FeatureWriter, SiteInfo
from featlens.store.layout import chunk_rows

RUNS = 9
GOAL = 0.9
Features = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Case:
    """Sites of one width, samples and sigmas."""

    sites: int
    width: int
    samples: int
    sigmas: int = 2

    @property
    def names(self) -> list[str]:
        """Names of the sites."""
        return [f"block{number}" for number in range(self.sites)]

    @property
    def size(self) -> int:
        """Bytes of features."""
        return self.sites * self.width * self.samples * self.sigmas * 4

    @property
    def rows(self) -> int:
        """Rows a block."""
        return chunk_rows(self.samples, [self.width], 4)


CASES = [Case(20, 256, 16_384), Case(2, 65_536, 640), Case(20, 64, 32_768)]


def blocks(case: Case) -> Features:
    """One block of features (rows, D) a site; the same one is written again and again."""
    draws = np.random.default_rng(0)
    return {name: draws.normal(size=(case.rows, case.width)).astype(np.float32) for name in case.names}


def pieces(case: Case) -> Iterator[tuple[int, int]]:
    """(sigma index, first row) of every block."""
    return ((index, start) for index in range(case.sigmas) for start in range(0, case.samples, case.rows))


def write_featlens(path: Path, case: Case, features: Features) -> None:
    """The whole life of a file: laying down, all blocks, closing."""
    sites = [SiteInfo(name, order, case.width) for order, name in enumerate(case.names)]
    sigmas = [float(index + 1) for index in range(case.sigmas)]
    with FeatureWriter.create(path, sites, sigmas, np.arange(case.samples), {}) as writer:
        for index, _ in pieces(case):
            writer.append(index, features)


def write_h5py(path: Path, case: Case, features: Features, **layout: Any) -> None:
    """The same features with h5py alone."""
    shape = (case.sigmas, case.samples, case.width)
    with h5py.File(path, "w") as file:
        datasets = {name: file.create_dataset(name, shape, "f4", **layout) for name in case.names}
        for index, start in pieces(case):
            for name, values in features.items():
                datasets[name][index, start : start + case.rows] = values


def read_featlens(path: Path, case: Case) -> None:
    """All features, block by block."""
    with FeatureStore(path) as store:
        for name in case.names:
            for sigma in store.sigmas:
                for _ in store.blocks(name, sigma, case.rows):
                    pass


def read_h5py(path: Path, case: Case) -> None:
    """The same blocks of the same file with h5py alone."""
    with h5py.File(path) as file:
        for name in case.names:
            dataset = file["sites"][name]
            for index, start in pieces(case):
                dataset[index, start : start + case.rows]


def seconds(
    action: Callable[..., None], path: Path, case: Case, *arguments: Any, fresh: bool, **options: Any
) -> float:
    """Wall time of one run; removing what is there does not count."""
    if fresh:
        path.unlink(missing_ok=True)
    start = time.perf_counter()
    action(path, case, *arguments, **options)
    return time.perf_counter() - start


def compare(ours: Callable[[], float], others: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Ratios other time / our time of neighbouring runs, and our times under the empty name."""
    found: dict[str, list[float]] = {name: [] for name in ("", *others)}
    for _ in range(RUNS):
        times = {name: other() for name, other in others.items()}
        mine = ours()
        found[""].append(mine)
        for name, other in times.items():
            found[name].append(other / mine)
    return found


def tell(what: str, case: Case, found: dict[str, list[float]]) -> bool:
    """Print; whether the first ratio reaches the goal."""
    rate = case.size / statistics.median(found.pop("")) / 1e6
    print(f"  {what}: {rate:.0f} MB/s")
    for name, ratios in found.items():
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"    {statistics.median(ratios):.2f} times as fast as {name:<32} {spread}")
    return statistics.median(next(iter(found.values()))) >= GOAL


def run(case: Case, folder: Path) -> bool:
    """One case; whether it reaches the goal."""
    path, other = folder / "ours.h5", folder / "other.h5"
    features = blocks(case)
    size = f"{case.sites} sites of {case.width} features, {case.size / 1e6:.0f} MB"
    print(f"{size} in blocks of {case.rows} rows; median of {RUNS} runs")
    write = functools.partial(seconds, fresh=True)
    plain = functools.partial(write, write_h5py, other, case, features)
    chunked = functools.partial(plain, chunks=(1, case.rows, case.width), fletcher32=True)
    ours = functools.partial(write, write_featlens, path, case, features)
    written = compare(ours, {"plain h5py": plain, "h5py with chunks and checksums": chunked})
    read = functools.partial(seconds, path=path, case=case, fresh=False)
    both = compare(lambda: read(action=read_featlens), {"plain h5py": lambda: read(action=read_h5py)})
    return all([tell("writing", case, written), tell("reading", case, both)])


def main() -> None:
    """Measure and print; exit code 1 if the first case, that of a network for CIFAR-10, misses the goal."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as folder:
        good = [run(case, Path(folder)) for case in CASES]
    print(f"goal: at least {GOAL:.2f} of plain h5py")
    sys.exit(0 if good[0] else 1)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
