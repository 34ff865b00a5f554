"""Capture keeps what the modules gave, leaves no hook behind, and is not noticed by the model."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import nn

from featlens import Capture, sites
from featlens.errors import FeatlensError, SiteError


class Twice(nn.Module):
    """Registers its parts in another order than it runs them, and runs one of them twice."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.shared = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)
        self.first = nn.Linear(3, 4)

    def forward(self, x):
        return self.last(self.shared(torch.relu(self.shared(self.first(x)))))


class Gives(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


def hook_count(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Twice()


@pytest.fixture
def x():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def test_kept_values_are_the_outputs_of_the_modules(net, x):
    with Capture(net, ["first", "last"]) as seen:
        out = net(x)
    assert torch.equal(seen["first"], net.first(x))
    assert torch.equal(seen["last"], out)
    assert seen.shapes == {"first": (5, 4), "last": (5, 2)}


def test_an_in_place_operation_after_the_hooked_layer_does_not_change_what_is_kept():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))
    x = torch.randn(2, 1, 8, 8)
    for reduce in (None, "flatten", lambda value: value.flatten(1)):
        with Capture(net, "0", reduce=reduce) as seen:
            net(x)
        assert seen["0"].min() < 0
        assert torch.equal(seen["0"].reshape(-1), net[0](x).reshape(-1))


def test_sites_come_in_the_order_of_execution_not_of_definition(net, x):
    with Capture(net, "*") as seen:
        net(x)
    assert list(seen) == ["first", "shared#0", "shared#1", "last"]
    assert len(seen) == 4
    assert [site.name for site in sites(net)] == ["last", "shared", "never", "first"]


def test_a_module_that_runs_twice_keeps_both_calls(net, x):
    with Capture(net, "shared") as seen:
        net(x)
    inner = net.shared(net.first(x))
    assert torch.equal(seen["shared#0"], inner)
    assert torch.equal(seen["shared#1"], net.shared(torch.relu(inner)))
    with pytest.raises(
        SiteError, match=r"'shared' ran several times; choose one of \['shared#0', 'shared#1'\]"
    ):
        seen["shared"]


def test_each_forward_pass_replaces_the_one_before(net, x):
    with Capture(net, "first") as seen:
        net(x)
        net(2 * x)
    assert list(seen) == ["first"]
    assert torch.equal(seen["first"], net.first(2 * x))


def test_hooks_are_there_inside_the_block_and_gone_after_it(net, x):
    capture = Capture(net, "*")
    assert hook_count(net) == 0
    with capture:
        assert hook_count(net) == 5
    assert hook_count(net) == 0
    for _ in range(2):
        with Capture(net, "*"):
            net(x)
    assert hook_count(net) == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_hooks_are_gone_after_an_exception(net, error):
    with pytest.raises(error), Capture(net, "*"):
        raise error
    assert hook_count(net) == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_are_gone_after_an_exception_inside_the_forward_pass(net, x, error):
    def fail(module, inputs):
        raise error

    handle = net.last.register_forward_pre_hook(fail)
    with pytest.raises(error), Capture(net, "*"):
        net(x)
    handle.remove()
    assert hook_count(net) == 0


def test_hooks_are_gone_when_registration_itself_fails(net, monkeypatch):
    def refuse(hook):
        raise KeyboardInterrupt

    monkeypatch.setattr(net.first, "register_forward_hook", refuse)
    with pytest.raises(KeyboardInterrupt):
        Capture(net, "*").__enter__()
    assert hook_count(net) == 0


def test_hooks_of_others_stay(net, x):
    calls = []
    net.first.register_forward_hook(lambda *_: calls.append(1))
    with Capture(net, "first"):
        net(x)
    net(x)
    assert calls == [1, 1]


def test_a_capture_in_a_generator_is_cleaned_up_when_it_is_closed(net, x):
    def features():
        with Capture(net, "first") as seen:
            while True:
                net(x)
                yield seen["first"]

    running = features()
    next(running)
    assert hook_count(net) == 2
    running.close()
    assert hook_count(net) == 0


def test_captures_nest_but_not_into_themselves(net, x):
    with Capture(net, "first") as outer, Capture(net, "last") as inner:
        net(x)
        with pytest.raises(FeatlensError, match="already active; make a new one"), outer:
            pass
        assert (list(outer), list(inner)) == (["first"], ["last"])
        net(x)
        assert list(outer) == ["first"]
    with outer:
        net(x)
    assert hook_count(net) == 0


def test_outputs_are_bit_identical_with_and_without_capture(make_denoiser):
    denoiser = make_denoiser()
    x, sigma = torch.randn(4, 1, 8, 8), torch.tensor([0.1, 0.5, 1.0, 2.0])
    for mode in (True, False):
        denoiser.train(mode)
        outputs = []
        for patterns in (None, "**"):
            torch.manual_seed(7)  # dropout is at work in training mode
            if patterns is None:
                outputs.append(denoiser(x, sigma))
            else:
                with Capture(denoiser.network, patterns, reduce="gap"):
                    outputs.append(denoiser(x, sigma))
        assert torch.equal(*outputs)


def test_random_state_and_modes_are_untouched(make_denoiser):
    network = make_denoiser().network
    network.mid[2].eval()
    before, modes = torch.get_rng_state(), [module.training for module in network.modules()]
    with Capture(network, "**", reduce="grid(2)"):
        pass
    with Capture(network.mid, "0", reduce="gap"):
        network.mid(torch.zeros(1, 6, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in network.modules()] == modes


def test_gradients_flow_only_if_asked(net, x):
    with Capture(net, "first") as seen:
        net(x).sum().backward()
    assert not seen["first"].requires_grad
    assert net.first.weight.grad is not None
    net.zero_grad()
    with Capture(net, "first", reduce="gap", grad=True) as seen:
        net(x)
    seen["first"].sum().backward()
    assert torch.allclose(net.first.weight.grad, x.sum(dim=0).expand(4, 3))


def test_capture_does_not_keep_the_gradients_of_the_model_from_flowing(net, x):
    net(x).sum().backward()
    alone = net.first.weight.grad.clone()
    net.zero_grad()
    with Capture(net, "**"):
        net(x).sum().backward()
    assert torch.equal(net.first.weight.grad, alone)


def test_grad_keeps_nothing_under_no_grad(net, x):
    with torch.no_grad(), Capture(net, "first", grad=True) as seen:
        net(x)
    assert not seen["first"].requires_grad


def test_capture_works_in_inference_mode_and_in_half_precision(net, x):
    with torch.inference_mode(), Capture(net, "first", reduce="gap") as seen:
        net(x)
    assert torch.allclose(seen["first"], net.first(x))
    half = net.to(torch.bfloat16)
    with Capture(half, "first") as seen:
        half(x.to(torch.bfloat16))
    assert seen["first"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "what",
    [lambda x: (x + 1, "state"), lambda x: [x + 1, x], lambda x: namedtuple("Out", "sample extra")(x + 1, 0)],
    ids=["tuple", "list", "namedtuple"],
)
def test_of_a_tuple_the_leading_tensor_is_kept(what, x):
    net = nn.Sequential(Gives(what))
    with Capture(net, "0") as seen:
        net(x)
    assert torch.equal(seen["0"], x + 1)


@pytest.mark.parametrize(
    ("what", "found"),
    [
        (lambda x: {"sample": x, "extra": x}, r"a mapping with keys \['sample', 'extra'\]"),
        (lambda x: (), "a tuple"),
        (lambda x: ("text", x), "a tuple"),
        (lambda x: None, "a NoneType"),
    ],
)
def test_other_outputs_are_refused_and_named(what, found, x):
    net = nn.Sequential(Gives(what))
    with (
        pytest.raises(FeatlensError, match=f"site '0' returned {found}; a tensor or a tuple"),
        Capture(net, "0"),
    ):
        net(x)
    assert hook_count(net) == 0


def test_a_misspelled_site_names_the_nearest(make_denoiser):
    network = make_denoiser().network
    with pytest.raises(SiteError, match=r"no site 'enc\.cnov' in the network Net: did you mean 'enc\.conv'"):
        Capture(network, "enc.cnov")
    with pytest.raises(SiteError, match=r"no site 'dec\.\*\*' in the network Net"):
        Capture(network, ["enc.*", "dec.**"])


def test_what_was_not_captured_is_told_from_what_did_not_run(net, x):
    with Capture(net, ["first", "never"]) as seen:
        with pytest.raises(SiteError, match="site 'first' did not run in the last forward pass"):
            seen["first"]
        net(x)
        with pytest.raises(SiteError, match="1 chosen sites did not run in the forward pass, first 'never'"):
            seen.require_all()
    with pytest.raises(SiteError, match="site 'never' did not run in the last forward pass"):
        seen["never"]
    with pytest.raises(SiteError, match="site 'frist' was not captured: did you mean 'first'"):
        seen["frist"]


def test_a_capture_is_a_mapping(net, x):
    with Capture(net, ["first", "never"]) as seen:
        net(x)
    assert "first" in seen
    assert "never" not in seen
    assert "elsewhere" not in seen
    assert seen.get("elsewhere") is None
    assert {name: tuple(value.shape) for name, value in seen.items()} == {"first": (5, 4)}


def test_a_failure_inside_a_reduction_is_not_swallowed(net, x):
    with pytest.raises(IndexError), Capture(net, "first", reduce=lambda value: value.mean(dim=7)):
        net(x)
    assert hook_count(net) == 0


def test_lists_and_dicts_of_modules_are_no_sites_but_what_is_in_them_is(make_denoiser):
    network = make_denoiser().network
    found = [(site.name, site.kind, site.order) for site in sites(network, ["*", "enc.*"])]
    assert found == [
        ("enc.conv", "Conv2d", 0),
        ("enc.norm", "GroupNorm", 1),
        ("mid", "Sequential", 2),
        ("told", "Linear", 3),
        ("out", "ConvTranspose2d", 4),
    ]
    with pytest.raises(SiteError, match="no site 'enc' in the network Net"):
        sites(network, "enc")


def test_a_container_with_a_forward_pass_of_its_own_is_a_site():
    class Chain(nn.ModuleList):
        def forward(self, x):
            for layer in self:
                x = layer(x)
            return x

    net = nn.Sequential(Chain([nn.Linear(3, 3), nn.Linear(3, 2)]), nn.Identity())
    with Capture(net, "0") as seen:
        out = net(torch.ones(1, 3))
    assert torch.equal(seen["0"], out)
