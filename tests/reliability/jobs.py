"""What is killed: a writer, the extract command, a merge and a compression, and what must hold after."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featlens.store import FeatureStore, FeatureWriter, SiteInfo
from featlens.store.pack import pack
from featlens.store.shards import merge, shard_path, shard_rows

__all__ = ["JOBS", "Broken", "Job"]

ROWS, BLOCK = 3000, 64
SIGMAS = [0.05, 0.5, 2.5]
SITES = [
    SiteInfo("enc.conv", 0, 256, kind="Conv2d"),
    SiteInfo("enc.same", 1, 256, kind="Identity", same_as="enc.conv"),
    SiteInfo("dec.conv", 2, 96, kind="Conv2d"),
]
MANIFEST = {"model": "reliability", "sample_digest": "made"}
FORMATS = ("featlens.features", b"featlens.features")
"""h5py gives text of fixed length as bytes."""
PHASES = ("no file yet", "laid out, no rows", "some rows", "all rows, not closed", "complete")


class Broken(Exception):
    """Something that must never happen after a kill."""


def features(site: str, index: int, rows: slice) -> np.ndarray:
    """(rows, D) float32; every number is a function of its place alone."""
    width = next(info.width for info in SITES if info.name == site)
    places = np.arange(rows.start, rows.stop)[:, None] * width + np.arange(width)
    return np.sin(places * (index + 1.0)).astype(np.float32)


class Job:
    """Work that a child does on ``path``, and what has to be true of its folder afterwards."""

    name = ""
    signals: tuple[signal.Signals, ...] = (signal.SIGKILL,)

    def __init__(self, folder: Path, rows: int = ROWS) -> None:
        self.rows = rows
        self.folder = folder / self.name
        self.folder.mkdir(parents=True)
        self.path = self.folder / "a.h5"
        self.reference = self.folder / "reference.h5"
        self.keep = {self.path.name, self.reference.name}
        self.prepare()
        with h5py.File(self.reference) as file:
            self.truth = {
                name: file["sites"][name][()] for name in file["sites"] if file["sites"][name].ndim == 3
            }
        self.whole = self.reference.read_bytes()

    def prepare(self) -> None:
        """Make the reference: the file that an uninterrupted run leaves."""
        raise NotImplementedError

    def reset(self) -> None:
        """Make the folder as it was before the first run."""
        self.path.unlink(missing_ok=True)

    def work(self, path: Path) -> None:
        """What the child does."""
        raise NotImplementedError

    def start(self) -> Child:
        """Start the child; returns when the work itself begins."""
        return Forked(lambda: self.work(self.path))

    def check(self) -> str:
        """Phase in which the kill left the file; raises :class:`Broken` if anything is wrong."""
        leftover = self.leftover()
        if len(leftover) > 2:
            raise Broken(f"temporaries heap up: {leftover}")
        if not self.path.exists():
            return PHASES[0]
        with FeatureStore(self.path) as store:
            done, complete, total = store.rows_done.tolist(), store.complete, len(store)
            for name in store.sites:
                for index, sigma in enumerate(store.sigmas):
                    rows = slice(0, done[index])
                    self.same(name, index, store.read(name, float(sigma), rows), "FeatureStore")
            damaged = store.verify()
            if damaged:
                raise Broken(f"damage: {damaged[0]}")
        with h5py.File(self.path) as file:
            if file.attrs["format"] not in FORMATS or bool(file.attrs["complete"]) != complete:
                raise Broken("plain h5py sees other attributes")
            if file["rows_done"][:].tolist() != done:
                raise Broken("plain h5py sees other counters")
            for name in self.truth:
                for index, stop in enumerate(done):
                    self.same(name, index, file["sites"][name][index, :stop], "h5py")
        if complete and done != [total] * len(done):
            raise Broken(f"complete with {done} of {total} rows")
        if not sum(done):
            return PHASES[1]
        return PHASES[2] if sum(done) < total * len(done) else PHASES[3 + complete]

    def same(self, name: str, index: int, found: np.ndarray, reader: str) -> None:
        """Refuse rows that are not bit for bit those of the reference."""
        if found.tobytes() != self.truth[name][index, : len(found)].tobytes():
            raise Broken(
                f"{reader}: rows 0..{len(found)} of {name!r}, sigma {index} are not what was written"
            )

    def leftover(self) -> list[str]:
        """Names of temporaries; nothing else may lie beside the file."""
        names = [entry.name for entry in self.folder.iterdir() if entry.name not in self.keep]
        strange = [name for name in names if not re.fullmatch(r"\.+a\.h5(\.[a-z0-9_]{8}\.tmp)+", name)]
        if strange:
            raise Broken(f"files of unknown origin: {strange}")
        return names

    def finished(self) -> None:
        """What must be true at the end."""
        if self.check() != PHASES[4]:
            raise Broken("the last run left an incomplete file")
        if self.path.read_bytes() != self.whole:
            raise Broken("the bytes of the file are not those of an uninterrupted run")
        if self.leftover():
            raise Broken(f"left behind: {self.leftover()}")


class Child:
    """A running child."""

    pid: int

    def wait(self) -> int:
        """Exit code; negative the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def refused(self, code: int, sent: signal.Signals) -> str:
        """What is wrong with this end after this signal; empty if nothing."""
        return "" if code in (0, -sent) else f"exit code {code}"


class Forked(Child):
    """A child that begins at once, with everything already imported."""

    def __init__(self, work: Any) -> None:
        self.pid = os.fork()
        if not self.pid:
            try:
                work()
                os._exit(0)
            except BaseException as error:
                print(f"child: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(99)


class Writer(Job):
    """A :class:`FeatureWriter` that writes block by block, continuing what is there."""

    name = "writer"

    def prepare(self) -> None:
        """Written in one go."""
        self.work(self.reference)

    def work(self, path: Path, rows: slice | None = None, shard: dict[str, int] | None = None) -> None:
        """Create or resume, append the rest, close."""
        rows = rows or slice(0, self.rows)
        manifest = MANIFEST if shard is None else {**MANIFEST, "shard": shard}
        size = rows.stop - rows.start
        if path.exists():
            writer = FeatureWriter.resume(path, manifest)
        else:
            ids = np.arange(self.rows)[rows]
            writer = FeatureWriter.create(path, SITES, SIGMAS, ids, manifest, ids % 10, block=BLOCK)
        with writer:
            for index in range(len(SIGMAS)):
                while writer.done(index) < size:
                    start = rows.start + writer.done(index)
                    block = slice(start, min(start + writer.block, rows.stop))
                    writer.append(index, {name: features(name, index, block) for name in writer.names})


class Merge(Writer):
    """Three shards made into one file, which appears whole or not at all."""

    name = "merge"

    def prepare(self) -> None:
        """The shards stay for all runs."""
        super().prepare()
        self.shards = [shard_path(self.path, index, 3) for index in range(3)]
        for index, shard in enumerate(self.shards):
            rows = shard_rows(self.rows, BLOCK, index, 3)
            Writer.work(
                self, shard, rows, {"index": index, "count": 3, "first": rows.start, "total": self.rows}
            )
        self.keep |= {shard.name for shard in self.shards}

    def work(self, path: Path, *_: Any) -> None:
        """Merge all shards, or write the reference."""
        if path == self.reference:
            super().work(path)
        else:
            merge(path, self.shards)

    def check(self) -> str:
        """The file is whole or absent."""
        phase = super().check()
        if phase not in (PHASES[0], PHASES[4]):
            raise Broken(f"a merge left a file with {phase}")
        return phase


class Pack(Writer):
    """A complete file compressed in place: the old one or the new one, at every moment."""

    name = "pack"

    def prepare(self) -> None:
        """The reference is the compressed file."""
        super().work(self.reference)
        self.plain = self.reference.read_bytes()
        pack(self.reference)

    def reset(self) -> None:
        """Put the uncompressed file back."""
        self.path.write_bytes(self.plain)

    def work(self, path: Path, *_: Any) -> None:
        """Compress."""
        pack(path)

    def check(self) -> str:
        """Old or new, byte for byte."""
        phase = super().check()
        if self.path.read_bytes() not in (self.plain, self.whole):
            raise Broken("neither the old file nor the new one")
        return phase


LAUNCH = """
import sys, torch
import featlens.adapters, featlens.cli.extract, featlens.extraction, tests.reliability.model
from featlens.cli import main
from featlens.samples import SampleSet
SampleSet.load("digits", n=1)
print("ready", flush=True)
sys.exit(main(sys.argv[1:]))
"""


class Extract(Job):
    """``featlens extract`` in a process of its own; killed, terminated and interrupted."""

    name = "extract"
    signals = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

    def words(self, path: Path) -> Sequence[str]:
        """The command line."""
        options = [
            "--sites",
            "enc.*",
            "--sigmas",
            "0.05,0.5,2.5",
            "--split",
            "all",
            "--n",
            "1280",
            "--reduce",
            "grid(4)",
        ]
        return ["extract", "python:tests.reliability.model:build", "-o", str(path), "--batch", "64", *options]

    def prepare(self) -> None:
        """Run without interruption."""
        child = Command(self.words(self.reference))
        if child.wait():
            raise Broken(f"the command fails by itself: {child.errors}")

    def start(self) -> Child:
        """Start the command and wait until everything is imported."""
        return Command(self.words(self.path))


class Command(Child):
    """A command in a process of its own."""

    def __init__(self, words: Sequence[str]) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        # The module of the model is found in the working folder, as by 'featlens' itself.
        env["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), env.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
        )
        self.pid = self.process.pid
        self.errors = ""
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def wait(self) -> int:
        """Exit code; what was said on stderr is kept."""
        self.errors = self.process.communicate(timeout=120)[1].decode()
        return self.process.returncode

    def refused(self, code: int, sent: signal.Signals) -> str:
        """A command that is asked to stop says so in one line, and leaves with 1, unless all is done."""
        said = self.errors.strip().splitlines()
        before_or_after = not said or said[-1].endswith("samples")
        if code in (0, -signal.SIGKILL) or (code == -sent and before_or_after):
            return ""
        if (
            sent == signal.SIGKILL
            or code != 1
            or len(said) != 1
            or "interrupted; run the same" not in said[0]
        ):
            return f"exit code {code} after {sent.name}: {said[-1:]}"
        return ""


JOBS: dict[str, type[Job]] = {job.name: job for job in (Writer, Extract, Merge, Pack)}


def timed(job: Job) -> float:
    """Seconds of an uninterrupted run, from the moment that the work begins; the shorter of two runs."""
    seconds = []
    for _ in range(2):
        job.reset()
        child = job.start()
        begun = time.perf_counter()
        if child.wait():
            raise Broken(f"{job.name} fails without being killed")
        seconds.append(time.perf_counter() - begun)
        job.finished()
    return min(seconds)
