"""Exponential moving averages by half-life in images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featlens_trainers.ema import ema_copy, ema_decay, ema_update


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
