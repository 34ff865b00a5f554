"""Train a teacher, or a control of the same size, in a study's folder.

Continues where it was interrupted: run the same command again. SIGTERM saves the state and ends with exit
code 0. --dry-run prints the settings and the sizes of the networks; --one-step takes one real step of the
teacher's and a student's training on generated images of that size, and needs no data.

  featlens train digits
  featlens train digits --what single_sigma
  featlens train cifar10 --data cifar-10-binary.tar.gz --device cuda --precision bfloat16 --compile
  featlens train imagenet64 --dry-run
  torchrun --nproc-per-node 8 -m featlens train cifar10 --data cifar10-32x32.zip --device cuda
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featlens.cli.parser import add_json
from featlens_trainers.cli.running import add_running

if TYPE_CHECKING:
    from featlens_trainers.settings import StudyConfig

__all__ = ["add_arguments", "run"]

KINDS = ("teacher", "single_sigma", "band_sigma", "map_regressed", "map_regressed_ode", "classifier_body")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_preset(parser)
    parser.add_argument("--what", choices=KINDS, default="teacher", help="teacher, or a control")
    add_common(parser)


def add_preset(parser: argparse.ArgumentParser) -> None:
    """The positional argument of training commands."""
    parser.add_argument(
        "preset",
        metavar="PRESET|FILE.toml",
        help="preset (digits, shapes32, cifar10, cifar10-cond, imagenet64) or file of settings",
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Options that change settings."""
    parser.add_argument("--data", metavar="DATA", help="where the images are, as 'featlens inspect' takes it")
    parser.add_argument(
        "--teacher", metavar="RUN", help="run or snapshot to take as teacher instead of training one"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="change a setting, such as distill.lr=1e-4; may be repeated",
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options that training commands share."""
    add_settings(parser)
    parser.add_argument("-o", "--out", metavar="FOLDER", help="study folder (default: runs/<name>)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the settings and the networks' sizes, and leave"
    )
    parser.add_argument(
        "--one-step",
        action="store_true",
        help="take one real step on generated images, print its time and memory, and leave",
    )
    parser.add_argument("--step-batch", type=int, default=2, help="images of that one step")
    add_running(parser)
    add_json(parser)


def settings_of(args: argparse.Namespace) -> StudyConfig:
    """Settings of the preset or file with the changes of the options."""
    from featlens_trainers.presets import overrides_of, resolve_study

    changes = overrides_of(args.changes)
    for key, given in (("data", args.data), ("pretrained", args.teacher)):
        if given:
            changes[key] = given
    return resolve_study(args.preset, overrides=changes)


def run(args: argparse.Namespace) -> int:
    """Train or continue."""
    init = "teacher" if args.what == "teacher" else args.what
    return run_jobs_of(args, {"inits": (init,)}, args.what)


def run_jobs_of(args: argparse.Namespace, design: dict[str, tuple[object, ...]], name: str) -> int:
    """Do one job of a study (and what it needs) in its folder, and print what the run found."""
    import dataclasses
    import json

    from featlens_trainers.cli.running import engine_of
    from featlens_trainers.runs import read_run
    from featlens_trainers.stopping import stoppable
    from featlens_trainers.study import Study

    config = settings_of(args)
    folder = Path(args.out or Path("runs") / Path(args.preset).stem)
    if (folder / "study.toml").exists():
        # The folder's own settings hold; only its list of students is widened for this call.
        there = Study.open(folder).config
        same = {key: getattr(there, key) for key in DESIGN}
        Study.open(folder, dataclasses.replace(config, **same))
        # The checks only look on, and no result depends on them: those of this call hold.
        config = dataclasses.replace(there, diagnostics=config.diagnostics)
    else:
        Study.open(folder, config)
    config = dataclasses.replace(config, **design)  # type: ignore[arg-type]
    if args.dry_run or args.one_step:
        return _look(args, config, folder / name)
    # Not through open: the design of this call is not that of the study.
    study = Study(folder, config)
    with stoppable(), engine_of(args) as engine:
        study.run_only([name], engine)
    if engine.main:
        record = read_run(folder / name) or {}
        print(json.dumps(record) if args.json else _lines(record, folder / name))  # noqa: T201
    return 0


DESIGN = ("inits", "ratio_inits", "divergences", "seeds")


def _look(args: argparse.Namespace, config: StudyConfig, folder: Path) -> int:
    """Print settings and sizes; with --one-step also what a step takes."""
    import json

    import tomli_w

    from featlens_trainers.cli.running import engine_of
    from featlens_trainers.config import to_mapping
    from featlens_trainers.rehearsal import one_step, sizes

    found: dict[str, Any] = {"folder": str(folder), "sizes": sizes(config)}
    if args.one_step:
        with engine_of(args) as engine:
            found["step"] = one_step(config, args.step_batch, engine)
    if args.json:
        print(json.dumps(found | {"config": to_mapping(config)}, indent=2))  # noqa: T201
        return 0
    if args.dry_run:
        print(tomli_w.dumps(to_mapping(config)))  # noqa: T201
    print(f"# folder {folder}")  # noqa: T201
    for network, count in found["sizes"].items():
        print(f"# {network}: {count:,} parameters")  # noqa: T201
    for what, step in found.get("step", {}).items():
        print(  # noqa: T201
            f"# one step of the {what}, {step['batch']} images: {step['seconds']:.2f} s, "
            f"loss {step['loss']:.4g}, peak memory {step['memory_mb']:,.0f} MB"
        )
    return 0


def _lines(record: dict[str, object], folder: object) -> str:
    info = record.get("info")
    quality = info.get("quality", {}) if isinstance(info, dict) else {}
    named = quality if "heun" in quality else ({"one_step": quality} if quality else {})
    lines = [
        f"{name}: Frechet {entry['frechet']:.4f}, KID {entry['kid']:.4f}" for name, entry in named.items()
    ]
    return "\n".join([*lines, str(folder)])
