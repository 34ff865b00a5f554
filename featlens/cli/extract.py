r"""Store the activations of a model on noised samples in one HDF5 file.

MODEL is a run folder of ours (runs/digits/teacher), one of its snapshots, a diffusers folder, or
python:module:function for a function that returns a denoiser, with options as in
python:module:function:width=32. The noise of a sample depends only on (--seed, sample, sigma), so files of
two models made with the same --samples, --split, --n and --seed can be compared row by row. An interrupted
extraction is finished by the same command.

  featlens extract runs/digits/teacher -o teacher.h5 --sites 'enc.*' --sigmas 0.05,0.5,2.5
  featlens extract runs/digits/teacher -o teacher.h5 --sites 'type:Conv2d,re:.*norm\d' --dry-run
  torchrun --nproc-per-node 2 -m featlens extract runs/digits/teacher -o teacher.h5
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featlens.cli.parser import add_json, number_list, selection_list, size

if TYPE_CHECKING:
    from featlens.denoiser import Denoiser
    from featlens.samples import SampleSet

__all__ = ["add_arguments", "run"]

SIGMAS = [0.05, 0.2, 0.5, 1.0, 2.5]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="MODEL", help="run folder, snapshot, or python:module:function")
    parser.add_argument("-o", "--out", metavar="FILE.h5", required=True, help="feature file to write")
    _add_samples(parser)
    sites = parser.add_argument_group("what is looked at")
    sites.add_argument(
        "--sites",
        type=selection_list,
        help="by commas: globs of module paths, re:REGEX, type:CLASS, index:N; @in for inputs, [key] inside "
        "outputs (default: the blocks one level down, '*.*')",
    )
    sites.add_argument(
        "--reduce",
        default="gap",
        help="gap (mean over positions, the default), tokens, flatten, grid(k), or project(d) (random "
        "projection to d features)",
    )
    sites.add_argument(
        "--halves",
        type=number_list(str),
        default=[],
        help="names of the parts of the batch of a model that doubles it, such as uncond,cond",
    )
    sites.add_argument(
        "--dtype", default="float32", choices=("float32", "float16"), help="type of the stored features"
    )
    sites.add_argument("--compress", action="store_true", help="compress the finished file without loss")
    how = parser.add_argument_group("how it runs")
    how.add_argument("--batch", type=int, default=128, help="images a forward pass")
    how.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    how.add_argument("--precision", choices=("bfloat16", "float16"), help="autocast the forward pass")
    how.add_argument(
        "--warn-size", type=size, default=10e9, help="warn above this size, such as 500MB (default 10GB)"
    )
    how.add_argument(
        "--dry-run", action="store_true", help="print sites, shapes, bytes and the time of a batch, and leave"
    )
    add_json(parser)


def _add_samples(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("samples")
    group.add_argument(
        "--samples",
        default="digits",
        help="digits, shapes16, shapes32, shapes64, noise (latents alone), hf:NAME for a data set of the "
        "datasets package, or a path: folder of images, .npy, .npz, .h5, CIFAR-10 binary archive, zip with "
        "dataset.json",
    )
    group.add_argument(
        "--split",
        help="train, held-out or all (default: of digits held-out, of shapes train, which have no end and "
        "so no all, else all); the held-out images of CIFAR-10 are its test images",
    )
    group.add_argument(
        "--n", "-n", type=int, help="number of samples (default: all of the split); -n under torchrun"
    )
    group.add_argument("--seed", type=int, default=0, help="seed of the noise and of the draw of --n")
    group.add_argument(
        "--values", help="range of float images: [-1,1] (default), [0,1], or any for latents of autoencoders"
    )
    group.add_argument(
        "--inputs",
        default="noised",
        choices=("noised", "latents"),
        help="noised: x0 + sigma * eps; latents: sigma * eps, what a one-step generator starts from",
    )
    group.add_argument(
        "--sigmas",
        type=number_list(float),
        help="noise levels, by commas (default 0.05,0.2,0.5,1,2.5; with latents the model's sigma_init)",
    )
    group.add_argument(
        "--labels",
        default="given",
        choices=("given", "none", "both"),
        help="conditional models: labels of the samples, none, or both kept apart as @cond and @uncond",
    )


def run(args: argparse.Namespace) -> int:
    """Extract, or say what would be extracted."""
    import json

    from featlens.adapters import load
    from featlens.errors import UsageError
    from featlens.extraction import extract
    from featlens.files import make_folder

    if args.batch < 1:
        raise UsageError(f"--batch must be at least 1, got {args.batch}")
    device = local_device(args.device)
    check_device(device)
    model = load(args.model, device)
    samples = _samples(args, model)
    options = _options(args, model)
    if args.dry_run:
        return _dry_run(args, model, samples, {**options, "device": device})
    make_folder(Path(args.out).parent)
    with one_line_warnings("extract"), _bar(f"extract {args.model}") as update:
        store = extract(
            model,
            samples,
            out=args.out,
            device=device,
            name=args.model,
            progress=update,
            compress=args.compress,
            warn_bytes=args.warn_size,
            distributed=True,
            **options,
        )
    with store:
        if is_first() and args.json:
            found = {"file": args.out, "sites": list(store.sites), "n": len(store), **store.manifest}
            print(json.dumps(found))  # noqa: T201
        elif is_first():
            shape = f"{len(store.sites)} sites x {len(store.sigmas)} sigmas x {len(store)} samples"
            print(shape, file=sys.stderr)  # noqa: T201
            print(args.out)  # noqa: T201
    return 0


def _samples(args: argparse.Namespace, model: Denoiser) -> SampleSet:
    import numpy as np

    from featlens.errors import UsageError
    from featlens.samples import SampleSet

    if args.samples == "noise":
        if args.inputs != "latents" or args.n is None:
            raise UsageError("--samples noise has no images: give --inputs latents and --n")
        labels = np.arange(args.n) % model.num_labels if model.num_labels else None
        return SampleSet.noise_only(args.n, tuple(model.sample_shape), args.seed, labels)
    split = args.split or ("held-out" if args.samples == "digits" else None)
    with _bar(f"read {args.samples}", "images") as update:
        return SampleSet.load(args.samples, args.n, args.seed, split, args.values, update)


def is_first() -> bool:
    """Whether this process speaks for all of its launcher."""
    return int(os.environ.get("RANK", "0")) == 0


def _bar(stage: str, unit: str = "rows") -> contextlib.AbstractContextManager[Any]:
    from featlens.cli.progress import progress_bar

    return progress_bar(stage, unit) if is_first() else contextlib.nullcontext(None)


def _options(args: argparse.Namespace, model: Denoiser) -> dict[str, Any]:
    own = args.inputs == "latents" and getattr(model, "sigma_init", None) is not None
    return {
        "sigmas": args.sigmas if args.sigmas or own else SIGMAS,
        "sites": args.sites,
        "reduce": args.reduce,
        "batch": args.batch,
        "inputs": args.inputs,
        "labels": args.labels,
        "halves": args.halves,
        "dtype": args.dtype,
        "precision": args.precision,
    }


def _dry_run(args: argparse.Namespace, model: Denoiser, samples: SampleSet, options: dict[str, Any]) -> int:
    import json

    from featlens.extraction import plan_extraction

    plan = plan_extraction(model, samples, **options)
    if args.json:
        request = {key: value for key, value in vars(args).items() if key not in ("json", "debug", "dry_run")}
        known = {"n": len(samples), "sample_digest": samples.digest, "sigmas": list(plan.sigmas)}
        print(json.dumps({**request, **known, "plan": plan.as_dict()}, indent=2))  # noqa: T201
    else:
        print(plan)  # noqa: T201
    if plan.bytes > args.warn_size:
        _warn("extract", f"the file would be larger than --warn-size, {args.warn_size:,.0f} bytes")
    return 0


@contextlib.contextmanager
def one_line_warnings(command: str) -> Iterator[None]:
    """Warnings of the work as one line each on stderr."""
    from featlens.errors import FeatlensWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", FeatlensWarning)
        show: Callable[..., None] = lambda message, *rest: _warn(command, str(message))  # noqa: E731
        warnings.showwarning = show
        yield


def _warn(command: str, text: str) -> None:
    print(f"featlens {command}: warning: {' '.join(text.split())}", file=sys.stderr, flush=True)  # noqa: T201


def local_device(device: str) -> str:
    """``"cuda"`` as the device of this process where a launcher has numbered the processes of a machine."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if device == "cuda" and rank is not None else device


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
