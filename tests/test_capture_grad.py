"""Gradients: none unless asked for; if asked, right, also beside in-place operations and in frozen models."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from featlens import Capture


class Residual(nn.Module):
    """Changes in place what its parts gave."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Linear(4, 4)
        self.same = nn.Identity()

    def forward(self, x):
        hidden = self.act(self.first(x))
        skip = self.same(hidden)
        out = self.second(hidden)
        out += skip
        return out * out


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Residual()


@pytest.fixture
def x():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def numeric(function, value, step=1e-6):
    """Central differences of a scalar function in float64."""
    flat = value.detach().flatten()
    out = torch.zeros_like(flat)
    for index in range(len(flat)):
        for sign in (1, -1):
            moved = flat.clone()
            moved[index] += sign * step
            out[index] += sign * function(moved.reshape(value.shape)) / (2 * step)
    return out.reshape(value.shape)


def test_gradients_flow_only_if_asked(net, x):
    with Capture(net, ["**", "**@in"]) as seen:
        net(x)
    assert not any(value.requires_grad for value in seen.values())
    probe = nn.Linear(4, 2)
    for reduce in ("gap", "project(2)", "tokens", probe):
        with Capture(net, ["first", "act"], reduce=reduce) as seen:
            net(x)
        assert not any(value.requires_grad for value in seen.values())
    with Capture(net, "first", reduce="gap", grad=True) as seen:
        net(x)
    seen["first"].sum().backward()
    assert torch.allclose(net.first.weight.grad, x.sum(dim=0).expand(4, 3))


def test_capture_does_not_keep_the_gradients_of_the_model_from_flowing(net, x):
    net(x).sum().backward()
    alone = net.first.weight.grad.clone()
    for options in ({}, {"reduce": "gap"}, {"grad": True}, {"grad": True, "reduce": lambda x: x**2}):
        net.zero_grad()
        with Capture(net, ["**", "**@in"], **options):
            net(x).sum().backward()
        assert torch.equal(net.first.weight.grad, alone), options


def test_grad_keeps_nothing_under_no_grad_and_in_inference_mode(net, x):
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), Capture(net, ["first", "act"], grad=True) as seen:
            net(x)
        assert not any(value.requires_grad for value in seen.values())
        assert torch.equal(seen["first"], net.first(x))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("site", ["first", "act@in", "act", "second@in", "same", "second"])
def test_the_gradient_at_a_site_is_the_derivative_of_the_output_beside_in_place_operations(
    net, x, site, frozen
):
    net, x = net.double(), x.double()
    if frozen:
        net.requires_grad_(False)
    with Capture(net, site, grad=True) as seen:
        out = net(x)
    (found,) = torch.autograd.grad(out.sum(), seen[site])

    def changed(value):
        """The output where the module takes or gives ``value``, and nobody else sees it."""
        module = net.get_submodule(site.removesuffix("@in"))
        if site.endswith("@in"):
            handle = module.register_forward_pre_hook(lambda module, args: (value.clone(),))
        else:
            handle = module.register_forward_hook(lambda module, args, out: value.clone())
        with torch.no_grad():
            total = net(x).sum()
        handle.remove()
        return total

    assert torch.allclose(found, numeric(changed, seen[site]), atol=1e-6)
    assert found.abs().max() > 0


def test_values_and_outputs_are_those_of_the_model_without_capture(net, x):
    plain = net(x)
    with Capture(net, ["**", "**@in"]) as detached:
        net(x)
    for frozen in (False, True):
        net.requires_grad_(not frozen)
        with Capture(net, ["**", "**@in"], grad=True) as seen:
            out = net(x)
        assert torch.equal(out, plain)
        assert list(seen) == list(detached)
        assert all(torch.equal(seen[name], detached[name]) for name in seen)
        assert seen.duplicates == {}


def test_what_is_kept_is_safe_from_in_place_operations_on_any_name_of_it():
    net = nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.ReLU(inplace=True), nn.Hardtanh(inplace=True))
    x = torch.randn(4, 3)
    with Capture(net, ["**", "**@in"], grad=True) as seen:
        net(x)
    linear = net[0](x)
    for name in ("0", "1", "1@in", "2@in"):
        assert torch.equal(seen[name], linear), name
    assert torch.equal(seen["2"], linear.relu()) and torch.equal(seen["3@in"], linear.relu())
    assert torch.equal(seen["3"], linear.relu().clamp(-1, 1))


def test_another_name_of_the_tensor_does_not_reach_what_is_kept():
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.same = nn.Identity()

        def forward(self, x):
            hidden = x + 1
            out = self.same(hidden) * 2
            hidden.zero_()
            return out

    for requires_grad in (False, True):
        x = torch.ones(2, requires_grad=requires_grad)
        with Capture(Aliased(), "same", grad=True) as seen:
            out = seen.module(x)
        assert seen["same"].tolist() == [2, 2]
        assert torch.autograd.grad(out.sum(), seen["same"])[0].tolist() == [2, 2]


def test_every_site_of_a_chain_is_on_the_path(net, x):
    net.requires_grad_(False)
    with Capture(net, ["first", "act", "second"], grad=True) as seen:
        out = net(x)
    gradients = torch.autograd.grad(out.sum(), list(seen.values()))
    assert all(float(gradient.abs().sum()) > 0 for gradient in gradients)
    assert seen["first"].is_leaf and not seen["act"].is_leaf
    with Capture(net, "first", grad=True) as seen:
        net(x).sum().backward()
    assert seen["first"].grad is not None


def test_a_frozen_model_stays_without_gradients(net, x):
    net.requires_grad_(False)
    with Capture(net, "first", grad=True) as seen:
        net(x).sum().backward()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert seen["first"].grad.shape == (5, 4)
    with Capture(net, "first"):
        assert not net(x).requires_grad


def test_whole_numbers_are_kept_without_gradient():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    with Capture(net, ["0@in", "0"], grad=True) as seen:
        out = net(torch.tensor([1, 2]))
    assert seen["0@in"].tolist() == [1, 2]
    assert torch.autograd.grad(out.sum(), seen["0"])[0].shape == (2, 3)


@dataclasses.dataclass
class Output:
    sample: torch.Tensor
    extra: list


class Inner(nn.Module):
    def forward(self, x, *, others):
        return Output(sample=x + others["bias"], extra=[{"h": x * 3}])


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.split = nn.Linear(3, 4)
        self.inner = Inner()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.inner(self.split(x), others={"bias": x.sum()})
        self.act(out.sample)
        return out.sample.sum() + (out.extra[0]["h"] ** 2).sum()


@pytest.mark.parametrize("frozen", [False, True])
def test_structures_are_rebuilt_around_what_is_kept(x, frozen):
    net = Parts().requires_grad_(not frozen)
    names = ["inner@in[0]", "inner@in[others][bias]", "inner[sample]", "inner[extra][0][h]"]
    plain = net(x)
    with Capture(net, names, grad=True) as seen:
        out = net(x)
    assert torch.equal(out, plain)
    gradients = dict(zip(names, torch.autograd.grad(out, [seen[name] for name in names]), strict=True))
    h, sample = seen["inner[extra][0][h]"], seen["inner[sample]"]
    assert torch.allclose(gradients["inner[extra][0][h]"], 2 * h)
    assert torch.equal(gradients["inner[sample]"], (sample > 0).float())
    assert torch.allclose(gradients["inner@in[others][bias]"], (sample > 0).sum().float())
    assert torch.allclose(gradients["inner@in[0]"], (sample > 0) + 6 * h)


def test_a_reduction_that_saves_its_input_works_beside_in_place_operations(net, x):
    with Capture(net, "first", reduce=lambda value: value.square().mean(1), grad=True) as seen:
        net(x)
    seen["first"].sum().backward()
    expected = torch.autograd.grad(net.first(x).square().mean(1).sum(), net.first.weight)[0]
    assert torch.allclose(net.first.weight.grad, expected)


class Saved(nn.Module):
    """Keeps no activations of its network, and runs it again for gradients."""

    def __init__(self, net, reentrant):
        super().__init__()
        self.net, self.reentrant = net, reentrant

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("reduce", [None, "gap", lambda value: value.square()])
@pytest.mark.parametrize("grad", [False, True])
def test_what_checkpointing_runs_again_is_not_captured_again(net, x, reentrant, reduce, grad):
    saved = Saved(net, reentrant)
    x.requires_grad_()
    saved(x).sum().backward()
    alone = net.first.weight.grad.clone()
    net.zero_grad()
    with Capture(saved, ["**", "net.first@in"], reduce, grad=grad) as seen:
        saved(x).sum().backward()
        assert list(seen) == ["net.first@in", "net.first", "net.act", "net.same", "net.second", "net"]
    assert torch.equal(net.first.weight.grad, alone)
    values = net.first(x) if reduce is None or reduce == "gap" else net.first(x).square()
    assert torch.equal(seen["net.first"], values)


def test_checkpointed_parts_have_gradients_at_their_sites(net, x):
    with Capture(net, "first", grad=True) as seen:
        (expected,) = torch.autograd.grad(net(x).sum(), seen["first"])
    with Capture(Saved(net, False), "net.first", grad=True) as seen:
        (found,) = torch.autograd.grad(seen.module(x).sum(), seen["net.first"])
    assert torch.equal(found, expected)
