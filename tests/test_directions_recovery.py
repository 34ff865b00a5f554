"""A trained ratio network recovers an exact log ratio of Gaussian mixtures, and its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from featlens.denoiser import Preconditioning
from featlens_trainers.directions import DIVERGENCES, Noised, RatioDirection
from featlens_trainers.noise import draw_sigma
from featlens_trainers.settings import NoiseConfig
from tests.test_directions_score import DATA, STUDENT, ExactRatio, Mixture


class SmallRatio(nn.Module):
    """Small network with the call signature of the ratio network."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling = Preconditioning(0.7)
        self.body = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        scaled = self.scaling.c_in(sigma)[:, None] * x
        return self.body(torch.cat([scaled, self.scaling.c_noise(sigma)[:, None]], 1)).squeeze(1)


def draw(mixture: Mixture, count: int, numbers: torch.Generator) -> Tensor:
    which = torch.multinomial(mixture.shares, count, replacement=True, generator=numbers)
    noise = torch.randn(count, 2, generator=numbers)
    return (mixture.means[which] + mixture.widths[which][:, None] * noise).float()


@pytest.fixture(scope="module")
def trained() -> SmallRatio:
    """Cross-entropy on samples, as the loop trains it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallRatio()
    numbers = torch.Generator().manual_seed(1)
    noise = NoiseConfig("loguniform", low=0.3, high=2.0)
    direction = RatioDirection(network, DIVERGENCES["reverse_kl"])
    optimizer = torch.optim.Adam(network.parameters(), lr=6e-3)
    steps, batch = 700, 512
    sigma = draw_sigma(noise, steps * batch, numbers)
    halves = [
        Noised.of(
            draw(mixture, steps * batch, numbers), sigma, torch.randn(steps * batch, 2, generator=numbers)
        )
        for mixture in (DATA, STUDENT)
    ]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 6e-3 * (1 - step / steps)
        here = slice(step * batch, (step + 1) * batch)
        real, fake = (Noised(half.clean[here], half.x[here], sigma[here]) for half in halves)
        loss, _ = direction.critic_loss(real, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def held_out(count: int = 2_000) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(99)
    sigma = draw_sigma(NoiseConfig("loguniform", low=0.35, high=1.8), count, numbers)
    half = count // 2
    clean = torch.cat([draw(DATA, half, numbers), draw(STUDENT, half, numbers)])
    return clean + sigma[:, None] * torch.randn(count, 2, generator=numbers), sigma


def agreement(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """Correlation, and relative error in the root of the mean square."""
    found, exact = found.double().flatten(), exact.double().flatten()
    correlation = float(torch.corrcoef(torch.stack([found, exact]))[0, 1])
    return correlation, float((found - exact).norm() / exact.norm())


def test_a_trained_ratio_network_recovers_the_exact_log_ratio(trained: SmallRatio) -> None:
    x, sigma = held_out()
    with torch.no_grad():
        found = trained(x, sigma)
    correlation, error = agreement(found, ExactRatio(DATA, STUDENT)(x.double(), sigma.double()))
    assert correlation > 0.97
    assert error < 0.25


def test_its_gradient_is_the_gap_of_the_exact_denoisers(trained: SmallRatio) -> None:
    x, sigma = held_out()
    direction = RatioDirection(trained, DIVERGENCES["reverse_kl"])
    found = -(sigma[:, None] ** 2) * direction.gradient(x, sigma)
    wide = x.double(), sigma.double()
    correlation, error = agreement(found, DATA(*wide) - STUDENT(*wide))
    assert correlation > 0.9
    assert error < 0.4


def test_an_untrained_network_recovers_nothing() -> None:
    torch.manual_seed(3)
    x, sigma = held_out()
    direction = RatioDirection(SmallRatio(), DIVERGENCES["reverse_kl"])
    wide = x.double(), sigma.double()
    _, error = agreement(-(sigma[:, None] ** 2) * direction.gradient(x, sigma), DATA(*wide) - STUDENT(*wide))
    assert error > 0.8
