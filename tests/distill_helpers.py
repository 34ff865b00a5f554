"""Small distillations, and a watch on gradients that reach a network which is not being updated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from featlens_trainers import DistillConfig, Training, UNetConfig, build_denoiser, start_distillation
from featlens_trainers.engine import Engine
from featlens_trainers.networks import RatioConfig, build_ratio
from featlens_trainers.training import NOTES, seeded

TINY = UNetConfig(4, channels=8, channel_mult=(1,), attention_resolutions=())
CONFIG = DistillConfig(images=48, batch=8, lr=1e-3, ratio_lr=2e-3, ema_half_life=16, ema_ramp=0.5)


def images(count: int = 20) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """Away from the almost-zero start, so that every gradient is of a size that can be compared."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=numbers)
    return module


def make_teacher(network: UNetConfig = TINY) -> nn.Module:
    return randomised(build_denoiser(network, 0.5, 7), 8).eval().requires_grad_(False)


def started(config: DistillConfig = CONFIG, network: UNetConfig = TINY, plain_sgd: bool = False) -> Training:
    """Fresh state with a critic of the kind that the direction needs."""
    student = randomised(build_denoiser(network, 0.5, 0), 1)
    with seeded(0, "ratio"):
        ratio: nn.Module = build_ratio(network, config.ratio, 0.5)
    critic = ratio if config.direction == "ratio" else build_denoiser(network, 0.5, 3)
    training = start_distillation(student, randomised(critic, 2), config)
    if plain_sgd:
        training.optimizers = {
            name: torch.optim.SGD(training.networks[name].parameters(), lr=1.0)
            for name in training.optimizers
        }
    return training


def weights(training: Training, name: str) -> dict[str, Tensor]:
    return {key: p.detach().clone() for key, p in training.networks[name].named_parameters()}


def assert_equal(first: Training, second: Training) -> None:
    # Notes are those of whoever drives the loop, not the loop's own.
    one, other = (
        {name: value for name, value in training.tensors().items() if name != NOTES}
        for training in (first, second)
    )
    assert first.images == second.images
    assert set(one) == set(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


FAKE_SCORE_HEAD = RatioConfig(kind="fake_score")


class LeakWatch:
    """Counts gradients by (network that is updated, network that received one).

    Use around a whole loop: ``with LeakWatch(engine, training, teacher) as watch: ...``; afterwards
    ``watch.leaks`` is empty if every gradient went to the network whose optimiser made the step, and
    ``watch.updates`` says how many steps each made. Gradients that were there before an update and changed
    during another network's count as leaks, too.
    """

    def __init__(self, engine: Engine, training: Training, teacher: nn.Module | None = None) -> None:
        self.engine, self.training = engine, training
        self.networks = {name: training.networks[name] for name in training.networks}
        if teacher is not None:
            self.networks["teacher"] = teacher
        self.counts: dict[tuple[str, str], int] = {}
        self.updates: dict[str, int] = {}
        self._now = "outside"

    def __enter__(self) -> LeakWatch:
        self._handles = [
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._count(name))
            for name, network in self.networks.items()
            for parameter in network.parameters()
            if parameter.requires_grad
        ]
        self._update = self.engine.update
        self.engine.update = self._watched  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self.engine.update = self._update  # type: ignore[method-assign]

    @property
    def leaks(self) -> dict[tuple[str, str], int]:
        return {pair: count for pair, count in self.counts.items() if pair[0] != pair[1]}

    def _count(self, name: str) -> None:
        self.counts[self._now, name] = self.counts.get((self._now, name), 0) + 1

    def _watched(self, optimizer: torch.optim.Optimizer, losses: Iterable[Tensor]) -> None:
        (self._now,) = (name for name, own in self.training.optimizers.items() if own is optimizer)
        self.updates[self._now] = self.updates.get(self._now, 0) + 1
        before = dict(self._others())
        self._update(optimizer, losses)
        for place, gradient in self._others():
            old = before[place]
            same = gradient is None if old is None else gradient is not None and torch.equal(gradient, old)
            if not same:
                self._count(place[0])
        self._now = "outside"

    def _others(self) -> Iterator[tuple[tuple[str, str], Tensor | None]]:
        for name, network in self.networks.items():
            if name != self._now:
                for key, parameter in network.named_parameters():
                    yield (name, key), None if parameter.grad is None else parameter.grad.clone()
