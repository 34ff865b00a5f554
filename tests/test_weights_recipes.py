"""What each recipe keeps of a tensor, for any tensor."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from featlens.weights.recipes import interpolated, moments, near_zero, permuted, spectrum, stream, xavier

shapes = st.lists(st.integers(1, 6), min_size=0, max_size=4).map(tuple)
seeds = st.integers(0, 2**31)


def tensor(shape: tuple[int, ...], seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return shift + scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def numbers(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(shapes, seeds, seeds)
def test_permuted_keeps_the_multiset_of_values(shape, content, seed) -> None:
    given_one = tensor(shape, content)
    out = permuted(given_one, numbers(seed))
    assert out.shape == given_one.shape
    assert torch.equal(out.flatten().sort().values, given_one.flatten().sort().values)


@given(shapes, seeds, seeds, st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_moments_keeps_mean_and_standard_deviation(shape, content, seed, scale, shift) -> None:
    given_one = tensor(shape, content, scale, shift).double()
    out = moments(given_one, numbers(seed))
    assert out.shape == given_one.shape
    size = scale + abs(shift)
    assert float(out.mean()) == pytest.approx(float(given_one.mean()), abs=1e-9 * size)
    assert float(out.std(correction=0)) == pytest.approx(float(given_one.std(correction=0)), abs=1e-9 * size)


def test_moments_are_normal_draws_and_not_the_values() -> None:
    given_one = torch.cat([torch.zeros(900), torch.full((100,), 10.0)])
    out = moments(given_one, numbers(0))
    ordered = ((out - out.mean()) / out.std()).sort().values
    normal = torch.special.ndtri((torch.arange(1000) + 0.5) / 1000)
    assert float((ordered - normal).abs()[10:-10].max()) < 0.2


@given(st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple), seeds, seeds)
@settings(max_examples=60)
def test_spectrum_keeps_the_singular_values_of_out_by_the_rest(shape, content, seed) -> None:
    given_one = tensor(shape, content).double()
    out = spectrum(given_one, numbers(seed))
    assert out.shape == given_one.shape
    wanted = torch.linalg.svdvals(given_one.reshape(shape[0], -1))
    assert torch.allclose(torch.linalg.svdvals(out.reshape(shape[0], -1)), wanted, atol=1e-9)


def test_spectrum_has_random_directions_on_both_sides() -> None:
    given_one = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0])).double()
    first = [spectrum(given_one, numbers(seed)) for seed in range(400)]
    # Haar factors: every entry has mean 0 and the mean square |values|^2 / 16.
    stacked = torch.stack(first)
    assert float(stacked.mean(0).abs().max()) < 5 * math.sqrt(85 / 16 / 400)
    assert torch.allclose(stacked.square().mean(0), torch.full((4, 4), 85 / 16).double(), rtol=0.35)


@given(st.integers(1, 50), seeds, seeds)
def test_spectrum_permutes_what_has_no_matrix(size, content, seed) -> None:
    given_one = tensor((size,), content)
    assert torch.equal(spectrum(given_one, numbers(seed)), permuted(given_one, numbers(seed)))


@given(shapes, seeds, st.floats(0, 1))
def test_interpolated_is_the_weighted_mean_and_exact_at_both_ends(shape, seed, amount) -> None:
    random, given_one = tensor(shape, seed), tensor(shape, seed + 1)
    out = interpolated(random, given_one, amount)
    assert torch.allclose(out, (1 - amount) * random + amount * given_one, atol=1e-5)
    assert torch.equal(interpolated(random, given_one, 0.0), random)
    assert torch.equal(interpolated(random, given_one, 1.0), given_one)


@pytest.mark.parametrize("recipe", [moments, spectrum])
def test_counts_and_empty_tensors_are_left_alone(recipe) -> None:
    for held in (torch.tensor(7), torch.arange(6).reshape(2, 3), torch.zeros(0, 3)):
        out = recipe(held, numbers(0))
        assert torch.equal(out, held) and out.dtype == held.dtype and out is not held
    assert int(interpolated(torch.tensor(1), torch.tensor(7), 0.5)) == 7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recipe", [permuted, moments, spectrum])
def test_recipes_keep_the_dtype_and_do_not_touch_what_they_are_given(recipe, dtype) -> None:
    held = tensor((4, 3, 2, 2), 0).to(dtype)
    before = held.clone()
    out = recipe(held, numbers(1))
    assert out.dtype == dtype and torch.equal(held, before) and not torch.equal(out, held)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("recipe", [permuted, moments, spectrum])
def test_recipes_are_functions_of_tensor_and_stream(recipe) -> None:
    held = tensor((5, 7), 3)
    first = recipe(held, stream(0, "a", "layer"))
    assert torch.equal(first, recipe(held, stream(0, "a", "layer")))
    for other in (stream(1, "a", "layer"), stream(0, "b", "layer"), stream(0, "a", "other")):
        assert not torch.equal(first, recipe(held, other))


def test_xavier_has_the_bound_and_spread_of_the_textbook() -> None:
    out = xavier(torch.zeros(64, 32, 3, 3), numbers(0))
    bound = math.sqrt(6 / (9 * (64 + 32)))
    assert float(out.abs().max()) <= bound
    assert float(out.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_near_zero_knows_small_gains_from_usual_ones() -> None:
    usual = xavier(torch.zeros(16, 16, 3, 3), numbers(0))
    assert near_zero(1e-5 * usual) and near_zero(torch.zeros(4, 4))
    assert not near_zero(usual) and not near_zero(math.sqrt(0.2) * usual)
    assert not near_zero(torch.zeros(4)) and not near_zero(torch.zeros(4, 4, dtype=torch.int64))
