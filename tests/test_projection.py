"""The random projection: unbiased, with the variance its documentation states, the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featlens.errors import UsageError
from featlens.projection import block_sizes, deal
from featlens.reduce import project, resolve


def dense(d: int, seed: int, count: int) -> np.ndarray:
    """The matrix (d, count), written down from its definition."""
    rows = []
    for block, size in enumerate(block_sizes(d)):
        order, signs = deal(d, seed, count, block)
        matrix = np.zeros((size, count))
        for k in range(count):
            matrix[k % size, order[k]] = signs[k] * np.sqrt(size / d)
        rows.append(matrix)
    return np.concatenate(rows)


@given(st.integers(1, 13), st.integers(0, 40), st.integers(0, 1000))
def test_it_is_the_matrix_of_its_definition(d, more, seed):
    count = d + 1 + more
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, count)))
    assert np.allclose(project(d, seed)(x).numpy(), x.numpy() @ dense(d, seed, count).T)


@given(st.integers(1, 13), st.integers(0, 40), st.integers(0, 1000))
def test_every_number_is_in_one_bucket_of_each_block_and_buckets_are_even(d, more, seed):
    matrix = dense(d, seed, d + 1 + more) != 0
    at = 0
    for size in block_sizes(d):
        block = matrix[at : at + size]
        assert (block.sum(axis=0) == 1).all()
        filled = block.sum(axis=1)
        assert filled.max() - filled.min() <= 1
        at += size
    assert at == d == sum(block_sizes(d))


@pytest.mark.parametrize("d", [8, 10])
def test_inner_products_are_kept_on_average_with_the_variance_of_the_docs(d):
    count, draws = 40, 1500
    numbers = np.random.default_rng(3)
    x, y = numbers.normal(size=(2, count))
    y += 0.5 * x
    pair = torch.from_numpy(np.stack([x, y]))
    products = np.array(
        [float(np.prod(project(d, seed)(pair).numpy(), axis=0).sum()) for seed in range(draws)]
    )
    spread = (x @ x) * (y @ y) + (x @ y) ** 2 - 2 * ((x * y) ** 2).sum()
    # Two numbers meet in a block's bucket with probability `meet`, worked out from the sizes of the buckets.
    variance = 0.0
    for size in block_sizes(d):
        filled = np.array([count // size + (bucket < count % size) for bucket in range(size)])
        meet = (filled * (filled - 1)).sum() / (count * (count - 1))
        assert meet <= 1 / size
        variance += (size / d) ** 2 * meet * spread
    assert abs(products.mean() - x @ y) < 4 * np.sqrt(variance / draws)
    assert products.var() == pytest.approx(variance, rel=0.15)
    assert variance <= ((x @ x) * (y @ y) + (x @ y) ** 2) / d


def test_norms_of_wide_activations_are_kept_within_the_documented_spread():
    d, count = 256, 4096
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(200, count)).astype(np.float32))
    ratio = project(d)(x).square().sum(1) / x.square().sum(1)
    assert abs(float(ratio.mean()) - 1) < 0.02
    assert float((ratio - 1).square().mean().sqrt()) < 1.15 * (2 / d) ** 0.5


def test_up_to_d_numbers_are_kept_whole():
    x = torch.rand(3, 4, 2, 2)
    assert torch.equal(project(16)(x), x.flatten(1))
    assert torch.equal(project(99)(x), x.flatten(1))
    assert project(15)(x).shape == (3, 15)


def test_it_depends_on_size_seed_and_width_alone():
    x = torch.rand(4, 100, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    assert torch.equal(project(8)(x), project(8)(x))
    assert torch.allclose(project(8)(x[:1]), project(8)(x)[:1])
    assert torch.allclose(project(8)(x.reshape(4, 4, 5, 5)), project(8)(x))
    assert not torch.allclose(project(8, 1)(x), project(8)(x))
    assert torch.equal(torch.get_rng_state(), state)
    # Files of this version and of later ones have to be comparable: the order and the signs never change.
    order, signs = deal(8, 0, 10, 1)
    assert order.tolist() == [5, 3, 1, 9, 6, 0, 8, 4, 2, 7]
    assert signs.tolist() == [1, -1, 1, 1, -1, 1, -1, -1, -1, 1]


def test_first_use_in_inference_mode_does_not_spoil_gradients_later():
    reduce = project(4)
    with torch.inference_mode():
        reduce(torch.rand(2, 9))
    x = torch.rand(2, 9, requires_grad=True)
    reduce(x).sum().backward()
    assert np.allclose(x.grad[0].numpy(), dense(4, 0, 9).sum(axis=0))


def test_autocast_does_not_lower_the_precision():
    x = torch.rand(2, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert project(8)(x).dtype == torch.float32
        inside = project(8)(x)
    assert torch.equal(inside, project(8)(x))


def test_names_say_size_and_seed():
    assert resolve("project(256)")[0] == resolve("project(256, 0)")[0] == "project(256)"
    assert resolve("project(256,3)")[0] == resolve(project(256, 3))[0] == "project(256, 3)"
    for make in (lambda: project(0), lambda: resolve("project(0)")):
        with pytest.raises(UsageError, match=r"project\(0\): the number of features must be at least 1"):
            make()
    with pytest.raises(UsageError, match="unknown reduction 'project': did you mean"):
        resolve("project")
