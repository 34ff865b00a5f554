"""What capturing, reducing and storing 20 sites of a CIFAR-size U-Net costs beside the bare forward pass.

    python -m tests.benchmarks.bench_capture [--device cuda] [--images 8] [--batch 8] [--rounds 3]

Bare: the network on inputs that lie ready, nothing else. Ours: ``featlens.extract``, noise drawing,
reduction, copies and writing included, from the end of the first noise level (what comes before happens once
a file) until the file is closed. Both do the same number of images in turn; medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import featlens as fl
from featlens.denoiser import EDMDenoiser
from featlens_trainers.networks.unet import UNet, UNetConfig

CIFAR = UNetConfig(
    resolution=32,
    in_channels=3,
    out_channels=3,
    channels=128,
    channel_mult=(2, 2, 2),
    blocks=4,
    attention_resolutions=(16,),
    augment_labels=9,
    dropout=0.13,
)
GOAL = 1.05
SITES = 20
LEVELS = [0.1, 0.5, 1.0, 2.5]


def chosen_sites(model: EDMDenoiser) -> list[str]:
    """Twenty blocks from the first to the last of the network."""
    ran = [site for site in fl.sites(model, ["enc.*", "dec.*"]) if site.order is not None]
    return [ran[round(index * (len(ran) - 1) / (SITES - 1))].name for index in range(SITES)]


def wait(device: str) -> float:
    """The time, once the device has done everything."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def bare(model: EDMDenoiser, samples: fl.SampleSet, batch: int, device: str) -> float:
    """Seconds of the forward passes on all noise levels but the first."""
    inputs = [
        (torch.from_numpy(samples.noised(sigma, slice(at, at + batch))).to(device), sigma)
        for sigma in LEVELS[1:]
        for at in range(0, len(samples), batch)
    ]
    start = wait(device)
    with torch.no_grad():
        for x, sigma in inputs:
            model(x, torch.full((len(x),), sigma, device=device))
    return wait(device) - start


def ours(
    model: EDMDenoiser, samples: fl.SampleSet, batch: int, device: str, sites: list[str], reduce: str
) -> float:
    """Seconds of the extraction of all noise levels but the first."""
    stamps: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "features.h5"

        def told(done: int, total: int) -> None:
            if done == len(samples):
                stamps.append(wait(device))

        fl.extract(model, samples, LEVELS, sites, out, reduce, batch, device, progress=told).close()
        return wait(device) - stamps[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reduce", nargs="+", default=["gap", "grid(2)", "project(256)"])
    args = parser.parse_args()
    torch.manual_seed(0)
    model = EDMDenoiser(UNet(CIFAR), (3, 32, 32)).to(args.device).eval()
    images = np.random.default_rng(0).uniform(-1, 1, (args.images, 3, 32, 32)).astype(np.float32)
    samples = fl.SampleSet.from_arrays(images)
    sites = chosen_sites(model)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"U-Net of {count:,} parameters, {SITES} sites from {sites[0]} to {sites[-1]}, {args.device},")
    work = f"{args.images} images x {len(LEVELS) - 1} noise levels, batch {args.batch}"
    print(f"{work}, {torch.get_num_threads()} threads")
    bare(model, samples, args.batch, args.device)
    for reduce in args.reduce:
        times: dict[str, list[float]] = {"bare": [], "ours": []}
        for turn in range(args.rounds):
            order = ["bare", "ours"] if turn % 2 == 0 else ["ours", "bare"]
            for name in order:
                times[name].append(
                    bare(model, samples, args.batch, args.device)
                    if name == "bare"
                    else ours(model, samples, args.batch, args.device, sites, reduce)
                )
        ratios = [b / a for a, b in zip(times["bare"], times["ours"], strict=True)]
        medians = {name: statistics.median(found) for name, found in times.items()}
        print(
            f"  {reduce:<13} bare {medians['bare']:7.2f} s, ours {medians['ours']:7.2f} s: ratio of medians "
            f"{medians['ours'] / medians['bare']:.3f}, rounds {min(ratios):.3f} to {max(ratios):.3f}"
        )
    print(f"goal: at most {GOAL}")


if __name__ == "__main__":
    main()
