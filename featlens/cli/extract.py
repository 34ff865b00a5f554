"""Store the activations of a model on noised samples in one HDF5 file.

MODEL is a run folder of ours (runs/digits/teacher), one of its snapshots, or python:module:function for a
function that returns a denoiser. The noise of a sample depends only on (--seed, sample, sigma), so files of
two models made with the same --samples, --split, --n and --seed can be compared row by row. An interrupted
extraction is finished by the same command.

  featlens extract runs/digits/teacher -o teacher.h5 --sites 'enc.*' --sigmas 0.05,0.5,2.5
"""

from __future__ import annotations

import argparse
import sys

from featlens.cli.parser import add_json, number_list

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="MODEL", help="run folder, snapshot, or python:module:function")
    parser.add_argument("-o", "--out", metavar="FILE.h5", required=True, help="feature file to write")
    parser.add_argument("--samples", default="digits", help="sample set (digits)")
    parser.add_argument("--split", default="held-out", help="held-out (default), train or all")
    parser.add_argument("--n", type=int, help="number of samples (default: all of the split)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise and of the draw of --n")
    parser.add_argument(
        "--sigmas",
        type=number_list(float),
        default=[0.05, 0.2, 0.5, 1.0, 2.5],
        help="noise levels, by commas",
    )
    parser.add_argument(
        "--sites", type=number_list(str), default=["*.*"], help="glob patterns of module paths, by commas"
    )
    parser.add_argument("--reduce", default="gap", help="gap (mean over positions), flatten, or grid(k)")
    parser.add_argument("--batch", type=int, default=128, help="images a forward pass")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--dry-run", action="store_true", help="print the request and leave")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Extract, or say what would be extracted."""
    import json

    from featlens.adapters import load
    from featlens.cli.progress import progress_bar
    from featlens.errors import UsageError
    from featlens.extraction import extract
    from featlens.files import make_folder
    from featlens.samples import SampleSet

    if args.batch < 1:
        raise UsageError(f"--batch must be at least 1, got {args.batch}")
    samples = SampleSet.load(args.samples, args.n, args.seed, args.split)
    if args.dry_run:
        request = {key: value for key, value in vars(args).items() if key not in ("json", "debug", "dry_run")}
        print(json.dumps({**request, "n": len(samples), "sample_digest": samples.digest}, indent=2))  # noqa: T201
        return 0
    check_device(args.device)
    model = load(args.model, args.device)
    from pathlib import Path

    make_folder(Path(args.out).parent)
    with progress_bar(f"extract {args.model}") as update:
        store = extract(
            model,
            samples,
            args.sigmas,
            args.sites,
            args.out,
            args.reduce,
            args.batch,
            args.device,
            name=args.model,
            progress=update,
        )
    with store:
        if args.json:
            found = {"file": args.out, "sites": list(store.sites), "n": len(store), **store.manifest}
            print(json.dumps(found))  # noqa: T201
        else:
            size = f"{len(store.sites)} sites x {len(store.sigmas)} sigmas x {len(store)} samples"
            print(size, file=sys.stderr)  # noqa: T201
            print(args.out)  # noqa: T201
    return 0


def check_device(device: str) -> None:
    """Refuse a device that this machine or this torch does not have."""
    import torch

    from featlens.errors import UsageError

    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = "unknown"
    if kind not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unknown device {device!r}: expected cpu, cuda, cuda:0, mps, ...")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda: this torch sees no CUDA device; use --device cpu, or install a CUDA build "
            "of torch"
        )
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {device}: there are only {torch.cuda.device_count()} CUDA devices")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: this torch sees no Metal device; use --device cpu")
