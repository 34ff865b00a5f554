"""Kill at random moments whatever writes a feature file, and check after every kill that nothing is lost.

    python -m tests.reliability.kills --kills 200

After each kill the file, if there is one, is opened with FeatureStore and with plain h5py: every row that
``rows_done`` counts must be bit for bit what was written, and nothing but one attempt's temporaries may lie
beside it. Then the same work is started again, and killed again, until it ends by itself; the file must then
be byte for byte that of a run that nobody killed, with nothing left beside it. The moments are drawn
uniformly over the length of an uninterrupted run (and a tenth more). Exit code 1 if anything fails.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.reliability.jobs import JOBS, PHASES, ROWS, Broken, Job, timed

__all__ = ["main"]

SHARES = {"writer": 12, "extract": 4, "merge": 2, "pack": 2}
LATEST = 1.1
"""Last moment of a kill in lengths of an uninterrupted run; beyond 1, since a run is now and then slower."""

MOST = 8
"""Kills of one file, after which it is left to end."""


def campaign(job: Job, kills: int, draws: random.Random) -> tuple[collections.Counter[str], int]:
    """Kill until enough; how often in which phase, and in how many files."""
    seconds = timed(job)
    print(f"{job.name}: {seconds:.2f} s without a kill", flush=True)
    phases: collections.Counter[str] = collections.Counter()
    files = 0
    while phases.total() < kills:
        files += 1
        job.reset()
        told: list[str] = []
        while True:
            enough = len(told) >= MOST or phases.total() + len(told) >= kills
            phase = attempt(job, None if enough else draws.uniform(0, LATEST * seconds), draws)
            if phase is None:
                break
            told.append(phase)
        job.finished()
        phases.update(told)
        print(
            f"  {job.name} file {files}: {len(told)} kills ({', '.join(told) or 'ended before'})", flush=True
        )
    return phases, files


def attempt(job: Job, moment: float | None, draws: random.Random) -> str | None:
    """Phase in which a kill at this moment left the file; None if the work ended before it."""
    sent = draws.choice(job.signals)
    child = job.start()
    if moment is not None:
        time.sleep(moment)
        os.kill(child.pid, sent)
    code = child.wait()
    wrong = child.refused(code, sent)
    if wrong:
        raise Broken(wrong)
    phase = job.check()
    return None if code == 0 else phase


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--jobs", default=",".join(SHARES), help="which of " + ", ".join(SHARES))
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--rows", type=int, default=ROWS, help="samples of a file, but for extract")
    args = parser.parse_args(arguments)
    names = args.jobs.split(",")
    shares, failures = sum(SHARES[name] for name in names), 0
    rows: list[list[str]] = [["job", "files", "kills", *PHASES, "failures"]]
    left, total = args.kills, 0
    for name in names:
        kills = left if name == names[-1] else round(args.kills * SHARES[name] / shares)
        left -= kills
        with tempfile.TemporaryDirectory() as folder:
            phases: collections.Counter[str] = collections.Counter()
            files, failed = 0, 0
            try:
                phases, files = campaign(
                    JOBS[name](Path(folder), args.rows), kills, random.Random(f"{args.seed} {name}")
                )
            except Exception as error:
                failed = 1
                print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
        failures += failed
        total += phases.total()
        counts = [str(phases[phase]) for phase in PHASES]
        rows.append([name, str(files), str(phases.total()), *counts, str(failed)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        print(" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\n{total} kills, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
