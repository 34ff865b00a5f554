"""Distil a one-step student without the teacher's score, from a chosen initialisation, in a study's folder.

What the initialisation needs (teacher, controls, the classifier that measures quality) is trained first if it
is not there. Continues where it was interrupted.

  featlens distill digits --init features_only --ratio-init random --student-seed 0
"""

from __future__ import annotations

import argparse

from featlens_trainers.cli.train import add_common, run_jobs_of

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("preset", metavar="PRESET|FILE.toml", help="preset (digits) or file of settings")
    parser.add_argument(
        "--init",
        default="teacher",
        help="teacher, features_only, single_sigma, map_regressed, prior_only or random",
    )
    parser.add_argument(
        "--ratio-init", default="random", help="ratio network: teacher (its encoder) or random"
    )
    parser.add_argument("--divergence", help="reverse_kl or js (default: the first of the settings)")
    parser.add_argument("--student-seed", type=int, default=0, help="seed of weights, data order and noise")
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Distil or continue."""
    from featlens_trainers.presets import resolve_study
    from featlens_trainers.settings import InitSpec
    from featlens_trainers.tasks import StudentSpec

    InitSpec(args.init, args.ratio_init)
    divergence = args.divergence or resolve_study(args.preset).divergences[0]
    spec = StudentSpec(args.init, args.ratio_init, divergence, args.student_seed)
    design: dict[str, tuple[object, ...]] = {
        "inits": (args.init,),
        "ratio_inits": (args.ratio_init,),
        "divergences": (divergence,),
        "seeds": (args.student_seed,),
    }
    return run_jobs_of(args, design, spec.name)
