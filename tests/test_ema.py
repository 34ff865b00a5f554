"""Averages of weights: by half-life in images, with power-function profiles, several at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featlens.errors import UsageError
from featlens_trainers.ema import (
    HalfLife,
    Power,
    ema_copy,
    ema_decay,
    ema_update,
    exponent_of,
    power_std,
    profiles,
    tracked,
)
from featlens_trainers.training import Training


@given(st.sampled_from([1, 2, 5, 10, 50]), st.sampled_from([100.0, 400.0]))
def test_a_weight_is_halved_after_its_half_life_whatever_the_batch(batch: int, half_life: float) -> None:
    kept = 1.0
    for step in range(int(half_life) // batch):
        kept *= ema_decay(10_000 + (step + 1) * batch, batch, half_life, ramp=1.0)
    assert kept == pytest.approx(0.5)


@given(st.integers(1, 10_000), st.floats(0.01, 1.0))
def test_the_half_life_ramps_up_with_the_images_seen(images: int, ramp: float) -> None:
    expected = 0.5 ** (32 / min(500.0, ramp * images))
    assert ema_decay(images, 32, 500.0, ramp) == pytest.approx(expected)


def test_the_first_weights_are_soon_forgotten() -> None:
    decays = [ema_decay(images, 64, 8_000, 0.05) for images in range(64, 64_000, 64)]
    assert decays == sorted(decays)
    kept = 1.0
    for decay in decays[:20]:
        kept *= decay
    assert kept < 1e-9
    assert ema_decay(0, 64, 8_000, 0.05) == 0.0


def test_the_average_is_the_weighted_sum_of_all_weights() -> None:
    live = nn.Linear(3, 2).double()
    average = ema_copy(live)
    history, decays = [live.weight.detach().clone()], [0.5, 0.9, 0.8]
    for step, decay in enumerate(decays):
        with torch.no_grad():
            live.weight += step + 1.0
        history.append(live.weight.detach().clone())
        ema_update(average, live, decay)
    expected = history[0]
    for weights, decay in zip(history[1:], decays, strict=True):
        expected = decay * expected + (1 - decay) * weights
    torch.testing.assert_close(average.weight.detach(), expected)


def test_decay_one_keeps_and_decay_zero_follows() -> None:
    live = nn.Linear(3, 2)
    average = ema_copy(live)
    before = average.weight.clone()
    with torch.no_grad():
        live.weight += 1.0
    ema_update(average, live, 1.0)
    assert torch.equal(average.weight, before)
    ema_update(average, live, 0.0)
    assert torch.equal(average.weight, live.weight)


def test_a_copy_is_frozen_independent_and_in_evaluation_mode() -> None:
    live = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train()
    average = ema_copy(live)
    assert not any(module.training for module in average.modules())
    assert all(module.training for module in live.modules())
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert all(parameter.requires_grad for parameter in live.parameters())
    with torch.no_grad():
        live[0].weight += 1.0
    assert not torch.equal(average[0].weight, live[0].weight)


def test_buffers_are_copied_not_averaged() -> None:
    live = nn.BatchNorm1d(2)
    average = ema_copy(live)
    live(torch.randn(8, 2) + 5.0)
    ema_update(average, live, 0.9)
    assert torch.equal(average.running_mean, live.running_mean)
    assert torch.equal(average.num_batches_tracked, live.num_batches_tracked)


def test_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        ema_update(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.5)


# --- power-function profiles --------------------------------------------------------------------------------


def kept_weights(profile: HalfLife | Power, batch: int, steps: int) -> list[float]:
    """Weight of each step's network in the average after ``steps`` steps, and of the initial one, first."""
    weights = [1.0]
    for step in range(steps):
        decay = profile.decay((step + 1) * batch, batch)
        weights = [weight * decay for weight in weights] + [1 - decay]
    return weights


@given(st.floats(0.001, 12**-0.5))
def test_width_and_exponent_belong_together(std: float) -> None:
    exponent = exponent_of(std)
    assert exponent >= 0
    assert power_std(exponent) == pytest.approx(std, rel=1e-9)
    # The published relation as a cubic equation, with t = std^-2: g^3 + 7 g^2 + (16 - t) g + (12 - t) = 0.
    t = std**-2
    roots = np.roots([1.0, 7.0, 16.0 - t, 12.0 - t])
    assert max(roots.real) == pytest.approx(exponent, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
@pytest.mark.parametrize("batch", [1, 20])
def test_a_power_profile_has_its_shape_and_width(std: float, batch: int) -> None:
    steps = 2_000 // batch
    initial, *weights = kept_weights(Power(std), batch, steps)
    assert initial == 0.0
    assert sum(weights) == pytest.approx(1.0)
    # beta = (1 - 1/t)^(gamma + 1) (arXiv 2312.02696, equation 2) is the profile t^gamma, integrated stepwise.
    ends = np.arange(steps + 1) / steps
    np.testing.assert_allclose(weights, np.diff(ends ** (exponent_of(std) + 1)), rtol=1e-9)
    middles = (ends[1:] + ends[:-1]) / 2
    mean = np.average(middles, weights=weights)
    width = math.sqrt(np.average((middles - mean) ** 2, weights=weights))
    assert width == pytest.approx(std, rel=0.03)


def test_the_batch_changes_no_power_profile() -> None:
    fine = kept_weights(Power(0.1), 5, 80)[1:]
    coarse = kept_weights(Power(0.1), 20, 20)[1:]
    np.testing.assert_allclose(np.reshape(fine, (20, 4)).sum(1), coarse, rtol=1e-9)


def test_the_widest_profile_is_the_plain_mean() -> None:
    np.testing.assert_allclose(kept_weights(Power(12**-0.5), 7, 50)[1:], np.full(50, 0.02), rtol=1e-6)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.3, math.nan])
def test_a_width_that_no_profile_has_is_refused(std: float) -> None:
    with pytest.raises(UsageError, match=r"above 0 and at most 0\.2887 .* got"):
        Power(std)


# --- tracks -------------------------------------------------------------------------------------------------


def test_every_track_follows_the_network_with_its_own_profile() -> None:
    live = nn.Linear(2, 1).double()
    wanted = profiles(100, 1.0, half_lives=[30], powers=[0.1])
    networks, averages = tracked(live, wanted)
    assert list(networks) == list(averages) == ["ema", "ema-30", "ema-power0.1"]
    assert {average.of for average in averages.values()} == {"net"}
    training = Training({"net": live, **networks}, {}, averages)
    history = [live.weight.detach().clone()]
    for step in range(25):
        with torch.no_grad():
            live.weight += torch.tensor([[1.0, -0.5]]) * (step % 3)
        history.append(live.weight.detach().clone())
        training.advance(10)
    for name, profile in wanted.items():
        weights = kept_weights(profile, 10, 25)
        expected = sum(weight * value for weight, value in zip(weights, history, strict=True))
        torch.testing.assert_close(networks[name].weight.detach(), expected)
    values = [float(network.weight[0, 0]) for network in networks.values()]
    assert len(set(values)) == 3


def test_a_track_asked_for_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="'ema-30' is asked for twice"):
        profiles(100, 1.0, half_lives=[30, 30])
    with pytest.raises(UsageError, match=r"'ema-power0\.1' is asked for twice"):
        profiles(100, 1.0, powers=[0.1, 0.1])
