"""Options of training commands that say where and how they run."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from featlens.cli.parser import number_list

if TYPE_CHECKING:
    from featlens_trainers.engine import Engine

__all__ = ["add_running", "engine_of"]

LAUNCHED = {"no": "float32", "bf16": "bfloat16"}
"""What ``accelerate launch --mixed_precision`` says, in our words."""


def add_running(parser: argparse.ArgumentParser) -> None:
    """Declare the options that :func:`engine_of` reads."""
    group = parser.add_argument_group("how it runs")
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    group.add_argument("--precision", help="float32 (default) or bfloat16, for the networks")
    group.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="work through a batch in N parts (less memory)"
    )
    group.add_argument("--compile", action="store_true", help="compile the networks with torch.compile")
    group.add_argument(
        "--channels-last", action="store_true", help="lay convolutions out with the channels last"
    )
    group.add_argument("--threads", type=int, metavar="N", help="threads on the processor, a process")
    group.add_argument(
        "--tracker", type=number_list(str), default=[], help="also log to tensorboard, wandb, by commas"
    )


def engine_of(args: argparse.Namespace) -> Engine:
    """Engine that the options ask for; use it as a context manager."""
    from featlens_trainers.engine import make_engine

    return make_engine(
        args.device,
        precision=args.precision or _launched_precision(),
        accumulate=args.accumulate,
        compile=args.compile,
        channels_last=args.channels_last,
        threads=args.threads,
        trackers=tuple(args.tracker),
    )


def _launched_precision() -> str:
    """What ``accelerate launch`` or its configuration asks for, float32 without."""
    from featlens.errors import UsageError

    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if told not in LAUNCHED:
        raise UsageError(
            f"accelerate launch was told --mixed_precision {told}; featlens trains in float32 or bfloat16: "
            "say --mixed_precision bf16, or give --precision"
        )
    return LAUNCHED[told]
