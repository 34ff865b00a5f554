"""Wall time of ``featlens compare`` on two small files, from the start of the process to its answer.

    python -m tests.benchmarks.bench_cold_start

Two files of 4 sites with 64 features, 2 noise levels and 200 samples are compared with all defaults: debiased
CKA, jackknife intervals and the null level. Beside it stand the packages that any such command has to import.
The runs of all commands take turns, so that a busy machine slows all of them alike; the median is told.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from featlens.store import FeatureWriter, SiteInfo
from tests.benchmarks.bench_startup import seconds

RUNS = 5
GOAL = 2.0
SITES, WIDTH, SIGMAS, SAMPLES = 4, 64, (0.5, 2.5), 200


def write(path: Path, seed: int) -> None:
    """A feature file of random features."""
    rng = np.random.default_rng(seed)
    sites = [SiteInfo(f"enc.block{order}", order, WIDTH) for order in range(SITES)]
    with FeatureWriter.create(path, sites, SIGMAS, range(SAMPLES), {"sample_digest": "made"}) as writer:
        for index in range(len(SIGMAS)):
            block = {site.name: rng.normal(size=(SAMPLES, WIDTH)).astype(np.float32) for site in sites}
            writer.append(index, block)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("a.h5", "b.h5")]
        for seed, file in enumerate(files):
            write(Path(file), seed)
        compare = [sys.executable, "-m", "featlens", "compare", *files]
        timed = {
            "featlens compare a.h5 b.h5": compare,
            "featlens compare a.h5 b.h5 --json": [*compare, "--json"],
            "python -c 'import numpy, h5py'": [sys.executable, "-c", "import numpy, h5py"],
            "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        }
        times: dict[str, list[float]] = {name: [] for name in timed}
        for name, words in timed.items():
            # What is on disk is in memory from here on; a machine without torch leaves it out.
            if subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
                del times[name]
        for _ in range(RUNS):
            for name in times:
                times[name].append(seconds(timed[name]))
    print(f"median of {RUNS} runs each (smallest to largest)")
    for name, found in times.items():
        print(f"  {name:<36} {statistics.median(found):6.2f} s  ({min(found):.2f} to {max(found):.2f})")
    print(f"goal: an answer in at most {GOAL:g} s")


if __name__ == "__main__":
    main()
