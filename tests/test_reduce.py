"""Reductions: their shapes and values, and the requests they refuse."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch
from torch import nn

from featlens import Capture
from featlens.errors import UsageError
from featlens.reduce import fingerprint, flatten, gap, grid, resolve, tokens


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


def test_tokens_keeps_positions_apart():
    maps = torch.rand(2, 3, 4, 5)
    apart = tokens(maps)
    assert apart.shape == (2, 20, 3)
    assert torch.equal(apart[:, 7], maps[:, :, 1, 2])
    assert torch.equal(tokens(apart), apart)
    assert torch.equal(tokens(maps[:, :, 0, 0]), maps[:, :, 0, 0][:, None])
    assert tokens(torch.rand(2, 3, 2, 2, 2)).shape == (2, 8, 3)
    assert tokens(torch.rand(4)).shape == (4, 1, 1)
    assert torch.equal(gap(tokens(maps)), tokens(maps).mean(dim=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["gap", "flatten", "tokens", "grid(2)", "project(8)"])
def test_half_precision_is_reduced_in_float32(name, dtype):
    # 256 numbers of 3000 overflow float16 when they are added, and 1 is lost beside them in either type.
    maps = torch.full((2, 2, 16, 16), 3000.0)
    maps[:, :, 0, 0] = 1.0
    reduced = resolve(name)[1](maps.to(dtype))
    assert reduced.dtype == torch.float32
    assert torch.allclose(reduced, resolve(name)[1](maps.to(dtype).float()), rtol=1e-6)


@pytest.mark.parametrize("name", ["gap", "flatten", "tokens", "grid(2)", "project(8)"])
def test_double_precision_and_whole_numbers(name):
    maps = torch.rand(2, 2, 16, 16, dtype=torch.float64)
    assert resolve(name)[1](maps).dtype == torch.float64
    assert resolve(name)[1](torch.ones(2, 2, 4, 4, dtype=torch.int64)).dtype == torch.float32


def test_half_precision_tokens_and_vectors_are_averaged_in_float32():
    values = torch.full((2, 512, 3), 300.0)
    values[:, 0] = 1.0
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.allclose(gap(values.to(dtype)), values.to(dtype).double().mean(1).float(), rtol=1e-6)


def test_memory_format_changes_nothing():
    maps = torch.rand(2, 3, 8, 8)
    for name in ("gap", "flatten", "tokens", "grid(2)", "project(8)"):
        reduce = resolve(name)[1]
        other = reduce(maps.to(memory_format=torch.channels_last))
        assert torch.allclose(other, reduce(maps), rtol=1e-6), name


@pytest.mark.parametrize("name", ["gap", "flatten", "tokens", "grid(2)", "project(8)"])
def test_an_empty_batch_stays_empty_and_a_single_number_is_refused(name):
    reduce = resolve(name)[1]
    assert reduce(torch.zeros(0, 3, 4, 4)).shape == (0, *reduce(torch.zeros(1, 3, 4, 4)).shape[1:])
    with pytest.raises(UsageError, match=r"got a single number; leave this site out|got \(\)"):
        reduce(torch.tensor(1.0))


@pytest.mark.parametrize("reduce", ["grid(2)", "gap"])
def test_a_refusal_names_the_site(reduce):
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    net[1].register_forward_hook(lambda module, inputs, output: output.sum() if reduce == "gap" else output)
    with pytest.raises(UsageError, match=r"^site '1': "), Capture(net, "1", reduce=reduce):
        net(torch.zeros(2, 4))


def test_complex_numbers_are_refused_and_never_halved():
    class Spectrum(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x)

    net = nn.Sequential(Spectrum())
    with pytest.raises(UsageError, match=r"site '0': complex numbers have no reduction"):
        Capture(net, "0", reduce="gap").run(net, torch.zeros(2, 4))
    seen = Capture(net, "0", reduce=lambda x: torch.view_as_real(x).flatten(1))
    seen.run(net, torch.ones(2, 4))
    assert seen["0"].shape == (2, 8)


def _first(x, k):
    return x.flatten(1)[:, :k]


def _scaled(weight):
    return lambda x: x * weight.sum()


def test_functions_that_compute_something_else_are_told_apart():
    linear, other = nn.Linear(3, 2), nn.Linear(3, 2)
    assert fingerprint(linear) != fingerprint(other)
    other.load_state_dict(linear.state_dict())
    assert fingerprint(linear) == fingerprint(other)
    assert fingerprint(linear.bfloat16()) != fingerprint(other)
    weight, changed = torch.zeros(2000), torch.zeros(2000)
    changed[1000] = 1
    assert fingerprint(_scaled(weight)) != fingerprint(_scaled(changed))
    assert fingerprint(functools.partial(_first, k=2)) != fingerprint(functools.partial(_first, k=3))


def test_a_function_that_holds_itself_has_a_fingerprint():
    def halved(x):
        return x if x.shape[-1] == 1 else halved(x[..., ::2])

    assert fingerprint(halved) == fingerprint(halved)


def test_a_function_is_the_same_one_in_another_process():
    code = (
        "import functools\nfrom featlens.reduce import fingerprint\n"
        "def f(x, k): return [(lambda z: z in {'a', 'b', 'c'})(y) for y in x]\n"
        "print(fingerprint(functools.partial(f, k=2)), fingerprint(f))"
    )
    said = {subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2)}
    assert len(said) == 1
