"""Heun's method against exact solutions, the one-step generator, and latents that belong to their image."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featlens.errors import UsageError
from featlens_trainers import OneStepGenerator, UNetConfig, build_denoiser, heun_sample
from featlens_trainers.sampler import generate, latents, sigma_schedule


class GaussianDenoiser(nn.Module):
    """Closed-form denoiser of N(mean, spread^2) data; its probability-flow ODE is solvable, too."""

    def __init__(self, mean: float = 0.3, spread: float = 0.5) -> None:
        super().__init__()
        self.mean, self.spread = mean, spread
        self.calls = 0

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls += 1
        level = sigma[:, None, None, None].to(x.dtype)
        return (self.spread**2 * x + level**2 * self.mean) / (self.spread**2 + level**2)

    def exact(self, z: Tensor, high: float = 80.0) -> Tensor:
        """Solution from high z down to noise level 0: the standardised value never changes."""
        return self.mean + self.spread * (high * z - self.mean) / math.sqrt(self.spread**2 + high**2)


Z = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)


def test_heun_converges_to_the_exact_solution_with_order_two() -> None:
    denoiser = GaussianDenoiser()
    errors = [
        float((heun_sample(denoiser, Z, steps=steps) - denoiser.exact(Z)).abs().max())
        for steps in (16, 32, 64)
    ]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(1.7 < order < 2.6 for order in orders), (errors, orders)
    assert errors[-1] < 5e-3


def test_eulers_method_would_be_told_apart() -> None:
    denoiser = GaussianDenoiser()
    errors = []
    for steps in (32, 64):
        levels = sigma_schedule(steps).tolist()
        x = Z * levels[0]
        for now, then in pairwise(levels):
            x = x + (then - now) * (x - denoiser(x, torch.full((9,), now))) / now
        errors.append(float((x - denoiser.exact(Z)).abs().max()))
    assert math.log2(errors[0] / errors[1]) < 1.3


def test_the_first_noise_level_can_be_chosen() -> None:
    denoiser = GaussianDenoiser()
    found = heun_sample(denoiser, Z, steps=64, high=10.0)
    torch.testing.assert_close(found, denoiser.exact(Z, high=10.0), atol=3e-3, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_two_evaluations_a_step_but_one_at_the_end(steps: int) -> None:
    denoiser = GaussianDenoiser()
    out = heun_sample(denoiser, Z, steps=steps)
    assert denoiser.calls == 2 * steps - 1
    assert torch.isfinite(out).all()


def test_schedule_is_the_published_one() -> None:
    levels = sigma_schedule(18)
    assert len(levels) == 19
    assert levels[0] == pytest.approx(80.0)
    assert levels[17] == pytest.approx(0.002)
    assert levels[18] == 0
    assert bool((levels[:-1] > levels[1:]).all())
    index = np.arange(18)
    expected = (80 ** (1 / 7) + index / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(levels[:-1], expected, rtol=1e-12)
    assert sigma_schedule(1).tolist() == pytest.approx([80.0, 0.0])


def test_labels_reach_every_evaluation() -> None:
    seen = []

    class Conditional(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            seen.append(labels)
            return x * 0

    labels = torch.arange(9)
    heun_sample(Conditional(), Z, labels, steps=3)
    OneStepGenerator(Conditional())(Z, labels)
    assert len(seen) == 6
    assert all(one is labels for one in seen)


def test_sampling_keeps_no_graph_but_a_generator_does() -> None:
    denoiser = nn.Module()
    denoiser.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    denoiser.forward = lambda x, sigma, labels=None: denoiser.weight * x * 0.1  # type: ignore[method-assign]
    assert not heun_sample(denoiser, Z, steps=2).requires_grad
    assert OneStepGenerator(denoiser)(Z).requires_grad
    assert not generate(OneStepGenerator(denoiser), 4, (1, 2, 2), seed=0).requires_grad


def test_one_step_generator_calls_the_denoiser_once_at_sigma_init() -> None:
    denoiser = GaussianDenoiser()
    out = OneStepGenerator(denoiser, sigma_init=2.0)(Z)
    assert denoiser.calls == 1
    torch.testing.assert_close(out, denoiser(2.0 * Z, torch.full((9,), 2.0)))


# --- latents ------------------------------------------------------------------------------------------------


def test_a_latent_depends_on_seed_and_image_number_only() -> None:
    whole = latents(3, 0, 10, (1, 4, 4))
    assert whole.shape == (10, 1, 4, 4)
    assert whole.dtype == torch.float32
    assert torch.equal(latents(3, 6, 4, (1, 4, 4)), whole[6:])
    assert torch.equal(torch.cat([latents(3, i, 1, (1, 4, 4)) for i in range(10)]), whole)
    assert not torch.equal(latents(4, 0, 10, (1, 4, 4)), whole)
    assert len(torch.unique(whole[:, 0, 0, 0])) == 10


def test_latents_are_standard_normal() -> None:
    drawn = latents(0, 0, 400, (1, 8, 8))
    assert float(drawn.mean()) == pytest.approx(0, abs=0.02)
    assert float(drawn.var()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_generated_images_do_not_depend_on_the_batch(batch: int) -> None:
    denoiser = GaussianDenoiser()
    sizes = []

    def sampler(z: Tensor) -> Tensor:
        sizes.append(len(z))
        return heun_sample(denoiser, z, steps=4)

    reference = generate(sampler, 7, (1, 2, 2), seed=1, batch=7)
    sizes.clear()
    assert torch.equal(generate(sampler, 7, (1, 2, 2), seed=1, batch=batch), reference)
    assert max(sizes) == min(batch, 7)
    assert sum(sizes) == 7
    more = generate(sampler, 9, (1, 2, 2), seed=1, batch=batch)
    assert torch.equal(more[:7], reference)


# --- class labels, and networks -----------------------------------------------------------------------------


class ClassDenoiser(nn.Module):
    """Closed-form denoiser of data that is one value a class: the sampler must end there."""

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is not None
        return labels[:, None, None, None].to(x.dtype).expand_as(x)


@pytest.mark.parametrize("batch", [2, 5, 100])
def test_every_image_is_made_with_its_own_label_whatever_the_batch(batch: int) -> None:
    labels = torch.tensor([3, 0, 2, 2, 1, 3, 0])

    def sampler(z: Tensor, given: Tensor) -> Tensor:
        return heun_sample(ClassDenoiser(), z, given, steps=5)

    out = generate(sampler, 7, (1, 2, 2), seed=1, batch=batch, labels=labels)
    torch.testing.assert_close(out, labels[:, None, None, None].float().expand(7, 1, 2, 2), atol=1e-4, rtol=0)


def test_a_networks_images_do_not_depend_on_the_batch() -> None:
    denoiser = build_denoiser(UNetConfig(8, channels=16, labels=3), 0.5, 0).eval()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])

    def images(batch: int, count: int = 6) -> Tensor:
        return generate(
            lambda z, given: heun_sample(denoiser, z, given, steps=4),
            count,
            (1, 8, 8),
            seed=3,
            batch=batch,
            labels=labels[:count],
        )

    torch.testing.assert_close(images(6), images(4), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(images(6)[:2], images(1, 2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"high": 0.001}, {"low": 0.0}])
def test_impossible_schedules_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected at least one step and noise levels 0 < low < high"):
        heun_sample(GaussianDenoiser(), Z, **wrong)


def test_labels_that_are_too_few_are_refused() -> None:
    with pytest.raises(UsageError, match="one label for each of 5 images, got 2"):
        generate(lambda z, labels: z, 5, (1, 2, 2), seed=0, labels=torch.zeros(2).long())
