"""Regression on a teacher's map: its one-step map, or the end of its probability-flow ODE."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from featlens.errors import UsageError
from featlens.seeds import derive
from featlens_trainers import Training, UNetConfig, build_denoiser, start_teacher
from featlens_trainers.engine import Engine
from featlens_trainers.runs import Run
from featlens_trainers.sampler import heun_sample, latents
from featlens_trainers.settings import RegressionConfig
from featlens_trainers.teacher import ode_endpoints, regress_map
from featlens_trainers.training import stream

TINY = UNetConfig(4, channels=8, channel_mult=(1,), attention_resolutions=())
CLASSES = dataclasses.replace(TINY, labels=3)
REGRESSION = RegressionConfig(images=48, batch=8, ramp_images=16, ema_half_life=16, ema_ramp=0.5, bank=12)


def started(network: UNetConfig = TINY) -> Training:
    return start_teacher(build_denoiser(network, 0.5, 0), REGRESSION)


def assert_equal(first: Training, second: Training) -> None:
    one, other = first.tensors(), second.tensors()
    assert set(one) == set(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def recorded(training: Training) -> list[tuple[Tensor | None, ...]]:
    seen: list[tuple[Tensor | None, ...]] = []
    training.networks["net"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    return seen


def resumed(folder: Path, build, steps_of, stop: int) -> Training:
    """Train ``stop`` steps, save, forget everything, restore in new objects, and finish."""
    with Run(folder, "test", {}) as record:
        training = build()
        for step in steps_of(training):
            if step.images == 8 * stop:
                record.save(training)
                break
    again = build()
    with Run(folder, "test", {}) as record:
        assert record.restore(again) == []
    assert again.images == 8 * stop
    for _ in steps_of(again):
        pass
    return again


def test_map_regression_in_parts_gives_what_the_batch_gives() -> None:
    teacher = build_denoiser(TINY, 0.5, 9)
    for target in ("one_step", "ode"):
        losses = []
        for engine in (None, Engine(accumulate=2)):
            training = started()
            steps = regress_map(training, teacher, (1, 4, 4), 2.5, REGRESSION, 0, target, engine)
            losses.append([step.metrics["loss"] for step in steps])
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("labels", [0, 3])
@pytest.mark.parametrize("target", ["one_step", "ode"])
def test_map_regression_resumes_bit_for_bit(tmp_path: Path, target: str, labels: int) -> None:
    network = dataclasses.replace(TINY, labels=labels, dropout=0.2)
    teacher = build_denoiser(network, 0.5, 9)

    def steps(training: Training) -> Iterator[object]:
        return regress_map(training, teacher, (1, 4, 4), 2.5, REGRESSION, 0, target)

    whole = started(network)
    list(steps(whole))
    assert_equal(resumed(tmp_path, lambda: started(network), steps, 3), whole)


# --- regression on the end of the ODE -----------------------------------------------------------------------


class Gaussian(nn.Module):
    """Closed-form denoiser of N(label, 0.5^2) data, whose ODE is solvable."""

    num_labels = 3

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is not None
        level, mean = sigma[:, None, None, None], labels[:, None, None, None]
        return (self.spread**2 * x + level**2 * mean) / (self.spread**2 + level**2)


def spied(training: Training, teacher: nn.Module, **more: object) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs of the student and its labels, in order."""
    seen = recorded(training)
    for _ in regress_map(training, teacher, (1, 4, 4), 2.5, REGRESSION, 7, **more):  # type: ignore[arg-type]
        pass
    return [inputs[0] for inputs in seen], [inputs[2] for inputs in seen]  # type: ignore[misc]


def test_endpoints_are_where_the_teachers_sampler_takes_each_latent() -> None:
    config = dataclasses.replace(REGRESSION, bank=30, heun_steps=64)
    found = ode_endpoints(Gaussian(), (1, 4, 4), config, seed=7)
    z = latents(derive(7, "bank"), 0, 30, (1, 4, 4))
    labels = ((found - 0.5 * z).mean((1, 2, 3))).round().long()
    assert set(labels.tolist()) == {0, 1, 2}
    exact = labels[:, None, None, None] + 0.5 * (80 * z - labels[:, None, None, None]) / math.hypot(0.5, 80)
    torch.testing.assert_close(found, exact, atol=1e-2, rtol=0)
    torch.testing.assert_close(found, heun_sample(Gaussian(), z, labels, steps=64))
    assert torch.equal(ode_endpoints(Gaussian(), (1, 4, 4), config, seed=7, batch=30), found)


def test_ode_regression_pairs_each_latent_with_its_label_and_its_end() -> None:
    training = started(CLASSES)
    noised, labels = spied(training, Gaussian(), target="ode")
    z = latents(derive(7, "bank"), 0, 12, (1, 4, 4))
    bank_labels = torch.randint(3, (12,), generator=stream(7, "bank labels"))
    rows = [int((z - x / 2.5).flatten(1).abs().sum(1).argmin()) for x in torch.cat(noised)]
    torch.testing.assert_close(torch.cat(noised), 2.5 * z[rows])
    assert torch.cat(labels).tolist() == bank_labels[rows].tolist()
    # 48 images: the bank of 12 four times, in a new order each time.
    epochs = [rows[start : start + 12] for start in range(0, 48, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_ode_regression_has_the_endpoints_as_its_target() -> None:
    config = dataclasses.replace(REGRESSION, images=8)
    training = started(CLASSES)
    ends = torch.full((12, 1, 4, 4), 5.0)
    outputs: list[Tensor] = []
    training.networks["net"].register_forward_hook(lambda module, inputs, out: outputs.append(out.detach()))
    steps = regress_map(training, Gaussian(), (1, 4, 4), 2.5, config, 7, "ode", endpoints=ends)
    (loss,) = [step.metrics["loss"] for step in steps]
    assert loss == pytest.approx(float(((outputs[0] - 5.0) ** 2).flatten(1).sum(1).mean()))


def test_one_step_regression_of_a_conditional_teacher_draws_labels_evenly() -> None:
    training = started(CLASSES)
    _, labels = spied(training, Gaussian())
    counts = torch.cat(labels).bincount(minlength=3)
    assert len(counts) == 3
    assert int(counts.min()) > 5


def test_an_unknown_target_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown target 'odee' of the regression: did you mean 'ode'"):
        next(regress_map(started(), Gaussian(), (1, 4, 4), 2.5, REGRESSION, 0, "odee"))
