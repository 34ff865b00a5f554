"""Train a teacher, or a control of the same size, in a study's folder.

Continues where it was interrupted.

  featlens train digits
  featlens train digits --what single_sigma
"""

from __future__ import annotations

import argparse

from featlens.cli.parser import add_json

__all__ = ["add_arguments", "run"]

KINDS = ("teacher", "single_sigma", "map_regressed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("preset", metavar="PRESET|FILE.toml", help="preset (digits) or file of settings")
    parser.add_argument("--what", choices=KINDS, default="teacher", help="teacher, or a control")
    add_common(parser)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options that training commands share."""
    parser.add_argument("-o", "--out", metavar="FOLDER", help="study folder (default: runs/<name>)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and leave")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Train or continue."""
    return run_jobs_of(args, {"inits": (args.what,) if args.what != "teacher" else ("teacher",)}, args.what)


def run_jobs_of(args: argparse.Namespace, design: dict[str, tuple[object, ...]], name: str) -> int:
    """Do one job of a study (and what it needs) in its folder, and print what the run found."""
    import dataclasses
    import json
    from pathlib import Path

    from featlens.cli.extract import check_device
    from featlens_trainers.config import to_mapping
    from featlens_trainers.presets import resolve_study
    from featlens_trainers.runs import read_run
    from featlens_trainers.study import Study

    config = resolve_study(args.preset)
    folder = Path(args.out or Path("runs") / Path(args.preset).stem)
    if (folder / "study.toml").exists():
        # The folder's own settings hold; only its list of students is widened for this call.
        there = Study.open(folder).config
        same = {
            entry.name: getattr(there, entry.name)
            for entry in dataclasses.fields(config)
            if entry.name in DESIGN
        }
        Study.open(folder, dataclasses.replace(config, **same))
        config = there
    # Not through open: the design of this call is not that of the study.
    study = dataclasses.replace(Study.open(folder, config), config=dataclasses.replace(config, **design))  # type: ignore[arg-type]
    if args.dry_run:
        print(json.dumps({"folder": str(folder / name), "config": to_mapping(study.config)}, indent=2))  # noqa: T201
        return 0
    check_device(args.device)
    study.run_only([name], device=args.device)
    record = read_run(folder / name) or {}
    print(json.dumps(record) if args.json else _lines(record, folder / name))  # noqa: T201
    return 0


DESIGN = ("inits", "ratio_inits", "divergences", "seeds")


def _lines(record: dict[str, object], folder: object) -> str:
    info = record.get("info")
    assert isinstance(info, dict)
    quality = info.get("quality", {})
    named = quality if "heun" in quality else ({"one_step": quality} if quality else {})
    lines = [
        f"{name}: Frechet {entry['frechet']:.4f}, KID {entry['kid']:.4f}" for name, entry in named.items()
    ]
    return "\n".join([*lines, str(folder)])
