"""Convert a network: a .pkl of EDM to a run of ours, a run to a folder of diffusers, and back.

What IN is is told by what is in it. A .pkl is read without running any of its code. OUT is written whole or
not at all, and is never replaced unless --force is given and a conversion wrote it.

  featlens convert edm-cifar10-32x32-uncond-vp.pkl runs/edm-cifar10
  featlens convert runs/digits/teacher models/digits-teacher
  featlens convert models/digits-teacher runs/teacher-again
"""

from __future__ import annotations

import argparse

from featlens.cli.parser import add_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="IN", help=".pkl of EDM, run, snapshot, or a converted folder")
    parser.add_argument("out", metavar="OUT", help="folder to make")
    parser.add_argument(
        "--to",
        choices=("run", "diffusers"),
        help="what to write (default: diffusers for a run, run for anything else)",
    )
    parser.add_argument(
        "--sigma-init",
        type=float,
        metavar="SIGMA",
        help="noise level of one-step generation; a .pkl for which it is given is taken for a student",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier conversion at OUT")
    parser.add_argument("--dry-run", action="store_true", help="read and check IN, say what would be written")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Convert."""
    import json

    from featlens_trainers.convert import plan_conversion

    plan = plan_conversion(args.source, args.out, args.to, args.sigma_init, args.force)
    facts = plan.facts()
    facts["files"] = [] if args.dry_run else plan.write()
    if args.json:
        print(json.dumps(facts))  # noqa: T201
        return 0
    what = {"edm": "network of EDM", "run": "run", "diffusers": "folder of diffusers"}
    said = "would become" if args.dry_run else "became"
    print(  # noqa: T201
        f"{what[facts['found']]}, {facts['parameters']:,} parameters in {facts['tensors']} tensors, digest "
        f"{facts['digest']}, {said} a {what[facts['form']]}"
    )
    print(facts["out"])  # noqa: T201
    return 0
