"""A run folder: configuration, statistics, snapshots and the state from which training goes on exactly.

``run.json`` (what and how), ``stats.jsonl`` (one line a log point),
``snapshots/img-XXXXXXXX/ema.safetensors``, ``state/img-XXXXXXXX.safetensors`` (the last two). Every file is
replaced atomically or, for ``stats.jsonl``, cut back to the restored state on resume.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from featlens._version import __version__
from featlens.errors import FeatlensError, UsageError
from featlens.files import explain_os_error, lock, make_folder, write_text
from featlens_trainers.config import config_difference
from featlens_trainers.engine import Engine, memory_advice
from featlens_trainers.snapshots import read_tensors, write_tensors
from featlens_trainers.stopping import Stopped, requested, running_loop
from featlens_trainers.trackers import Trackers, trackers_of
from featlens_trainers.training import Step, Training

__all__ = ["Report", "Run", "versions"]

_log = logging.getLogger(__name__)

FORMAT = "featlens.run"
KEPT_STATES = 2
LOCK_PATIENCE = 5.0
"""Seconds to wait for a worker that outlived its parent to notice and let go of its run."""

Report = Callable[[int, int, str], None]
"""Called with (images done, images in all, a short remark)."""


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    from importlib.metadata import version

    names = ("torch", "numpy", "h5py", "scikit-learn")
    return {
        "featlens": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


class Run:
    """One training run in its folder; use as a context manager, which holds the folder's lock.

    Where several processes train together, each has the run open, and the main one alone locks and writes.
    """

    def __init__(
        self,
        folder: os.PathLike[str] | str,
        kind: str,
        config: Mapping[str, Any],
        engine: Engine | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.kind = kind
        self.engine = engine or Engine()
        # A round trip through JSON, so that what was read compares equal with what was asked for.
        self.config: dict[str, Any] = json.loads(json.dumps(dict(config)))
        self._stack = contextlib.ExitStack()
        self._trackers: Trackers | None = None
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self.info: dict[str, Any] = {}

    def __enter__(self) -> Run:
        if self.engine.main:
            make_folder(self.folder)
            self._lock()
        try:
            there = read_run(self.folder)
            if there is not None:
                self._require_same(there)
                self._seconds_before = float(there.get("seconds", 0.0))
                self.info = dict(there.get("info", {}))
                self.status = str(there.get("status", "running"))
            else:
                self.status = "running"
            # No process goes on, and so none writes, before all have read what is there.
            self.engine.wait()
            if there is None:
                self.write()
        except BaseException:
            self._stack.close()
            raise
        self._started = time.monotonic()
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def _lock(self) -> None:
        until = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                self._stack.enter_context(lock(self.folder / ".lock", f"the run {self.folder}"))
                return
            except FeatlensError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def _require_same(self, there: Mapping[str, Any]) -> None:
        if there.get("kind") != self.kind:
            raise UsageError(
                f"{self.folder} holds a run of kind {there.get('kind')!r}, not {self.kind!r}; "
                "choose another folder with -o"
            )
        lines = config_difference(there.get("config", {}), self.config)
        if lines:
            more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
            raise UsageError(
                f"{self.folder} belongs to another configuration: {lines[0]}{more}; "
                "choose another folder with -o, or give the same settings to continue it"
            )

    @property
    def done(self) -> bool:
        """Whether the run has finished."""
        return self.status == "done"

    @property
    def seconds(self) -> float:
        """Wall time spent, over all sessions."""
        return self._seconds_before + time.monotonic() - self._started

    def write(self) -> None:
        """Write ``run.json``."""
        if not self.engine.main:
            return
        record = {
            "format": FORMAT,
            "version": 1,
            "kind": self.kind,
            "status": self.status,
            "config": self.config,
            "versions": versions(),
            "seconds": round(self.seconds, 2),
            "info": self.info,
        }
        write_text(self.folder / "run.json", json.dumps(record, indent=1) + "\n")

    def finish(self, **info: Any) -> None:
        """Mark the run as done, with facts about its result."""
        self.info |= info
        self.status = "done"
        self.write()
        for state in self._states() if self.engine.main else ():
            state.unlink(missing_ok=True)

    def log(self, images: int, **values: Any) -> None:
        """Append one line to ``stats.jsonl``, and hand it to the trackers."""
        if not self.engine.main:
            return
        try:
            with (self.folder / "stats.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"images": images, **values}) + "\n")
        except OSError as error:
            raise explain_os_error(error, self.folder / "stats.jsonl") from error
        if self._trackers is not None:
            self._trackers.log(images, values)

    def keep_json(self, name: str, content: Any) -> None:
        """Write a JSON file into the run's folder."""
        if self.engine.main:
            write_text(self.folder / name, json.dumps(content, indent=1) + "\n")

    def snapshot_path(self, images: int, name: str = "ema") -> Path:
        """Path of the averaged network after ``images`` images; its folder exists."""
        return make_folder(self.folder / "snapshots" / f"img-{images:08d}") / f"{name}.safetensors"

    def save(self, training: Training) -> None:
        """Save the state to go on from; the one before it is kept as well."""
        if not self.engine.main:
            return
        folder = make_folder(self.folder / "state")
        write_tensors(
            folder / f"img-{training.images:08d}.safetensors",
            training.tensors(),
            {"kind": "state", "images": training.images},
        )
        for old in self._states()[:-KEPT_STATES]:
            old.unlink(missing_ok=True)
        self.write()

    def restore(self, training: Training) -> list[str]:
        """Load the newest state that is whole; returns remarks on those that were not."""
        remarks = []
        valid = -1
        for path in reversed(self._states()):
            try:
                tensors, about = read_tensors(path)
                training.load_tensors(tensors, int(about["images"]))
                valid = training.images
                break
            except (FeatlensError, RuntimeError, KeyError) as error:
                remarks.append(
                    f"{path.name} cannot be used ({' '.join(str(error).split())[:120]}); going back one state"
                )
        if self.engine.any(training.images != self.engine.tell(training.images)):
            raise FeatlensError(
                f"{self.folder}: the processes found different states; they need one folder that all can see"
            )
        # All have read before the main process writes the first state of this session.
        self.engine.synchronise(*training.networks.values())
        self.engine.wait()
        if self.engine.main:
            for remark in remarks:
                _log.warning("%s: %s", self.folder, remark)
            self._cut_stats(valid)
        self._trackers = self._stack.enter_context(
            trackers_of(self.engine, self.folder, self.config, training.images)
        )
        return remarks

    def _states(self) -> list[Path]:
        return sorted((self.folder / "state").glob("img-*.safetensors"), key=_images_of)

    def _cut_stats(self, images: int) -> None:
        path = self.folder / "stats.jsonl"
        if path.exists():
            kept = [json.dumps(line) for line in read_stats(self.folder) if line["images"] <= images]
            write_text(path, "".join(f"{line}\n" for line in kept))

    def drive(
        self,
        training: Training,
        steps: Iterator[Step],
        total: int,
        report: Report | None = None,
        save_every: int | None = None,
        log_every: int | None = None,
        batch: int = 1,
    ) -> Iterator[Step]:
        """Pass on the steps of a loop; log means, report progress and save the state on the way.

        Saves every 12,800 images and logs every 3,200, or 200 and 2,000 times in all where that is less
        often. SIGTERM (see :func:`featlens_trainers.stopping.stoppable`) saves and ends with
        :class:`~featlens_trainers.stopping.Stopped`. Where memory runs out with ``batch`` images, the error
        says what to change.
        """
        save_every = save_every or max(12_800, total // 200)
        log_every = log_every or max(3_200, total // 2000)
        # Kept with the state: who goes on between two log points logs the mean of all that was between.
        sums: dict[str, list[float]] = training.notes.setdefault("since log", {})
        with running_loop():
            for step in _advised(steps, batch, self.engine):
                for name, value in step.metrics.items():
                    sums.setdefault(name, []).append(value)
                if crossed(step.images, log_every, training) or step.images >= total:
                    self.log(step.images, **{name: sum(many) / len(many) for name, many in sums.items()})
                    sums.clear()
                if report is not None:
                    report(step.images, total, "")
                yield step
                stop = self.engine.any(requested()) and step.images < total
                # At the end as well: what follows, sampling and measuring, may be cut short too.
                if stop or crossed(step.images, save_every, training) or step.images >= total:
                    self.save(training)
                if stop:
                    raise Stopped(
                        f"stopped after {step.images:,} of {total:,} images, the state is saved; "
                        "run the same command again to continue"
                    )


def _advised(steps: Iterator[Step], batch: int, engine: Engine) -> Iterator[Step]:
    """The steps; where memory runs out in one of ``batch`` images, advice which knob to turn."""
    while True:
        with memory_advice(batch, engine):
            try:
                step = next(steps)
            except StopIteration:
                return
        yield step


def crossed(images: int, every: int, training: Training) -> bool:
    """Whether the last step took the count over a multiple of ``every``."""
    return images // every != (images - training.last_batch) // every


def read_run(folder: os.PathLike[str] | str) -> dict[str, Any] | None:
    """``run.json`` of a folder, or None if there is none."""
    path = Path(folder) / "run.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FeatlensError(
            f"{path} cannot be read ({error}); remove the folder {folder} to start the run anew"
        ) from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise FeatlensError(f"{path} is not the record of a featlens run; choose another folder with -o")
    return record


def read_stats(folder: os.PathLike[str] | str) -> list[dict[str, Any]]:
    """Lines of ``stats.jsonl``; a last line that a kill cut short is left out."""
    path = Path(folder) / "stats.jsonl"
    if not path.exists():
        return []
    out = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            out.append(json.loads(line))
    return [line for line in out if isinstance(line, dict) and "images" in line]


def _images_of(path: Path) -> int:
    """Count of images in a name such as ``img-00012800``."""
    digits = path.stem.removeprefix("img-")
    return int(digits) if digits.isdigit() else -1


def newest_snapshot(folder: os.PathLike[str] | str) -> Path:
    """Path of the latest snapshot of a run."""
    found = list((Path(folder) / "snapshots").glob("img-*/ema.safetensors"))
    if not found:
        raise FeatlensError(
            f"{folder} has no snapshot of a denoiser; give a teacher, control or student that has finished"
        )
    return max(found, key=lambda path: _images_of(path.parent))


def device_name(device: str) -> str:
    """Readable name of a device."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
