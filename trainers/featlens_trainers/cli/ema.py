"""Reconstruct a weight average of another width from a run's snapshots, after training.

The run has to have kept snapshots of two power-function averages (teacher.ema_powers, snapshot_images). The
result is a snapshot that sample, evaluate, extract and distill --teacher take.

  featlens ema runs/cifar10/teacher --std 0.12 -o ema-0.12.safetensors
"""

from __future__ import annotations

import argparse

from featlens.cli.parser import add_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN", help="folder of a teacher or student")
    parser.add_argument(
        "--std", type=float, required=True, help="relative width of the average, such as 0.05 or 0.15"
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="end of the average, that of a snapshot (default: the last)"
    )
    parser.add_argument("-o", "--out", metavar="FILE.safetensors", required=True, help="where to write")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Reconstruct and write."""
    import json
    from pathlib import Path

    from featlens.errors import UsageError
    from featlens.files import make_folder
    from featlens_trainers.posthoc import write_posthoc

    if Path(args.out).suffix != ".safetensors":
        raise UsageError(f"-o {args.out}: expected a name that ends in .safetensors")
    if not Path(args.run).is_dir():
        raise UsageError(f"no run at {args.run}; give the folder of a teacher or student")
    make_folder(Path(args.out).parent)
    about = write_posthoc(args.run, args.std, args.out, args.images)
    said = {"file": args.out, "run": args.run, "std": args.std, "images": about.get("images")}
    print(json.dumps(said) if args.json else args.out)  # noqa: T201
    return 0
