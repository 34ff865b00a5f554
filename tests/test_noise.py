"""Draws of noise levels: each distribution against its quantiles, strata, bounds, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from featlens.errors import UsageError
from featlens_trainers.noise import draw_sigma, lognormal_sigma
from featlens_trainers.settings import NOISE_KINDS, NoiseConfig


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def curve(along: Tensor | float, low: float, high: float, rho: float) -> Tensor | float:
    """EDM's table 1, sigma_i with i / (N - 1) = 1 - along."""
    return (high ** (1 / rho) + (1 - along) * (low ** (1 / rho) - high ** (1 / rho))) ** rho


CASES: dict[str, tuple[NoiseConfig, Callable[[Tensor], Tensor]]] = {
    "lognormal": (NoiseConfig(), lambda s: torch.from_numpy(stats.norm(-1.2, 1.2).cdf(s.log().numpy()))),
    "cut lognormal": (
        NoiseConfig(mean=-0.5, std=1.0, low=0.1, high=2.0),
        lambda s: torch.from_numpy(
            stats.truncnorm((math.log(0.1) + 0.5), (math.log(2.0) + 0.5), -0.5, 1.0).cdf(s.log().numpy())
        ),
    ),
    "half cut": (
        NoiseConfig(mean=0.0, std=0.5, low=1.5),
        lambda s: torch.from_numpy(
            stats.truncnorm(math.log(1.5) / 0.5, math.inf, 0.0, 0.5).cdf(s.log().numpy())
        ),
    ),
    "loguniform": (
        NoiseConfig("loguniform", low=0.05, high=20.0),
        lambda s: (s / 0.05).log() / math.log(400),
    ),
    "rho": (
        NoiseConfig("rho", last=0.8),
        lambda s: (s ** (1 / 7) - 0.002 ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7)) / 0.8,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_level_falls_into_each_quantile_in_random_order(name: str) -> None:
    config, cdf = CASES[name]
    sigma = draw_sigma(config, 500, numbers())
    assert sigma.dtype == torch.float32
    assert sigma.shape == (500,)
    quantiles = cdf(sigma.double())
    strata = (quantiles * 500).clamp(0, 499.999)
    # Rounding to float32 may carry a level over the edge of its stratum, but not further.
    ordered = strata.sort().values
    assert float((ordered - torch.arange(500) - 0.5).abs().max()) < 0.52
    assert not torch.equal(sigma, sigma.sort().values)
    assert not torch.equal(sigma, draw_sigma(config, 500, numbers(1)))
    assert torch.equal(sigma, draw_sigma(config, 500, numbers()))


def test_the_default_is_the_lognormal_draw_that_it_always_was() -> None:
    """Re-derived: one uniform in each quantile, the inverse normal, a shuffle."""
    generator = numbers(5)
    uniform = (torch.arange(64) + torch.rand(64, generator=generator, dtype=torch.float64)) / 64
    order = torch.randperm(64, generator=generator)
    expected = (-1.2 + 1.2 * torch.special.ndtri(uniform)[order]).exp().float()
    after = torch.randn(3, generator=generator)
    generator = numbers(5)
    assert torch.equal(draw_sigma(NoiseConfig(), 64, generator), expected)
    assert torch.equal(torch.randn(3, generator=generator), after)
    assert torch.equal(lognormal_sigma(64, -1.2, 1.2, numbers(5)), expected)


def test_levels_are_those_of_the_curve_and_equally_frequent() -> None:
    config = NoiseConfig("levels", count=11, first=0.2, last=0.75)
    sigma = draw_sigma(config, 600, numbers())
    # Levels 2 .. 7 of 0 .. 10, counted from low.
    expected = torch.tensor([curve(i / 10, 0.002, 80.0, 7.0) for i in range(2, 8)]).float()
    values, counts = sigma.unique(return_counts=True)
    torch.testing.assert_close(values, expected)
    assert counts.tolist() == [100] * 6


def test_the_published_range_of_levels() -> None:
    config = NoiseConfig("levels", count=1000, first=0.02, last=0.98)
    assert config.allowed_levels == range(20, 980)
    assert NoiseConfig("levels", count=1).allowed_levels == range(1)
    assert draw_sigma(NoiseConfig("levels", count=1), 3, numbers()).tolist() == pytest.approx([0.002] * 3)


def test_a_curve_is_bounded_by_its_ends() -> None:
    sigma = draw_sigma(NoiseConfig("rho", low=0.01, high=10.0, rho=3.0), 4000, numbers())
    assert float(sigma.min()) == pytest.approx(0.01, rel=0.02)
    assert float(sigma.max()) == pytest.approx(10.0, rel=0.01)
    part = draw_sigma(NoiseConfig("rho", first=0.25, last=0.5), 4000, numbers())
    assert float(part.min()) == pytest.approx(curve(0.25, 0.002, 80.0, 7.0), rel=0.01)
    assert float(part.max()) == pytest.approx(curve(0.5, 0.002, 80.0, 7.0), rel=0.01)


@pytest.mark.parametrize("low", [None, 0.01])
def test_cut_levels_stay_within_their_bounds(low: float | None) -> None:
    config = NoiseConfig(mean=0.0, std=3.0, low=low, high=0.5)
    sigma = draw_sigma(config, 5000, numbers())
    assert float(sigma.max()) <= 0.5
    assert low is None or float(sigma.min()) >= 0.01 * (1 - 1e-6)


def test_a_fixed_level_draws_nothing() -> None:
    generator = numbers()
    state = generator.get_state()
    assert draw_sigma(NoiseConfig("fixed", sigma=2.5), 4, generator).tolist() == [2.5] * 4
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "lognorm"}, "unknown noise 'lognorm': did you mean 'lognormal'"),
        ({"std": 0.0}, "std must be above 0, got 0.0"),
        ({"mean": math.nan}, "mean is that of ln sigma, a finite number"),
        ({"low": 2.0, "high": 1.0}, "low must be below high, got 2.0 and 1.0"),
        ({"kind": "rho", "low": 90.0}, "low must be below high, got 90.0 and 80.0"),
        ({"kind": "rho", "first": 0.9, "last": 0.8}, "expected 0 <= first < last <= 1, got 0.9 and 0.8"),
        ({"kind": "levels", "count": 3, "first": 0.6, "last": 0.9}, "none of 3 levels lies between"),
        ({"low": 1e6, "high": 2e6}, "less than a millionth"),
        ({"kind": "fixed", "sigma": -1.0}, "sigma must be above 0"),
    ],
)
def test_what_is_no_distribution_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NoiseConfig(**settings)  # type: ignore[arg-type]


def test_every_kind_can_be_drawn() -> None:
    for kind in NOISE_KINDS:
        sigma = draw_sigma(NoiseConfig(kind), 7, numbers())
        assert sigma.shape == (7,)
        assert bool((sigma > 0).all())
