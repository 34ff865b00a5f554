"""What one process and two processes both do, for the test that it is the same; also a worker's script."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from featlens.errors import FeatlensError
from featlens_trainers import DistillConfig, TeacherConfig, UNetConfig, build_denoiser
from featlens_trainers.distillation import distill, start_distillation
from featlens_trainers.engine import Engine, make_engine, processes
from featlens_trainers.networks import RatioNetwork
from featlens_trainers.teacher import start_teacher, train_teacher
from featlens_trainers.training import Step, Training, seeded

BATCH = 8
STEPS = 4
IMAGES = BATCH * STEPS


def network(dropout: float = 0.0, labels: int = 0) -> UNetConfig:
    return UNetConfig(
        4, channels=8, channel_mult=(1, 2), attention_resolutions=(), labels=labels, dropout=dropout
    )


def images(count: int = 20) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def shaken(module: nn.Module, seed: int) -> nn.Module:
    """Away from the almost-zero start, so that every gradient is of a size that can be compared."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=numbers)
    return module


def prepared(training: Training, kind: str) -> Training:
    """Plain gradient descent shows the gradients as they are; Adam magnifies what is nearly zero."""
    for name, optimizer in training.optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if kind == "sgd":
            training.optimizers[name] = torch.optim.SGD(parameters, lr=1e-2, momentum=0.5)
        else:
            for group in optimizer.param_groups:
                group["eps"] = 1e-3
    return training


class Watched:
    """Looks, at every update, whether a gradient or a step reached a network that it was not for."""

    def __init__(self, engine: Engine, training: Training) -> None:
        self.leaks = 0
        self.updates = 0
        plain = engine.update

        def update(optimizer: torch.optim.Optimizer, losses: Iterable[Tensor]) -> None:
            own = {id(p) for group in optimizer.param_groups for p in group["params"]}
            others = [p for net in training.networks.values() for p in net.parameters() if id(p) not in own]
            before = [(p.detach().clone(), None if p.grad is None else p.grad.clone()) for p in others]

            def looked() -> Iterator[Tensor]:
                for loss in losses:
                    yield loss
                    self.leaks += sum(not _same(p, *was) for p, was in zip(others, before, strict=True))

            plain(optimizer, looked())
            self.leaks += sum(not _same(p, *was) for p, was in zip(others, before, strict=True))
            self.updates += 1

        engine.update = update  # type: ignore[method-assign]


def _same(parameter: Tensor, value: Tensor, gradient: Tensor | None) -> bool:
    now = parameter.grad
    if now is None or gradient is None:
        return now is gradient and torch.equal(parameter, value)
    return torch.equal(now, gradient) and torch.equal(parameter, value)


def followed(engine: Engine, training: Training, steps: Iterator[Step]) -> tuple[dict[str, Tensor], Any]:
    """Every tensor of the state at the end; statistics of every step, and what the watcher saw."""
    watched = Watched(engine, training)
    stats = [dict(step.metrics) for step in steps]
    return training.tensors(), {"stats": stats, "leaks": watched.leaks, "updates": watched.updates}


def teacher(engine: Engine, kind: str, dropout: float = 0.0) -> tuple[dict[str, Tensor], Any]:
    config = TeacherConfig(images=IMAGES, batch=BATCH, lr=1e-2, ramp_images=1, ema_half_life=16)
    # A process that starts elsewhere must take over the weights of the main process.
    denoiser = shaken(build_denoiser(network(dropout), 0.5, engine.rank), 0)
    engine.synchronise(denoiser)
    training = prepared(start_teacher(denoiser, config), kind)
    return followed(engine, training, train_teacher(training, images(), config, 0, engine=engine))


def student(engine: Engine, kind: str, direction: str = "ratio") -> tuple[dict[str, Tensor], Any]:
    config = DistillConfig(
        images=IMAGES,
        batch=BATCH,
        direction=direction,
        lr=1e-3,
        ratio_lr=2e-3,
        ema_half_life=16,
        ema_ramp=0.5,
    )
    labels = torch.arange(20) % 3
    net = shaken(build_denoiser(network(labels=3), 0.5, 0), 1)
    guide = shaken(build_denoiser(network(labels=3), 0.5, 1), 2)
    if direction == "ratio":
        with seeded(0, "ratio"):
            critic: nn.Module = shaken(RatioNetwork(network(labels=3), 0.5), 3)
    else:
        critic = shaken(build_denoiser(network(labels=3), 0.5, 2), 3)
    training = prepared(start_distillation(net, critic, config), kind)
    steps = distill(training, images(), config, 0, labels, engine=engine, teacher=guide)
    return followed(engine, training, steps)


def agreement(engine: Engine) -> tuple[dict[str, Tensor], Any]:
    """What the processes tell one another, and gradients that only some of them have."""
    rank = engine.rank
    parameters = [nn.Parameter(torch.zeros(5, 3)), *(nn.Parameter(torch.zeros(4)) for _ in range(3))]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    # The first has a gradient here and there, the second on one process, the last nowhere.
    ours = parameters[0].sum() * (rank + 1) + parameters[2].sum() * 2
    if rank == 0:
        ours = ours + parameters[1].sum() * 3
    engine.update(optimizer, [ours])
    told = {
        "any": [engine.any(False), engine.any(rank == 1), engine.any(True)],
        "mean": engine.mean(torch.tensor([1.0, 4.0]) * rank).tolist(),
        "tell": engine.tell({"rank": rank, "who": "räka"}),
        "without": [p.grad is None for p in parameters],
        "main": engine.main,
        "parts": [[part.start, part.stop] for part in engine.parts(BATCH)],
    }
    engine.wait()
    return {str(index): p.detach() for index, p in enumerate(parameters)}, told


def lost(engine: Engine) -> tuple[dict[str, Tensor], Any]:
    """What is left to say where another process has ended, in silence and without a failure."""
    if engine.rank == 1:
        os._exit(0)
    try:
        engine.wait()
    except FeatlensError as error:
        return {}, {"error": str(error)}
    return {}, {"error": None}


OPTIONS: dict[str, dict[str, Any]] = {"teacher-layout": {"channels_last": True}}
"""Of the engine, beside how it accumulates."""

WORK: dict[str, Callable[[Engine], tuple[dict[str, Tensor], Any]]] = {
    "agreement": agreement,
    "teacher-sgd": lambda engine: teacher(engine, "sgd"),
    "teacher-adam": lambda engine: teacher(engine, "adam"),
    "teacher-dropout": lambda engine: teacher(engine, "sgd", dropout=0.3),
    "teacher-layout": lambda engine: teacher(engine, "adam"),
    "student-sgd": lambda engine: student(engine, "sgd"),
    "student-adam": lambda engine: student(engine, "adam"),
    "student-sid": lambda engine: student(engine, "sgd", "sid"),
    "lost": lost,
}


def work(name: str, accumulate: int = 1) -> tuple[dict[str, Tensor], Any]:
    """Do one piece of work in this process."""
    with Engine(accumulate=accumulate) as engine:
        return WORK[name](engine)


def main(folder: Path, names: list[str]) -> None:
    """What a worker does: each piece twice, whole and in two parts; the results in a folder."""
    # Gradients of these networks would all fit into one message.
    processes.BUCKET = 200
    for name in names:
        for accumulate in (1,) if name == "lost" else (1, 2):
            with make_engine(accumulate=accumulate, **OPTIONS.get(name, {})) as engine:
                tensors, told = WORK[name](engine)
                place = folder / f"{name}-{accumulate}-{engine.rank}"
            save_file({key: value.contiguous() for key, value in tensors.items()}, f"{place}.safetensors")
            told["accelerate"] = "accelerate" in sys.modules
            Path(f"{place}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
