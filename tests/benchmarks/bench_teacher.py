"""Images a second of our teacher training beside the plain eager float32 loop, in one process, in turn.

    python -m tests.benchmarks.bench_teacher [--sizes digits small] [--rounds 5] [--threads 1 2] [--compile]

Plain: the loop as one writes it from the paper, with torch alone: shuffled rows, lognormal sigma, EDM loss,
Adam, an exponential moving average. Ours: ``train_teacher`` with an ``Engine``. Both train the same network
on the same images; rounds alternate, and medians are compared: by the clock and, since other programs may
hold the processor meanwhile, by the processor time of this one. Engine options are tried one by one.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch

from featlens.denoiser import EDMDenoiser
from featlens_trainers import TeacherConfig, UNetConfig, build_denoiser, start_teacher, train_teacher
from featlens_trainers.engine import Engine

SIZES = {
    "digits": (UNetConfig(), 64, 20),
    "small": (
        UNetConfig(
            resolution=32,
            in_channels=3,
            out_channels=3,
            channels=32,
            channel_mult=(1, 2, 2),
            attention_resolutions=(8,),
        ),
        16,
        4,
    ),
    "cifar": (
        UNetConfig(
            resolution=32,
            in_channels=3,
            out_channels=3,
            channels=128,
            channel_mult=(2, 2, 2),
            blocks=4,
            attention_resolutions=(16,),
            dropout=0.13,
        ),
        128,
        10,
    ),
}
"""By name: the network, images a batch, and batches a round."""


def wait(device: str) -> float:
    """The time, once the device has done everything."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def plain_loop(
    denoiser: EDMDenoiser, data: torch.Tensor, batch: int, lr: float = 2e-3
) -> Callable[[int], None]:
    """The textbook loop; returns what makes so many steps."""
    device = data.device
    net, s = denoiser.network.train(), denoiser.sigma_data
    ema = copy.deepcopy(net).eval()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)

    def steps(count: int) -> None:
        for _ in range(count):
            x0 = data[torch.randint(len(data), (batch,), device=device)]
            sigma = (torch.randn(batch, 1, 1, 1, device=device) * 1.2 - 1.2).exp()
            weight = (sigma**2 + s**2) / (sigma * s) ** 2
            x = x0 + sigma * torch.randn_like(x0)
            c_skip = s**2 / (sigma**2 + s**2)
            c_out = sigma * s / (sigma**2 + s**2).sqrt()
            c_in = 1 / (sigma**2 + s**2).sqrt()
            estimate = c_skip * x + c_out * net(c_in * x, sigma.flatten().log() / 4)
            loss = (weight * (estimate - x0) ** 2).flatten(1).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            with torch.no_grad():
                for mean, now in zip(ema.parameters(), net.parameters(), strict=True):
                    mean.mul_(0.999).add_(now, alpha=0.001)

    return steps


def our_loop(denoiser: EDMDenoiser, data: torch.Tensor, batch: int, engine: Engine) -> Callable[[int], None]:
    """``train_teacher``; returns what makes so many steps."""
    config = TeacherConfig(images=10**9, batch=batch, decay=False)
    training = start_teacher(denoiser, config)
    loop = train_teacher(training, data, config, seed=0, engine=engine)

    def steps(count: int) -> None:
        for _ in range(count):
            next(loop)

    return steps


def engines(args: argparse.Namespace) -> dict[str, Engine]:
    """Engines to try, by what they are."""
    out = {
        "plain engine": Engine(args.device),
        "channels_last": Engine(args.device, channels_last=True),
    }
    if args.bfloat16:
        out["bfloat16"] = Engine(args.device, precision="bfloat16")
        out["bfloat16, channels_last"] = Engine(args.device, precision="bfloat16", channels_last=True)
    if args.compile:
        out["compile"] = Engine(args.device, compile=True)
        out["compile, channels_last"] = Engine(args.device, compile=True, channels_last=True)
        if args.bfloat16:
            out["compile, bfloat16"] = Engine(args.device, compile=True, precision="bfloat16")
    return out


def measure(size: str, args: argparse.Namespace) -> None:
    """Run all loops of one size in turn and print."""
    network, batch, count = SIZES[size]
    shape = (network.in_channels, network.resolution, network.resolution)
    data = torch.rand(2048, *shape, generator=torch.Generator().manual_seed(0)).to(args.device) * 2 - 1

    def fresh() -> EDMDenoiser:
        return build_denoiser(network, 0.5, 0).to(args.device)

    loops = {"plain loop": plain_loop(fresh(), data, batch)}
    loops |= {name: our_loop(fresh(), data, batch, engine) for name, engine in engines(args).items()}
    wall: dict[str, list[float]] = {name: [] for name in loops}
    processor: dict[str, list[float]] = {name: [] for name in loops}
    for steps in loops.values():
        steps(2)
    for turn in range(args.rounds):
        names = list(loops) if turn % 2 == 0 else list(reversed(loops))
        for name in names:
            busy, start = time.process_time(), wait(args.device)
            loops[name](count)
            wall[name].append(wait(args.device) - start)
            processor[name].append(time.process_time() - busy)
    parameters = sum(p.numel() for p in fresh().parameters())
    print(f"{size}: {parameters:,} parameters, batch {batch}, {torch.get_num_threads()} threads")
    for name in loops:
        ratios = [a / b for a, b in zip(wall["plain loop"], wall[name], strict=True)]
        busy = statistics.median(processor["plain loop"]) / statistics.median(processor[name])
        print(
            f"  {name:<26} {count * batch / statistics.median(wall[name]):9.0f} images/s, "
            f"{statistics.median(ratios):.2f} x plain (rounds {min(ratios):.2f} to {max(ratios):.2f}), "
            f"by processor time {busy:.2f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", nargs="+", default=["digits", "small"], choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bfloat16", action="store_true")
    args = parser.parse_args()
    for threads in args.threads:
        torch.set_num_threads(threads)
        for size in args.sizes:
            measure(size, args)


if __name__ == "__main__":
    main()
