"""Run a whole study and write its report, or continue one that was interrupted.

STUDY is a preset (digits) or a TOML file of settings. The study trains a classifier (to measure quality), a
teacher and controls, distils one-step students from every initialisation, captures and compares their
features, probes them, and ends with the path of report.html. Students run in processes of one thread.

  featlens study digits
  featlens study digits --full -o runs/digits-full
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from featlens.cli.parser import add_json, number_list

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("study", metavar="PRESET|FILE.toml", help="preset (digits) or file of settings")
    parser.add_argument(
        "-o", "--out", metavar="FOLDER", help="run folder (default: runs/<name>, or runs/<name>-full)"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="every initialisation, both ratio-network starts, three seeds, twice the images",
    )
    parser.add_argument(
        "--jobs", type=int, help="processes at once, of one thread each (default: the core count)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--inits", type=number_list(str), help="initialisations, by commas")
    parser.add_argument(
        "--ratio-inits", type=number_list(str), help="ratio-network initialisations: teacher, random"
    )
    parser.add_argument("--divergences", type=number_list(str), help="reverse_kl, js")
    parser.add_argument("--seeds", type=number_list(int), help="seeds of the students, by commas")
    parser.add_argument("--seed", type=int, help="seed of teacher, classifier and evaluation")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved settings and the jobs, and leave"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run or continue the study."""
    import json

    from featlens.cli.extract import check_device
    from featlens.errors import UsageError
    from featlens_trainers.presets import resolve_study
    from featlens_trainers.study import Study

    keys = ("inits", "ratio_inits", "divergences", "seeds", "seed")
    overrides: dict[str, Any] = {key: getattr(args, key) for key in keys if getattr(args, key) is not None}
    config = resolve_study(args.study, args.full, overrides)
    jobs = (os.cpu_count() or 1) if args.jobs is None else args.jobs
    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {jobs}")
    name = Path(args.study).stem + ("-full" if args.full else "")
    study = Study.open(args.out or Path("runs") / name, config)
    if args.dry_run:
        return _dry_run(study)
    check_device(args.device)
    report = study.run(jobs, args.device)
    results = json.loads((study.folder / "results.json").read_text(encoding="utf-8"))
    return show(results, report, args.json)


def _dry_run(study: Any) -> int:
    import tomli_w

    from featlens_trainers.config import to_mapping

    print(tomli_w.dumps(to_mapping(study.config)))  # noqa: T201
    print(f"# folder {study.folder}")  # noqa: T201
    for job in study.jobs():
        print(f"# {job.name}" + (f"  (after {', '.join(job.needs)})" if job.needs else ""))  # noqa: T201
    return 0


def show(results: dict[str, Any], report: Path, as_json: bool) -> int:
    """Print the result table and the path of the report, or the results as JSON."""
    from featlens_trainers.results import as_json_text
    from featlens_trainers.study_report import result_lines

    if as_json:
        print(as_json_text(results), end="")  # noqa: T201
        return 0
    print("\n".join(result_lines(results)))  # noqa: T201
    print(report)  # noqa: T201
    return 0
