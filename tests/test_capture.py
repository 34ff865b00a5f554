"""Capture keeps what the modules gave, leaves no hook behind, and is not noticed by the model."""

from __future__ import annotations

import gc

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


def test_a_capture_in_a_generator_is_cleaned_up_when_it_is_closed_or_collected(net, x):
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
    running = features()
    next(running)
    assert hook_count(net) == 2
    del running
    gc.collect()
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


def test_capture_works_in_inference_mode_and_in_half_precision(net, x):
    with torch.inference_mode(), Capture(net, "first", reduce="gap") as seen:
        net(x)
    assert torch.allclose(seen["first"], net.first(x))
    half = net.to(torch.bfloat16)
    with Capture(half, "first") as seen:
        half(x.to(torch.bfloat16))
    assert seen["first"].dtype == torch.bfloat16


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
    with pytest.raises(
        SiteError,
        match=r"site 'never' did not run in the last .*whose forward is called directly, .* no hook",
    ):
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


def test_a_module_whose_forward_is_called_directly_is_said_not_to_run(x):
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.a.forward(x))

    with Capture(Direct(), "*") as seen:
        seen.module(x)
        with pytest.raises(
            SiteError, match=r"first 'a'; leave it out \(a module whose forward is called directly"
        ):
            seen.require_all()
    assert list(seen) == ["b"]


@pytest.mark.parametrize("batch", [0, 1, 2, 3])
def test_small_last_batches_are_kept_as_they_are(net, x, batch):
    with Capture(net, ["first", "last"], reduce="gap") as seen:
        net(x)
        net(x[:batch])
    assert {name: tuple(value.shape) for name, value in seen.items()} == {
        "first": (batch, 4),
        "last": (batch, 2),
    }
    assert torch.equal(seen["first"], net.first(x[:batch]))


def test_names_are_found_by_other_spellings_too(net, x):
    with Capture(net, ["first@out", "last@in[input]"]) as seen:
        net(x)
    assert list(seen) == ["first", "last@in[input]"]
    assert seen["first@out"] is seen["first"]
    assert seen["last@in['input']"] is seen["last@in[input]"]


def test_one_call_of_a_repeated_module_can_be_chosen(net, x):
    with Capture(net, ["shared#1", "last"]) as seen:
        net(x)
        seen.require_all()
    assert list(seen) == ["shared#1", "last"]
    assert torch.equal(net.last(seen["shared#1"]), seen["last"])
    with Capture(net, ["shared#2", "shared#0", "shared"]) as seen:
        net(x)
    assert list(seen) == ["shared#0", "shared#1"]
    with Capture(net, "shared#2") as seen:
        net(x)
    with pytest.raises(SiteError, match="1 chosen sites did not run in the forward pass, first 'shared#2'"):
        seen.require_all()


def test_classes_and_shapes_are_told(net, x):
    with Capture(net, ["shared", "first@in"], reduce="gap") as seen:
        net(x)
    assert seen.kinds == {"first@in": "Linear", "shared#0": "Linear", "shared#1": "Linear"}
    assert seen.shapes == {"first@in": (5, 3), "shared#0": (5, 4), "shared#1": (5, 4)}


def test_identical_outputs_are_reduced_once_and_shared():
    inner = nn.Sequential(nn.Linear(3, 3), nn.Identity())
    net = nn.Sequential(inner, nn.ReLU(inplace=True), nn.Linear(3, 2))
    calls = []
    with Capture(net, ["**", "0.1@in", "1@in", "2@in"], reduce=lambda x: calls.append(1) or x.sum(1)) as seen:
        net(torch.randn(4, 3))
    # The in-place ReLU gives the object that the layers before it gave, but with other numbers in it.
    assert seen.duplicates == {"0.1@in": "0.0", "0.1": "0.0", "0": "0.0", "1@in": "0.0", "2@in": "1"}
    assert len(calls) == 3
    assert all(seen[name] is seen[other] for name, other in seen.duplicates.items())
    assert seen["1"] is not seen["0"]
    assert not torch.equal(seen["1"], seen["0"])


def test_what_was_freed_is_not_taken_for_what_came_after_it():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.step = nn.Linear(3, 3)

        def forward(self, x):
            for value in range(50):
                self.step(x + value)  # freed at once: the next one may get its id
            return x

    with Capture(Many(), "step", reduce="gap") as seen:
        seen.module(torch.zeros(2, 3))
    assert seen.duplicates == {}
    assert len({tuple(value.flatten().tolist()) for value in seen.values()}) == 50


def test_capture_costs_one_clone_or_one_reduction_a_site():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    model, image = nn.Sequential(nn.Conv2d(1, 2, 3)), torch.rand(2, 1, 8, 8)
    counted = {}
    for reduce in ("bare", None, "gap", "grid(2)", "project(8)"):
        names: list[str] = []
        with torch.no_grad():
            if reduce == "bare":
                with Count():
                    model(image)
            else:
                with Capture(model, "0", reduce=reduce), Count():
                    model(image)
        counted[reduce] = names
    extra = {reduce: len(names) - len(counted["bare"]) for reduce, names in counted.items()}
    assert extra[None] == 2  # detach, clone
    assert extra["gap"] == 2  # detach, mean
    assert "clone" not in counted["grid(2)"] and "clone" not in counted["gap"]
