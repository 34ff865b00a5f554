"""Time and peak memory of one training step: score-free distillation against Diff-Instruct, same backbone.

    python -m tests.benchmarks.bench_step [--size medium|cifar] [--batch 8] [--rounds 3] [--device cpu]

A step is one update of the critic and one of the generator, as ``distill`` makes them. Every method runs in a
process of its own; the processes take turns, round after round, so that a busy machine slows all alike. Time
is the median over all timed steps. Memory is what a process held at its peak beyond what it held before its
networks were built: teacher, weights, optimisers, averages and activations (on CUDA: the allocator's peak).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

from featlens_trainers import DistillConfig, build_denoiser, distill, start_distillation
from featlens_trainers.data import TensorData
from featlens_trainers.networks import RatioConfig, UNetConfig, build_ratio

SIZES = {
    "medium": UNetConfig(
        resolution=32, in_channels=3, out_channels=3, channels=64, channel_mult=(1, 2, 2), blocks=2,
        attention_resolutions=(16,),
    ),
    "cifar": UNetConfig(
        resolution=32, in_channels=3, out_channels=3, channels=128, channel_mult=(2, 2, 2), blocks=4,
        attention_resolutions=(16,), augment_labels=9, dropout=0.13,
    ),
}  # fmt: skip
METHODS = {
    "diff_instruct": DistillConfig(direction="diff_instruct"),
    "score-free, full width": DistillConfig(),
    "score-free, light": DistillConfig(ratio=RatioConfig(width=0.5)),
}
GOAL = 0.5


def held(device: str) -> float:
    """Peak memory so far in MiB."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def wait(device: str) -> float:
    """The time, once the device has done everything."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(method: str, size: str, batch: int, steps: int, device: str) -> dict[str, object]:
    """Seconds of each timed step, and the peak memory beyond the baseline."""
    from dataclasses import replace

    network = SIZES[size]
    config = replace(METHODS[method], batch=batch, images=batch * (steps + 1))
    baseline = held(device)
    student = build_denoiser(network, 0.5, 0).to(device)
    if config.direction == "ratio":
        critic: torch.nn.Module = build_ratio(network, config.ratio, 0.5)
        teacher = None
    else:
        critic = build_denoiser(network, 0.5, 1)
        teacher = build_denoiser(network, 0.5, 2).to(device).requires_grad_(False)
    training = start_distillation(student, critic.to(device), config)
    images = torch.randn(4 * batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    seconds, start = [], wait(device)
    for _ in distill(training, TensorData(images.to(device)), config, seed=0, teacher=teacher):
        now = wait(device)
        seconds.append(now - start)
        start = now
    count = sum(parameter.numel() for parameter in critic.parameters())
    # The first step also sets up optimisers and kernels.
    return {"seconds": seconds[1:], "memory": held(device) - baseline, "critic": count}


def in_process(method: str, args: argparse.Namespace) -> dict[str, object]:
    """What :func:`measure` finds in a fresh process."""
    words = ["--one", method, "--size", args.size, "--batch", str(args.batch), "--steps", str(args.steps)]
    command = [sys.executable, "-m", "tests.benchmarks.bench_step", *words, "--device", args.device]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.size, args.batch, args.steps, args.device)))
        return
    backbone = build_denoiser(SIZES[args.size], 0.5, 0)
    count = sum(parameter.numel() for parameter in backbone.parameters())
    print(f"backbone of {count:,} parameters, batch {args.batch}, {args.device}, ", end="")
    print(f"{torch.get_num_threads()} threads; {args.rounds} rounds of {args.steps} steps each")
    seconds: dict[str, list[list[float]]] = {method: [] for method in METHODS}
    memory: dict[str, list[float]] = {method: [] for method in METHODS}
    critics: dict[str, int] = {}
    for turn in range(args.rounds):
        for method in list(METHODS)[:: 1 if turn % 2 == 0 else -1]:
            found = in_process(method, args)
            seconds[method].append(found["seconds"])  # type: ignore[arg-type]
            memory[method].append(found["memory"])  # type: ignore[arg-type]
            critics[method] = found["critic"]  # type: ignore[assignment]
    base = "diff_instruct"
    medians = {m: statistics.median(s for part in parts for s in part) for m, parts in seconds.items()}
    peaks = {method: statistics.median(values) for method, values in memory.items()}
    for method in METHODS:
        rounds = [
            statistics.median(own) / statistics.median(other)
            for own, other in zip(seconds[method], seconds[base], strict=True)
        ]
        print(
            f"  {method:<22} critic {critics[method]:>11,}  {medians[method]:7.3f} s/step "
            f"{medians[method] / medians[base]:.2f} x (rounds {min(rounds):.2f} to {max(rounds):.2f})  "
            f"{peaks[method]:7.0f} MiB {peaks[method] / peaks[base]:.2f} x"
        )
    print(f"goal: at most {GOAL} x of diff_instruct with the light ratio network")


if __name__ == "__main__":
    main()
