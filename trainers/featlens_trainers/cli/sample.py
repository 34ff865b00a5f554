"""Draw images from a model: one step for a student, Heun's method for a teacher.

RUN is the folder of a run, one of its snapshots, or any model that featlens loads. Image i depends on
(--seed, i) only, whatever --n. Conditional models draw every class equally often. With --best-of K the
student's ratio network chooses each image among K candidates.

  featlens sample runs/digits/teacher -o teacher.png
  featlens sample runs/digits/student-teacher-random-reverse_kl-s0 --n 256 -o images.npy
  featlens sample runs/digits/student-teacher-random-reverse_kl-s0 --best-of 4 -o best.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from featlens.cli.parser import add_json, number_list

if TYPE_CHECKING:
    from featlens_trainers.evaluation.models import Generator
    from featlens_trainers.settings import BestOfConfig

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN", help="folder of a teacher, control or student, or any model")
    parser.add_argument(
        "-o", "--out", metavar="FILE", required=True, help=".png (a grid) or .npy (N, C, H, W) in [-1, 1]"
    )
    parser.add_argument("--n", type=int, default=64, help="number of images")
    parser.add_argument(
        "--best-of", type=int, default=1, metavar="K", help="candidates an image, of which one is kept"
    )
    add_sampling(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options of commands that draw images."""
    parser.add_argument("--seed", type=int, default=0, help="seed of the latents")
    parser.add_argument(
        "--steps", type=int, default=18, help="Heun steps of a teacher; 1 for its one-step map"
    )
    parser.add_argument(
        "--sigma-init", type=float, help="noise level of the one-step map (default: the model's own)"
    )
    parser.add_argument("--label", type=int, help="the one class to draw (default: all equally often)")
    parser.add_argument(
        "--best-of-sigmas",
        type=number_list(float),
        metavar="SIGMAS",
        help="noise levels at which the ratio network ranks, by commas (default 0.2)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Sample and write."""
    import io
    import json

    import numpy as np
    import torch

    from featlens.cli.extract import check_device
    from featlens.errors import UsageError
    from featlens.files import make_folder, write_bytes
    from featlens.report.page import png
    from featlens_trainers.study_report import grid

    suffix = Path(args.out).suffix
    if suffix not in (".png", ".npy"):
        raise UsageError(f"-o {args.out}: expected a name that ends in .png or .npy")
    if args.n < 1 or args.steps < 1 or args.best_of < 1:
        raise UsageError(
            f"--n and --steps must be at least 1, got {args.n} and {args.steps}"
            if args.best_of >= 1
            else f"--best-of must be at least 1, got {args.best_of}"
        )
    check_device(args.device)
    generator = generator_of(args, args.best_of)
    k = args.best_of
    parts = [images[k] for _, images in generator.batches(args.n, args.seed, (k,))]
    images = torch.cat(parts).numpy()
    make_folder(Path(args.out).parent)
    if suffix == ".png":
        write_bytes(args.out, png(grid(images)))
    else:
        buffer = io.BytesIO()
        np.save(buffer, images, allow_pickle=False)
        write_bytes(args.out, buffer.getvalue())
    said = {"file": args.out, "n": args.n, "seed": args.seed}
    said |= {"network_evaluations": k * generator.evaluations}
    said |= {"best_of": k} if k > 1 else {}
    print(json.dumps(said) if args.json else args.out)  # noqa: T201
    return 0


def generator_of(args: argparse.Namespace, most: int) -> Generator:
    """The model of RUN as the options want it sampled, with up to ``most`` candidates an image."""
    import math

    from featlens.errors import UsageError
    from featlens_trainers.evaluation.models import open_model

    level = args.sigma_init
    if level is not None and not 0 < level < math.inf:
        raise UsageError(f"--sigma-init must be a number above 0, got {level}")
    config = best_of_config(args)
    generator = open_model(args.run, args.steps, args.device, level).drawing(args.label)
    return generator.choosing(config, args.seed) if most > 1 else generator


def best_of_config(args: argparse.Namespace) -> BestOfConfig:
    """How candidates are ranked."""
    from featlens_trainers.settings import BestOfConfig

    return BestOfConfig() if args.best_of_sigmas is None else BestOfConfig(tuple(args.best_of_sigmas))
