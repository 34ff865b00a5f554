"""Wall time until ``featlens --help`` is done, beside that of Python itself.

    python -m tests.benchmarks.bench_startup

The runs of all commands take turns, so that a busy machine slows all of them alike; the median is told.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 20
GOAL = 0.15


def commands() -> dict[str, list[str]]:
    """What is timed, by name; the first is what it is about."""
    beside = Path(sys.executable).parent
    script = shutil.which("featlens", path=str(beside)) or shutil.which("featlens")
    return {
        "featlens --help": [script, "--help"] if script else [sys.executable, "-m", "featlens", "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import importlib.metadata'": [sys.executable, "-c", "import importlib.metadata"],
    }


def seconds(words: list[str]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    timed = commands()
    times: dict[str, list[float]] = {name: [] for name in timed}
    for words in timed.values():
        seconds(words)  # What is on disk is in memory from here on.
    for _ in range(RUNS):
        for name, words in timed.items():
            times[name].append(seconds(words))
    medians = {name: statistics.median(found) for name, found in times.items()}
    ours, *others = timed
    print(f"median of {RUNS} runs each (smallest to largest)")
    for name, found in times.items():
        spread = f"({min(found) * 1e3:.0f} to {max(found) * 1e3:.0f})"
        print(f"  {name:<40} {medians[name] * 1e3:6.0f} ms  {spread}")
    for name in others:
        print(f"{ours} takes {medians[ours] / medians[name]:.2f} times as long as {name}")
    print(f"goal: at most {GOAL * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
