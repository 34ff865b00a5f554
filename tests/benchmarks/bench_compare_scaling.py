"""Time and memory of a comparison of two files as samples, widths and sites grow, beside the planner's word.

    python -m tests.benchmarks.bench_compare_scaling [--most 1000000]

Every line is a process of its own that compares two files of float32 features from disk: values with
intervals, no permutations; for the lines marked with a star with the null level, too. Told are what the
planner chose and predicts (its multiplications at the speed of a matrix product measured in that process),
the CPU seconds, and the peak resident memory beyond that of the process after its imports. The page cache of
the files is not counted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from featlens.store import FeatureWriter, SiteInfo

CHILD = """
import json, sys, time
import scipy.fft, scipy.special
import featlens as fl
from featlens.comparison.plan import _rate

models = {"a": sys.argv[1], "b": sys.argv[2]}
permutations = int(sys.argv[3])

def resident(what):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(what)) / 1024

choice = fl.plan_comparison(models, permutations=permutations).choices[0]
predicted = choice.products / _rate(choice.precision)
before, start = resident("VmRSS"), time.process_time()
fl.compare(models, permutations=permutations)
used = time.process_time() - start, resident("VmHWM") - before
print(json.dumps([choice.way, choice.precision, predicted, *used]))
"""
BLOCK = 10_240


def write(path: Path, n: int, sites: int, width: int, seed: int) -> None:
    """Feature file with a part that both files share."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(8, width)).astype(np.float32)
    infos = [SiteInfo(f"site{index}", index, width) for index in range(sites)]
    manifest = {"model": path.stem, "sample_digest": "same"}
    with FeatureWriter.create(path, infos, [0.5], np.arange(n), manifest) as writer:
        for start in range(0, n, BLOCK):
            rows = min(BLOCK, n - start)
            shared = np.random.default_rng(start).normal(size=(rows, 8)).astype(np.float32) @ mixing
            noise = rng.normal(size=(sites, rows, width)).astype(np.float32)
            writer.append(0, {info.name: shared + part for info, part in zip(infos, noise, strict=True)})


def measured(folder: Path, n: int, sites: int, width: int, permutations: int) -> None:
    """Compare in a process of its own and print a line."""
    import json

    paths = [folder / f"{name}.h5" for name in "ab"]
    for seed, path in enumerate(paths):
        path.unlink(missing_ok=True)
        write(path, n, sites, width, seed)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, paths), str(permutations)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    way, precision, predicted, seconds, memory = json.loads(child.stdout)
    star = "*" if permutations else " "
    shape = f"{n:9,} {sites:5} {width:6}"
    print(f"{shape}{star} {way:9} {precision:8} {predicted:10.2f} {seconds:9.2f} {memory:9.0f}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=1_000_000)
    args = parser.parse_args()
    print("        n sites  width  way       type      predicted     CPU s  peak MiB")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n in (1_000, 10_000, 100_000, 1_000_000):
            if n <= args.most:
                measured(folder, n, 2, 64, 0)
        if args.most >= 1_000_000:
            measured(folder, 1_000_000, 2, 64, 1000)
        for width in (64, 256, 1024, 4096):
            measured(folder, 2_000, 4, width, 0)
        for sites in (10, 30, 100):
            measured(folder, 2_000, sites, 64, 0)
        measured(folder, 2_000, 100, 64, 1000)


if __name__ == "__main__":
    main()
