"""A study: classifier, teacher, controls, students, features, comparisons, probes, report, in one folder."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featlens.errors import FeatlensError, UsageError
from featlens.files import lock, make_folder, write_text
from featlens_trainers.config import config_difference, from_mapping, to_mapping
from featlens_trainers.executor import Job, Monitor, Outcome, run_jobs
from featlens_trainers.settings import StudyConfig

if TYPE_CHECKING:
    from featlens_trainers.engine import Engine
    from featlens_trainers.tasks import StudentSpec

__all__ = ["Monitoring", "Study"]

Monitoring = Callable[[int], AbstractContextManager[Monitor]]
"""From the number of jobs to a context manager that yields a :class:`Monitor`."""


@dataclass(frozen=True)
class Study:
    """A study in its folder.

    Attributes
    ----------
    folder
        Where everything goes, such as ``runs/digits``.
    config
        Resolved settings.

    Examples
    --------
    Run the study of the paper's question on digits, or continue it::

        from featlens_trainers import Study, resolve_study
        study = Study.open("runs/digits", resolve_study("digits"))
        print(study.run())
    """

    folder: Path
    config: StudyConfig

    @classmethod
    def open(cls, folder: os.PathLike[str] | str, config: StudyConfig | None = None) -> Study:
        """Study in ``folder``: a new one with ``config``, or the one there (``config`` None or equal)."""
        path = Path(folder)
        there = _read_config(path)
        if config is None:
            if there is None:
                raise UsageError(
                    f"{path} holds no study (no study.toml); run 'featlens study digits -o {path}' first"
                )
            return cls(path, there)
        lines = [] if there is None else config_difference(_identity(there), _identity(config))
        if lines:
            more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
            raise UsageError(
                f"{path} belongs to a study with another configuration: {lines[0]}{more}; "
                "choose another folder with -o, or give the same settings to continue it"
            )
        return cls(path, config)

    def jobs(self, device: str = "cpu") -> list[Job]:
        """Everything there is to do, in a good order."""
        from featlens_trainers import analysis, tasks

        where = (self.folder, self.config, device)
        out = [
            Job("classifier", tasks.run_classifier, where),
            Job("teacher", tasks.run_teacher, where, ("classifier",)),
        ]
        for name in self.controls():
            regressed = name.startswith("map_regressed")
            out.append(
                Job(name, tasks.run_control, (*where, name), ("teacher",) if regressed else ("classifier",))
            )
        out.append(Job("analyse teacher", analysis.run_analysis, (*where, "teacher"), ("teacher",)))
        out += [
            Job(spec.name, tasks.run_student, (*where, spec), self._needs(spec)) for spec in self.students()
        ]
        out.append(
            Job("analyse untrained", analysis.run_analysis, (*where, "untrained"), ("analyse teacher",))
        )
        out += [
            Job(
                f"analyse {spec.name}",
                analysis.run_analysis,
                (*where, spec.name),
                (spec.name, "analyse teacher"),
            )
            for spec in self.students()
        ]
        return out

    def controls(self) -> list[str]:
        """Networks beside the teacher that some initialisation starts from, in order of training."""
        from featlens_trainers.tasks import CONTROLS

        wanted = {source for spec in self.students() for source in self._sources(spec)}
        return [name for name in CONTROLS if name in wanted]

    def _sources(self, spec: StudentSpec) -> set[str]:
        sources = set(self.config.initialisation(spec.init, spec.ratio).sources())
        if self.config.loss(spec.divergence).direction != "ratio":
            sources.add("teacher")
        return sources

    def _needs(self, spec: StudentSpec) -> tuple[str, ...]:
        """Jobs that must be done before a student's."""
        sources = self._sources(spec)
        known = [name for name in ("teacher", *self.controls()) if name in sources]
        # Everything but a network from scratch waits for the teacher: sooner done, sooner analysed.
        return ("teacher", *(name for name in known if name != "teacher")) if sources else ("classifier",)

    def students(self) -> list[StudentSpec]:
        """Specifications of all students, seed by seed."""
        from featlens_trainers.tasks import StudentSpec

        config = self.config
        return [
            StudentSpec(init, ratio, divergence, seed)
            for seed in config.seeds
            for divergence in config.divergences
            for ratio in config.ratio_inits
            for init in config.inits
        ]

    def _require_inputs(self, students: Sequence[StudentSpec]) -> None:
        """Refuse a teacher, loss, rule or source that cannot be had, before hours of training need it."""
        import torch

        from featlens.weights import select
        from featlens_trainers.directions import resolve_divergence
        from featlens_trainers.initialisation import load_source
        from featlens_trainers.networks.build import bare_denoiser
        from featlens_trainers.settings.initialisation import TRAINED
        from featlens_trainers.tasks.teacher import pretrained_teacher
        from featlens_trainers.weighting import resolve_weighting

        config = self.config
        if config.pretrained is not None:
            _require_run(Path(config.pretrained))
            pretrained_teacher(config, "cpu")
        with torch.device("meta"):
            student = bare_denoiser(config.network, config.sigma_data)
        for spec in students:
            settings = config.loss(spec.divergence)
            if settings.direction == "ratio":
                resolve_divergence(settings.divergence, settings.clip)
            if settings.weighting is not None:
                resolve_weighting(settings.weighting)
            init = config.initialisation(spec.init, spec.ratio)
            for rule in init.student_rules():
                select(student, rule.match)
            for path in sorted(init.sources() - set(TRAINED)):
                load_source(path)

    def run(
        self,
        jobs: int = 0,
        device: str = "cpu",
        monitor: Monitoring | None = None,
    ) -> Path:
        """Do all that is not done yet; write ``results.json``, ``results.nc``, pictures and ``report.html``.

        Parameters
        ----------
        jobs
            Processes at once, each of one thread; 0 runs everything in this process. With 1 or more, a script
            needs ``if __name__ == "__main__":`` around the call, as always with multiprocessing.
        device
            Where to run, such as ``"cuda"``.
        monitor
            Function from the number of jobs to a context manager that yields a :class:`Monitor`; progress
            lines on stderr by default.

        Returns
        -------
        pathlib.Path
            The report.

        Raises
        ------
        FeatlensError
            If a job failed; the others were run all the same, and the report covers what is there.
        """
        from featlens_trainers.monitor import progress_monitor
        from featlens_trainers.results import collect, write_results
        from featlens_trainers.study_report import write_report
        from featlens_trainers.tasks import require_data

        _require_sites(self.config)
        self._require_inputs(self.students())
        require_data(self.config)
        make_folder(self.folder)
        with lock(self.folder / ".lock", f"the study in {self.folder}"):
            if not (self.folder / "study.toml").exists():
                write_text(self.folder / "study.toml", to_toml(self.config))
            start = time.monotonic()
            todo = self.jobs(device)
            try:
                with (monitor or progress_monitor)(len(todo)) as heard:
                    outcomes = run_jobs(todo, jobs, heard)
            finally:
                self._note_session(time.monotonic() - start, jobs, device)
            failed = {name: outcome for name, outcome in outcomes.items() if outcome.status != "done"}
            if (self.folder / "teacher" / "snapshots").exists() or not failed:
                results = collect(self.folder, self.config, {n: o.message for n, o in failed.items()})
                write_results(self.folder, results)
                report = write_report(self.folder, self.config, results)
        if failed:
            raise FeatlensError(_failure_line(failed))
        return report

    def run_only(
        self,
        names: Sequence[str],
        engine: Engine,
        monitor: Monitoring | None = None,
    ) -> None:
        """Do the named jobs and what they need in this process, on ``engine``; no report is written.

        Several processes (``torchrun``) each call this, and train together.
        """
        from featlens_trainers.monitor import progress_monitor, silent_monitor
        from featlens_trainers.tasks import require_data

        self._require_inputs([spec for spec in self.students() if spec.name in names])
        require_data(self.config)

        known = {job.name: job for job in self.jobs(str(engine.device))}
        wanted: set[str] = set()
        stack = list(names)
        while stack:
            job = known[stack.pop()]
            wanted.add(job.name)
            stack += [need for need in job.needs if need not in wanted]
        todo = [replace(job, options={"engine": engine}) for job in known.values() if job.name in wanted]
        make_folder(self.folder)
        heard = (monitor or progress_monitor) if engine.main else silent_monitor
        with contextlib.ExitStack() as held:
            if engine.main:
                held.enter_context(lock(self.folder / ".lock", f"the study in {self.folder}"))
            outcomes = run_jobs(todo, 0, held.enter_context(heard(len(todo))), together=engine.world > 1)
        failed = {name: outcome for name, outcome in outcomes.items() if outcome.status != "done"}
        if failed:
            raise FeatlensError(_failure_line(failed))

    def _note_session(self, seconds: float, jobs: int, device: str) -> None:
        path = self.folder / "sessions.json"
        try:
            sessions = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            sessions = []
        sessions.append(
            {"seconds": round(seconds, 1), "jobs": jobs, "device": device, "cores": os.cpu_count()}
        )
        write_text(path, json.dumps(sessions) + "\n")


def _identity(config: StudyConfig) -> dict[str, Any]:
    """The settings that results depend on: all but those of the checks that only look on."""
    out = to_mapping(config)
    del out["diagnostics"]
    return out


def _require_sites(config: StudyConfig) -> None:
    """Refuse site patterns that match nothing before anything is trained."""
    import torch

    from featlens.site import sites
    from featlens_trainers.networks import build_network

    with torch.device("meta"):
        sites(build_network(config.network), config.features.sites)


def _require_run(path: Path) -> None:
    """Refuse a teacher that is no run or snapshot of ours."""
    if not path.exists():
        raise UsageError(f"no teacher at {path}; give the folder of a run, or a snapshot in it")
    ours = path.suffix == ".safetensors" if path.is_file() else (path / "snapshots").is_dir()
    if not ours:
        raise UsageError(
            f"teacher {path}: expected the folder of a run, or a snapshot in it, found something else; "
            f"'featlens convert {path} RUN' makes a run of a .pkl of EDM or a folder of diffusers"
        )


def _failure_line(failed: dict[str, Outcome]) -> str:
    name, outcome = next((n, o) for n, o in failed.items() if o.status == "failed")
    others = len(failed) - 1
    more = f" ({others} more did not run or failed)" if others else ""
    return f"job {name!r} failed{more}: {outcome.message}"


def to_toml(config: StudyConfig) -> str:
    """Settings as a TOML file that `featlens study` takes."""
    import tomli_w

    return tomli_w.dumps(to_mapping(config))


def _read_config(folder: Path) -> StudyConfig | None:
    from featlens_trainers.presets import read_toml

    path = folder / "study.toml"
    if not path.exists():
        if (folder / "run.json").exists():
            raise UsageError(f"{folder} holds a single run, not a study; choose another folder with -o")
        return None
    found = read_toml(path)
    missing = sorted(set(to_mapping(StudyConfig())) - set(found))
    if missing:
        raise UsageError(
            f"{path} is incomplete (no {missing[0]!r}); restore it, or remove the folder to start anew"
        )
    return from_mapping(StudyConfig, found)
