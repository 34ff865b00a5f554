"""Distil a one-step student from a chosen initialisation, in a study's folder.

Without the teacher's score (divergences of a ratio network), or with it (the rivals diff_instruct, sid,
dmd2). What the initialisation needs (teacher, controls, the classifier that measures quality) is trained
first if it is not there. Continues where it was interrupted; SIGTERM saves the state and ends with exit
code 0.

  featlens distill digits --init features_only --ratio-init random --student-seed 0
  featlens distill digits --init decoder_only --loss js
  featlens distill digits --loss sid --ratio-init teacher --set distill.lr=1e-5
"""

from __future__ import annotations

import argparse

from featlens_trainers.cli.train import add_common, add_preset, run_jobs_of, settings_of

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_preset(parser)
    parser.add_argument(
        "--init",
        default="teacher",
        help="teacher, random, features_only, single_sigma, map_regressed, prior_only, decoder_only, "
        "resolution:16, ... or a name of the settings' own (docs: initialise)",
    )
    parser.add_argument(
        "--ratio-init",
        default="random",
        help="ratio network: teacher (its encoder) or random (default); fake score of a rival: teacher, as "
        "their authors do, or random",
    )
    parser.add_argument(
        "--loss",
        "--divergence",
        dest="loss",
        metavar="NAME",
        help="reverse_kl, forward_kl, js, softened_reverse_kl, jeffreys, hellinger, python:module:function, "
        "or diff_instruct, sid, dmd2 (default: the first of the settings)",
    )
    parser.add_argument("--student-seed", type=int, default=0, help="seed of weights, data order and noise")
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Distil or continue."""
    from featlens_trainers.tasks import StudentSpec

    config = settings_of(args)
    config.initialisation(args.init, args.ratio_init)
    loss = args.loss or config.divergences[0]
    config.loss(loss)
    spec = StudentSpec(args.init, args.ratio_init, loss, args.student_seed)
    design: dict[str, tuple[object, ...]] = {
        "inits": (args.init,),
        "ratio_inits": (args.ratio_init,),
        "divergences": (loss,),
        "seeds": (args.student_seed,),
    }
    return run_jobs_of(args, design, spec.name)
