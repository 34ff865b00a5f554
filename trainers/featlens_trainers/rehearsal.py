"""What settings amount to before anything is trained: sizes of the networks, one real step of each loop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import torch

from featlens.errors import UsageError
from featlens_trainers.data import TensorData
from featlens_trainers.distillation import distill, start_distillation
from featlens_trainers.engine import Engine
from featlens_trainers.initialisation import build_denoiser, seeded
from featlens_trainers.networks import build_network, build_ratio
from featlens_trainers.settings import StudyConfig
from featlens_trainers.tasks.common import image_shape
from featlens_trainers.teacher import start_teacher, train_teacher
from featlens_trainers.training import Step, stream

__all__ = ["one_step", "sizes"]


def sizes(config: StudyConfig) -> dict[str, int]:
    """Number of parameters of each network, without making any."""
    with torch.device("meta"):
        networks = {"teacher and student": build_network(config.network)}
        if config.distill.direction == "ratio":
            networks["ratio network"] = build_ratio(config.network, config.distill.ratio, config.sigma_data)
        else:
            networks["fake score"] = build_network(config.network)
    return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}


def one_step(config: StudyConfig, batch: int, engine: Engine) -> dict[str, dict[str, Any]]:
    """Take one step of the teacher's and one of a random student's training on generated images.

    Returns seconds, loss and peak memory (on the CPU that of the process so far) of each.
    """
    if batch < 1:
        raise UsageError(f"the batch of the one step (--step-batch) must be at least 1, got {batch}")
    data = _generated(config, batch, engine.device)
    teacher = build_denoiser(config.network, config.sigma_data, 0).to(engine.device)
    settings = dataclasses.replace(config.teacher, images=batch, batch=batch, snapshot_images=0)
    training = start_teacher(teacher, settings)
    found = {"teacher": _taken(train_teacher(training, data, settings, 0, engine=engine), batch, engine)}
    del training
    student = build_denoiser(config.network, config.sigma_data, 1).to(engine.device)
    loss = dataclasses.replace(config.distill, images=batch, batch=batch, warmup=0)
    with seeded(0, "ratio"):
        critic = (
            build_ratio(config.network, loss.ratio, config.sigma_data)
            if loss.direction == "ratio"
            else build_denoiser(config.network, config.sigma_data, 2)
        ).to(engine.device)
    distilling = start_distillation(student, critic, loss)
    steps = distill(distilling, data, loss, 0, engine=engine, teacher=teacher)
    return found | {"student": _taken(steps, batch, engine)}


def _generated(config: StudyConfig, batch: int, device: torch.device) -> TensorData:
    """Images and labels of the right shape, drawn from a fixed seed."""
    numbers = stream(0, "rehearsal")
    many = max(batch, config.network.labels)
    images = torch.randn((many, *image_shape(config)), generator=numbers).mul(config.sigma_data).clamp(-1, 1)
    labels = torch.arange(many) if config.network.labels else None
    return TensorData(images.to(device), None if labels is None else labels.to(device))


def _taken(steps: Iterator[Step], batch: int, engine: Engine) -> dict[str, Any]:
    cuda = engine.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(engine.device)
    start = time.perf_counter()
    step = next(steps)
    if cuda:
        torch.cuda.synchronize(engine.device)
    seconds = time.perf_counter() - start
    # A student has no loss of its own: its critic's is told.
    loss = next(value for name, value in step.metrics.items() if name.endswith("loss"))
    return {"batch": batch, "seconds": seconds, "loss": loss, "memory_mb": _peak(engine.device) / 1e6}


def _peak(device: torch.device) -> float:
    """Bytes at most so far: of the device, or of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
