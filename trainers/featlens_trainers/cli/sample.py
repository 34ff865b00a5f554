"""Draw images from a run: one step for a student, Heun's method for a teacher.

Image i depends on (--seed, i) only, whatever --n.

  featlens sample runs/digits/teacher -o teacher.png
  featlens sample runs/digits/student-teacher-random-reverse_kl-s0 --n 256 -o images.npy
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featlens.cli.parser import add_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN", help="folder of a teacher, control or student")
    parser.add_argument(
        "-o", "--out", metavar="FILE", required=True, help=".png (a grid) or .npy (N, C, H, W) in [-1, 1]"
    )
    parser.add_argument("--n", type=int, default=64, help="number of images")
    add_sampling(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options of commands that draw images."""
    parser.add_argument("--seed", type=int, default=0, help="seed of the latents")
    parser.add_argument(
        "--steps", type=int, default=18, help="Heun steps of a teacher; 1 for its one-step map"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Sample and write."""
    import io
    import json

    import numpy as np

    from featlens.cli.extract import check_device
    from featlens.errors import UsageError
    from featlens.files import make_folder, write_bytes
    from featlens.report.page import png
    from featlens_trainers.sampler import generate
    from featlens_trainers.study_report import grid

    suffix = Path(args.out).suffix
    if suffix not in (".png", ".npy"):
        raise UsageError(f"-o {args.out}: expected a name that ends in .png or .npy")
    if args.n < 1 or args.steps < 1:
        raise UsageError(f"--n and --steps must be at least 1, got {args.n} and {args.steps}")
    check_device(args.device)
    sampler, shape, evaluations = sampler_of(Path(args.run), args.steps, args.device)
    images = generate(sampler, args.n, shape, args.seed, device=args.device).numpy()
    make_folder(Path(args.out).parent)
    if suffix == ".png":
        write_bytes(args.out, png(grid(images)))
    else:
        buffer = io.BytesIO()
        np.save(buffer, images, allow_pickle=False)
        write_bytes(args.out, buffer.getvalue())
    said = {"file": args.out, "n": args.n, "seed": args.seed, "network_evaluations": evaluations}
    print(json.dumps(said) if args.json else args.out)  # noqa: T201
    return 0


def sampler_of(
    folder: Path, steps: int, device: str
) -> tuple[Callable[[Tensor], Tensor], tuple[int, ...], int]:
    """Sampler of a run, the shape of its images, and network evaluations an image."""
    from featlens.errors import UsageError
    from featlens_trainers.runs import newest_snapshot, read_run
    from featlens_trainers.sampler import OneStepGenerator, heun_sample
    from featlens_trainers.snapshots import load_denoiser

    record: dict[str, Any] | None = read_run(folder)
    if record is None:
        raise UsageError(f"{folder} is not a run (no run.json); give the folder of a teacher or student")
    denoiser, about = load_denoiser(newest_snapshot(folder), device)
    if record["kind"] != "teacher" or steps == 1:
        return OneStepGenerator(denoiser, float(about["sigma_init"])).eval(), denoiser.sample_shape, 1
    return lambda z: heun_sample(denoiser, z, steps=steps), denoiser.sample_shape, 2 * steps - 1
