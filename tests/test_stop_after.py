"""The forward pass ends after the last wanted site, and nothing else is disturbed by it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featlens import Capture
from featlens.errors import FeatlensError, SiteError


class Chain(nn.Module):
    """Four layers that count their calls; the second runs twice."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.done = 0

    def forward(self, x):
        for index in (0, 1, 1, 2, 3):
            x = self.layers[index](x)
        self.done += 1
        return x


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Chain()


X = torch.ones(2, 3)


def calls_of(net):
    counts = []
    for layer in net.layers:
        counts.append([])
        layer.register_forward_hook(lambda module, args, out, count=counts[-1]: count.append(1))
    return lambda: [len(count) for count in counts]


def hook_count(net):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules())


def test_the_first_pass_is_whole_and_later_ones_end_after_the_last_site(net):
    with Capture(net, ["layers.0", "layers.2"]) as expected:
        net(X)
    count = calls_of(net)
    with Capture(net, ["layers.0", "layers.2"], stop_after=True) as seen:
        outputs = [seen.run(net, X) for _ in range(3)]
        seen.require_all()
    assert outputs[0] is not None and outputs[1:] == [None, None]
    assert count() == [3, 6, 3, 1]
    assert net.done == 2
    assert list(seen) == list(expected)
    assert all(torch.equal(seen[name], expected[name]) for name in expected)
    net(X)
    assert net.done == 3


def test_in_a_plain_block_the_pass_that_ends_early_ends_the_block(net):
    with Capture(net, ["layers.0", "layers.2"], stop_after=True) as seen:
        net(X)
        net(2 * X)
        raise AssertionError("not reached")
    assert net.done == 1
    assert torch.equal(seen["layers.0"], net.layers[0](2 * X))
    assert hook_count(net) == 0


def test_a_named_site_ends_the_first_pass_already(net):
    with Capture(net, ["layers.0", "layers.2"], stop_after="layers.2") as seen:
        net(X)
    assert net.done == 0 and list(seen) == ["layers.0", "layers.2"]
    with Capture(net, "**", stop_after="layers.0") as seen:
        assert seen.run(net, X) is None
        with pytest.raises(
            SiteError, match=r"first 'layers.1', which stop_after ended; stop later, or leave it"
        ):
            seen.require_all()
        with pytest.raises(
            SiteError, match=r"'layers.3' did not run in the last forward pass, which stop_after"
        ):
            seen["layers.3"]
    assert list(seen) == ["layers.0"]


@pytest.mark.parametrize(
    ("sites", "stop", "names", "counts"),
    [
        ("layers.*", "layers.1", ["layers.0", "layers.1"], [1, 1, 0, 0]),
        ("layers.*", "layers.1#1", ["layers.0", "layers.1#0", "layers.1#1"], [1, 2, 0, 0]),
        (["layers.0", "layers.1#1"], "layers.1#1", ["layers.0", "layers.1#1"], [1, 2, 0, 0]),
        (["layers.0", "layers.2@in"], "layers.2@in", ["layers.0", "layers.2@in"], [1, 2, 0, 0]),
        (["layers.0", "layers.2@in"], True, ["layers.0", "layers.2@in"], [2, 4, 1, 1]),
        ("layers.1", True, ["layers.1#0", "layers.1#1"], [2, 4, 1, 1]),
        ("layers.1#0", True, ["layers.1#0"], [2, 3, 1, 1]),
    ],
)
def test_where_a_pass_ends(net, sites, stop, names, counts):
    count = calls_of(net)
    with Capture(net, sites, stop_after=stop) as seen:
        if stop is True:
            seen.run(net, X)
        seen.run(net, X)
    assert list(seen) == names
    assert count() == counts


def test_a_site_that_was_not_chosen_cannot_end_a_pass(net):
    with pytest.raises(
        SiteError, match=r"stop_after: 'layers.9' is none of the chosen sites; did you mean 'layers."
    ):
        Capture(net, ["layers.0", "layers.1"], stop_after="layers.9")


def test_all_tensors_of_the_last_call_are_kept():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    with Capture(Two(), ["lstm[0]", "lstm[1][1]"], stop_after="lstm[0]") as seen:
        seen.module(X)
    assert list(seen) == ["lstm[0]", "lstm[1][1]"]


def test_a_run_that_calls_the_module_several_times_is_one_pass(net):
    def guided(x):
        return net(x) + net(2 * x)

    with Capture(net, ["layers.0", "layers.2"], stop_after=True) as seen:
        assert seen.run(guided, X) is not None
        assert seen.run(guided, X) is None
    assert list(seen) == ["layers.0#0", "layers.2#0", "layers.0#1", "layers.2#1"]
    assert torch.equal(seen["layers.0#1"], net.layers[0](2 * X))
    assert net.done == 3


def test_a_pass_in_which_a_site_did_not_run_teaches_nothing(net):
    net.skip = True
    chain = net.forward

    def forward(x):
        return net.layers[0](x) if net.skip else chain(x)

    net.forward = forward
    with Capture(net, ["layers.0", "layers.2"], stop_after=True) as seen:
        seen.run(net, X)
        net.skip = False
        seen.run(net, X)
        seen.require_all()
        assert net.done == 1
        assert seen.run(net, X) is None
        seen.require_all()


def test_handlers_in_the_network_do_not_take_it_for_a_failure(net):
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net
            self.cleaned = 0

        def forward(self, x):
            try:
                return self.net(x)
            except Exception:
                raise AssertionError("taken for a failure") from None
            finally:
                self.cleaned += 1

    careful, always = Careful(), []
    careful.register_forward_hook(lambda *_: always.append(1), always_call=True)
    with Capture(careful, "net.layers.1", stop_after="net.layers.1") as seen:
        assert seen.run(careful, X) is None
    assert careful.cleaned == 1
    careful(X)
    assert always == [1]  # hooks of others are still there; a pass that ends early does not reach them
    assert list(seen) == ["net.layers.1"]


def test_each_capture_takes_its_own_end_only(net):
    with Capture(net, "layers.*", stop_after="layers.2") as outer:
        with Capture(net, "layers.0", stop_after=True) as inner:
            assert outer.run(net, X) is None
            inner.run(net, X)
        raise AssertionError("not reached")
    assert hook_count(net) == 0
    assert "layers.2" in outer


def test_errors_pass_through_a_run(net):
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Capture(net, "layers.0", stop_after=True) as seen:
        seen.run(fail)
    assert hook_count(net) == 0


def test_run_returns_what_the_function_returns_and_works_without_a_block(net):
    seen = Capture(net, "layers.0")
    assert seen.run(lambda x, scale: (net(x) * scale, "told"), X, scale=2)[1] == "told"
    assert list(seen) == ["layers.0"] and hook_count(net) == 0
    seen = Capture(net, "layers.0", stop_after=True)
    assert [seen.run(net, X) is None for _ in range(3)] == [False, True, True]
    assert hook_count(net) == 0
    with seen, pytest.raises(FeatlensError, match="cannot be called inside the function it runs"):
        seen.run(lambda: seen.run(net, X))


def test_runs_of_parts_of_a_module_replace_one_another(net):
    with Capture(net, "layers.0") as seen:
        for _ in range(3):
            seen.run(net.layers[0], X)  # the module itself never runs
    assert list(seen) == ["layers.0"]
