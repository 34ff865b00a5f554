"""Score-based directions against closed-form denoisers of Gaussian mixtures, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featlens_trainers import build_denoiser
from featlens_trainers.directions import (
    DIVERGENCES,
    DiffInstruct,
    Noised,
    RatioDirection,
    SiD,
    denoiser_gap,
    denoising_loss,
)
from featlens_trainers.networks import UNetConfig
from featlens_trainers.teacher import edm_loss
from featlens_trainers.weighting import WEIGHTINGS
from tests.distill_helpers import randomised

F64 = torch.float64


class Mixture(nn.Module):
    """Exact denoiser of a mixture of isotropic Gaussians; ``log_density`` is that of noised data."""

    sigma_data = 0.5
    num_labels = 0

    def __init__(self, means: list[list[float]], widths: list[float], shares: list[float]) -> None:
        super().__init__()
        self.means = torch.tensor(means, dtype=F64)
        self.widths = torch.tensor(widths, dtype=F64)
        self.shares = torch.tensor(shares, dtype=F64)
        self.network = nn.Identity()

    def _terms(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = self.widths**2 + sigma[:, None] ** 2
        squares = (x[:, None] - self.means).square().sum(-1)
        d = x.shape[1]
        return self.shares.log() - squares / (2 * variance) - d / 2 * (2 * math.pi * variance).log(), variance

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._terms(x, sigma)[0].logsumexp(1)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Posterior mean of x0 by Bayes' rule: each component's, weighted by its responsibility."""
        terms, variance = self._terms(x, sigma)
        gain = (self.widths**2 / variance)[..., None]
        means = self.means + gain * (x[:, None] - self.means)
        return (terms.softmax(1)[..., None] * means).sum(1)


class ExactRatio(nn.Module):
    def __init__(self, p: Mixture, q: Mixture) -> None:
        super().__init__()
        self.p, self.q = p, q

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.p.log_density(x, sigma) - self.q.log_density(x, sigma)


DATA = Mixture([[0.8, 0.2], [-0.6, -0.5], [0.1, 0.9]], [0.3, 0.15, 0.5], [0.5, 0.2, 0.3])
STUDENT = Mixture([[0.3, -0.4], [-0.2, 0.6]], [0.4, 0.25], [0.6, 0.4])


def sample(count: int = 40, seed: int = 0) -> Noised:
    numbers = torch.Generator().manual_seed(seed)
    clean = torch.randn(count, 2, dtype=F64, generator=numbers)
    sigma = torch.exp(torch.randn(count, dtype=F64, generator=numbers))
    return Noised.of(clean, sigma, torch.randn(count, 2, dtype=F64, generator=numbers))


# --- sigma^2 grad h = D_data - D_student --------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.03, 0.3, 3.0, 30.0])
def test_sigma_squared_grad_h_is_the_gap_of_the_exact_denoisers_of_mixtures(sigma: float) -> None:
    noised = sample()
    noised = Noised.of(noised.clean, torch.full((40,), sigma, dtype=F64), noised.x - noised.clean)
    ratio = RatioDirection(ExactRatio(DATA, STUDENT), DIVERGENCES["reverse_kl"])
    gradient = -ratio.gradient(noised.x, noised.sigma)
    torch.testing.assert_close(sigma**2 * gradient, denoiser_gap(DATA, STUDENT, noised))


@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if name != "normalised"])
def test_diff_instruct_with_exact_denoisers_is_the_ratio_direction_with_exact_h(name: str) -> None:
    ratio = RatioDirection(ExactRatio(DATA, STUDENT), DIVERGENCES["reverse_kl"], WEIGHTINGS[name])
    scores = DiffInstruct(DATA, STUDENT, WEIGHTINGS[name])
    torch.testing.assert_close(scores.image_gradient(sample()), ratio.image_gradient(sample()))


def test_diff_instruct_has_weight_one_in_image_space() -> None:
    noised = sample()
    expected = STUDENT(noised.x, noised.sigma) - DATA(noised.x, noised.sigma)
    torch.testing.assert_close(DiffInstruct(DATA, STUDENT).image_gradient(noised), expected, rtol=0, atol=0)


def test_dmd2_divides_by_the_mean_distance_to_the_teachers_estimate() -> None:
    noised = sample()
    teacher, student = DATA(noised.x, noised.sigma), STUDENT(noised.x, noised.sigma)
    rows = [(student[i] - teacher[i]) / float((noised.clean[i] - teacher[i]).abs().mean()) for i in range(40)]
    found = DiffInstruct(DATA, STUDENT, WEIGHTINGS["normalised"]).image_gradient(noised)
    torch.testing.assert_close(found, torch.stack(rows))


# --- SiD ----------------------------------------------------------------------------------------------------


def sid_loss(clean: Tensor, noised: Noised, alpha: float) -> Tensor:
    """The published loss, the divisor held constant; one number a sample."""
    x = clean + (noised.x - noised.clean)
    teacher, student = DATA(x, noised.sigma), STUDENT(x, noised.sigma)
    held = DATA(noised.x, noised.sigma)
    divisor = (noised.clean - held).abs().mean(1)
    gap = teacher - student
    return (gap * (teacher - clean - alpha * gap)).sum(1) / divisor


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
def test_sid_descends_its_loss_by_central_differences(alpha: float) -> None:
    noised = sample()
    found = SiD(DATA, STUDENT, alpha=alpha).image_gradient(noised)
    step = 1e-5
    for axis in range(2):
        shift = step * torch.eye(2, dtype=F64)[axis]
        high, low = (sid_loss(noised.clean + sign * shift, noised, alpha) for sign in (1, -1))
        torch.testing.assert_close(found[:, axis], (high - low) / (2 * step), rtol=1e-6, atol=1e-7)


def test_sid_is_the_gradient_that_autograd_finds_in_its_formula() -> None:
    noised = sample(seed=3)
    leaf = noised.clean.clone().requires_grad_()
    (expected,) = torch.autograd.grad(sid_loss(leaf, noised, 1.2).sum(), leaf)
    torch.testing.assert_close(SiD(DATA, STUDENT, alpha=1.2).image_gradient(noised), expected)


@pytest.mark.parametrize("alpha", [0.5, 1.2])
def test_the_expected_sid_loss_is_a_multiple_of_the_fisher_divergence(alpha: float) -> None:
    """With the exact D_F, E[(D_T - D_F) . (D_F - x0)] = 0, so the loss is (1 - alpha) E |D_T - D_F|^2."""
    points, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(60))
    z, noise = (part.reshape(-1, 1) for part in torch.meshgrid(points, points, indexing="ij"))
    weight = (weights[:, None] * weights[None, :]).reshape(-1) / weights.sum() ** 2
    sigma, spread = 0.6, 0.5
    student = Mixture([[0.2]], [spread], [1.0])
    teacher = Mixture([[0.7], [-0.5]], [0.4, 0.8], [0.5, 0.5])
    x0 = 0.2 + spread * z
    level = torch.full((len(z),), sigma, dtype=F64)
    d_t, d_f = teacher(x0 + sigma * noise, level), student(x0 + sigma * noise, level)
    gap = d_t - d_f
    loss = (weight * (gap * (d_t - x0 - alpha * gap)).sum(1)).sum()
    torch.testing.assert_close(loss, (1 - alpha) * (weight * gap.square().sum(1)).sum())


# --- networks: frozen weights, dropout, the fake score's loss -----------------------------------------------

NETWORK = UNetConfig(4, channels=8, channel_mult=(1,), attention_resolutions=(), dropout=0.4)


def networks() -> tuple[nn.Module, nn.Module]:
    return tuple(randomised(build_denoiser(NETWORK, 0.5, seed), seed) for seed in (1, 2))  # type: ignore[return-value]


def noised_images(seed: int = 0) -> Noised:
    numbers = torch.Generator().manual_seed(seed)
    clean, noise = (torch.randn(4, 1, 4, 4, generator=numbers) for _ in range(2))
    return Noised.of(clean, torch.tensor([0.1, 0.5, 1.0, 5.0]), noise)


@pytest.mark.parametrize("kind", [DiffInstruct, SiD])
def test_no_gradient_reaches_teacher_or_fake_score(kind: type) -> None:
    teacher, fake_score = networks()
    gradient = kind(teacher, fake_score).image_gradient(noised_images())
    assert not gradient.requires_grad
    for network in (teacher, fake_score):
        assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_teacher_and_fake_score_share_their_dropout_masks() -> None:
    teacher, _ = networks()
    state = torch.random.get_rng_state()
    teacher.eval()
    shared = DiffInstruct(teacher, teacher, dropout=True)
    # The same network twice under the same mask differs by nothing; with masks of its own it would.
    assert float(shared.image_gradient(noised_images()).abs().max()) == 0
    assert not teacher.training
    assert not torch.equal(torch.random.get_rng_state(), state)
    noised = noised_images()
    first, second = (shared.estimates(noised.x, noised.sigma, None)[0] for _ in range(2))
    assert not torch.equal(first, second)
    quiet = DiffInstruct(teacher.train(), teacher)
    first, second = (quiet.estimates(noised.x, noised.sigma, None)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert all(module.training for module in teacher.modules())


def test_sid_draws_its_gradient_from_both_networks() -> None:
    teacher, fake_score = (network.eval() for network in networks())
    noised = noised_images()
    leaf = noised.clean.clone().requires_grad_()
    x = leaf + (noised.x - noised.clean)
    d_t, d_f = teacher(x, noised.sigma), fake_score(x, noised.sigma)
    divisor = (leaf - d_t).abs().mean((1, 2, 3), keepdim=True).detach()
    loss = ((d_t - d_f) * (d_t - leaf - 1.2 * (d_t - d_f)) / divisor).sum()
    (expected,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(SiD(teacher, fake_score).image_gradient(noised), expected)


def test_the_fake_score_learns_generated_images_by_edms_loss() -> None:
    teacher, fake_score = (network.eval() for network in networks())
    fake, real = noised_images(1), noised_images(2)
    loss, told = DiffInstruct(teacher, fake_score).critic_loss(real, fake)
    noise = (fake.x - fake.clean) / fake.sigma[:, None, None, None]
    torch.testing.assert_close(loss, edm_loss(fake_score, fake.clean, fake.sigma, noise))
    assert told == {"fake_score_loss": loss}
    other = denoising_loss(fake_score(fake.x, fake.sigma), fake, 0.5)
    torch.testing.assert_close(loss, other)
