"""Reductions: their shapes and values, and the requests they refuse."""

from __future__ import annotations

import pytest
import torch

from featlens.errors import UsageError
from featlens.reduce import flatten, gap, grid, resolve


def test_gap_is_the_mean_over_positions_of_maps_tokens_and_volumes():
    maps = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    assert torch.allclose(gap(maps), maps.mean(dim=(2, 3)))
    tokens = torch.arange(2 * 5 * 3, dtype=torch.float32).reshape(2, 5, 3)
    assert torch.allclose(gap(tokens), tokens.mean(dim=1))
    volumes = torch.rand(2, 3, 2, 2, 2)
    assert torch.allclose(gap(volumes), volumes.mean(dim=(2, 3, 4)))


def test_gap_leaves_vectors_as_they_are():
    vectors = torch.rand(4, 7)
    assert torch.equal(gap(vectors), vectors)
    assert gap(torch.rand(4)).shape == (4, 1)


def test_flatten_keeps_everything():
    maps = torch.rand(2, 3, 4, 5)
    assert torch.equal(flatten(maps), maps.reshape(2, 60))


def test_grid_is_the_mean_over_each_cell():
    maps = torch.rand(2, 3, 8, 8)
    cells = grid(2)(maps).reshape(2, 3, 2, 2)
    assert torch.allclose(cells[:, :, 0, 1], maps[:, :, :4, 4:].mean(dim=(2, 3)))
    assert torch.allclose(grid(1)(maps), gap(maps))
    assert torch.equal(grid(8)(maps), flatten(maps))


def test_grid_refuses_what_is_no_map():
    with pytest.raises(
        UsageError, match=r"grid\(2\) needs maps \(B, C, H, W\), got \(4, 7\); use 'gap' or 'flatten'"
    ):
        grid(2)(torch.rand(4, 7))
    for make in (lambda: grid(0), lambda: resolve("grid(0)")):
        with pytest.raises(UsageError, match=r"grid\(0\): k must be at least 1"):
            make()


def test_reductions_are_found_by_name_and_functions_pass_through():
    assert resolve("gap") == ("gap", gap)
    assert resolve("mean") == ("mean", gap)
    assert resolve("flatten") == ("flatten", flatten)
    name, reduction = resolve("grid(3)")
    assert name == "grid(3)"
    assert reduction(torch.rand(2, 1, 6, 6)).shape == (2, 9)
    assert resolve(gap) == ("gap", gap)


@pytest.mark.parametrize("name", ["gpa", "grid", "grid(-1)", "grid(2", ""])
def test_unknown_reductions_are_refused(name):
    with pytest.raises(UsageError, match=r"unknown reduction .*: (did you mean|choose from) "):
        resolve(name)
