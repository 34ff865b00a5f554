"""Frechet distance and KID of a run's images to the held-out images.

Both are measured in the features of the study's own classifier and depend on the number of images.

  featlens evaluate runs/digits/student-teacher-random-reverse_kl-s0
"""

from __future__ import annotations

import argparse
from pathlib import Path

from featlens_trainers.cli.sample import add_sampling

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "run", metavar="RUN", help="folder of a teacher, control or student inside a study's folder"
    )
    parser.add_argument(
        "--n", type=int, default=1000, help="number of generated images (distances depend on it)"
    )
    add_sampling(parser)


def run(args: argparse.Namespace) -> int:
    """Sample, measure, print."""
    import json

    import torch

    from featlens import SampleSet
    from featlens.cli.extract import check_device
    from featlens.errors import UsageError
    from featlens_trainers.classifier import features_of
    from featlens_trainers.cli.sample import sampler_of
    from featlens_trainers.quality import quality
    from featlens_trainers.sampler import generate
    from featlens_trainers.tasks import load_classifier

    if args.n < 2 or args.steps < 1:
        raise UsageError(f"--n must be at least 2 and --steps at least 1, got {args.n} and {args.steps}")
    check_device(args.device)
    folder = Path(args.run)
    sampler, shape, evaluations = sampler_of(folder, args.steps, args.device)
    classifier, about = load_classifier(folder.resolve().parent, args.device)
    held = SampleSet.load(str(about["data"]), split="held-out")
    images = generate(sampler, args.n, shape, args.seed, device=args.device)
    found = quality(features_of(classifier, images), features_of(classifier, torch.from_numpy(held.images)))
    card = {**found.to_dict(), "run": args.run, "seed": args.seed, "network_evaluations": evaluations}
    if args.json:
        print(json.dumps(card))  # noqa: T201
    else:
        print(  # noqa: T201
            f"Frechet {found.frechet:.4f}, KID {found.kid:.4f} ({found.generated} images, {evaluations} "
            f"evaluations each, against {found.reference} held-out images)"
        )
    return 0
