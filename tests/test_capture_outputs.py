"""What modules take and give beside single tensors: tuples, dicts, dataclasses, arguments by name."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import nn

from featlens import Capture, sites
from featlens.errors import SiteError
from featlens.outputs import leaves, pick, replace

Pair = namedtuple("Pair", "sample extra")


@dataclasses.dataclass
class Output:
    sample: Any
    states: Any = None
    name: str = "text"


@dataclasses.dataclass(frozen=True)
class FrozenOutput:
    sample: Any
    states: Any = None


class Gives(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


class Around(nn.Module):
    """Runs ``Gives`` and hands on what it gave."""

    def __init__(self, what):
        super().__init__()
        self.inner = Gives(what)

    def forward(self, x):
        return self.inner(x)


@pytest.fixture
def x():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


SINGLE = {
    "tuple": lambda x: (x + 1,),
    "tuple with others": lambda x: ("text", None, x + 1, 3),
    "list": lambda x: [x + 1, None],
    "dict": lambda x: {"sample": x + 1, "name": "text"},
    "ordered": lambda x: OrderedDict(sample=x + 1),
    "named tuple": lambda x: Pair(x + 1, 0),
    "dataclass": lambda x: Output(x + 1),
    "frozen dataclass": lambda x: FrozenOutput(x + 1),
    "nested": lambda x: ({"deep": [Output(x + 1)]}, None),
}


@pytest.mark.parametrize("what", SINGLE.values(), ids=SINGLE)
def test_the_only_tensor_of_an_output_needs_no_key(what, x):
    with Capture(Around(what), "inner") as seen:
        seen.module(x)
    assert list(seen) == ["inner"]
    assert torch.equal(seen["inner"], x + 1)


SEVERAL = {
    "tuple": (lambda x: (x + 1, x + 2), "[0]", "[1]"),
    "list": (lambda x: [x + 1, x + 2], "[-2]", "[-1]"),
    "dict": (lambda x: {"a": x + 1, "b": x + 2}, "[a]", "[b]"),
    "dict of numbers": (lambda x: {7: x + 1, 1: x + 2}, "[7]", "[1]"),
    "named tuple by field": (lambda x: Pair(x + 1, x + 2), "[sample]", "[extra]"),
    "named tuple by index": (lambda x: Pair(x + 1, x + 2), "[0]", "[1]"),
    "dataclass": (lambda x: Output(x + 1, x + 2), "[sample]", "[states]"),
    "frozen dataclass": (lambda x: FrozenOutput(x + 1, (x, x + 2)), "[sample]", "[states][1]"),
    "nested": (lambda x: (x, ({"h": x + 1}, [x + 2])), "[1][0][h]", "[1][1][0]"),
    "the rest is one tensor": (lambda x: (x, [x + 1, None], {"h": x + 2}), "[1]", "[2]"),
    "torch's own": (lambda x: torch.max(torch.stack([x, x + 1, x + 2]), dim=0), None, "[0]"),
}


@pytest.mark.parametrize(("what", "first", "second"), SEVERAL.values(), ids=SEVERAL)
def test_tensors_are_chosen_by_index_or_key(what, first, second, x):
    names = [f"inner{keys}" for keys in (first, second) if keys]
    with Capture(Around(what), names) as seen:
        seen.module(x)
    assert list(seen) == names
    steps = (1, 2) if first else (2,)
    assert all(torch.equal(value, x + step) for value, step in zip(seen.values(), steps, strict=True))


@pytest.mark.parametrize(
    ("what", "site", "message"),
    [
        (lambda x: (x, x[:, :1]), "inner",
         r"site 'inner': 2 tensors are in its output, a tuple; choose from 'inner\[0\]' \(5, 3\), "
         r"'inner\[1\]' \(5, 1\)$"),
        (lambda x: {"sample": x, "h": (x, x)}, "inner",
         r"choose from 'inner\[sample\]' \(5, 3\), 'inner\[h\]\[0\]' \(5, 3\), 'inner\[h\]\[1\]' \(5, 3\)$"),
        (lambda x: {"sample": x, "h": (x, x)}, "inner[h]",
         r"site 'inner\[h\]': 2 tensors are in that part of its output, a dict; choose from"),
        (lambda x: (x, x), "inner[2]",
         r"site 'inner\[2\]': there is no \[2\] in its output, a tuple; choose from 'inner\[0\]'"),
        (lambda x: Output(x, x), "inner[smaple]",
         r"site 'inner\[smaple\]': there is no \[smaple\] in its output, a Output; choose from 'inner"),
        (lambda x: x, "inner[0]", r"there is no \[0\] in its output, a Tensor; choose from 'inner' \(5, 3\)"),
        (lambda x: (x, None), "inner[1]",
         r"site 'inner\[1\]': no tensors are in that part of its output, a tuple; choose from 'inner\[0\]'"),
        (lambda x: [x] * 9, "inner", r"'inner\[7\]' \(5, 3\), \.\.\. \(9 in all\)$"),
        (lambda x: (), "inner", "site 'inner': no tensor is in its output, a tuple; leave this site out"),
        (lambda x: None, "inner", "no tensor is in its output, a NoneType; leave this site out"),
        (lambda x: Output, "inner", "no tensor is in its output, a type; leave this site out"),
    ],
)  # fmt: skip
def test_what_is_not_said_clearly_is_refused_with_the_choices(what, site, message, x):
    net = Around(what)
    with pytest.raises(SiteError, match=message), Capture(net, site):
        net(x)
    assert not net.inner._forward_hooks


class Asks(nn.Module):
    def forward(self, x, temb=None, *, mask=None):
        return x if temb is None else x + temb


class Asking(nn.Module):
    def __init__(self):
        super().__init__()
        self.asks = Asks()

    def forward(self, x, way):
        if way == "positional":
            return self.asks(x, x + 1)
        if way == "named":
            return self.asks(temb=x + 1, x=x)
        if way == "mixed":
            return self.asks(x, temb=x + 1, mask={"keys": [x + 2]})
        return self.asks(x)


@pytest.mark.parametrize("way", ["positional", "named", "mixed"])
@pytest.mark.parametrize("key", ["temb", "1"])
def test_inputs_are_chosen_by_name_or_place_however_they_were_passed(way, key, x):
    with Capture(Asking(), [f"asks@in[{key}]", "asks"]) as seen:
        seen.module(x, way)
    assert torch.equal(seen[f"asks@in[{key}]"], x + 1)
    assert list(seen) == [f"asks@in[{key}]", "asks"]


def test_inputs_of_several_tensors_are_refused_with_the_choices(x):
    message = (
        r"site 'asks@in': 3 tensors are in its input; choose from 'asks@in\[0\]' \(5, 3\), "
        r"'asks@in\[temb\]' \(5, 3\), 'asks@in\[mask\]\[keys\]\[0\]' \(5, 3\)$"
    )
    with pytest.raises(SiteError, match=message), Capture(Asking(), "asks@in") as seen:
        seen.module(x, "mixed")
    with Capture(Asking(), ["asks@in[mask][keys]"]) as seen:
        seen.module(x, "mixed")
        assert torch.equal(seen["asks@in[mask][keys]"], x + 2)
        with pytest.raises(SiteError, match=r"there is no \[mask\] in its input; choose from 'asks@in\[0\]'"):
            seen.module(x, "alone")
    with Capture(Asking(), "asks@in") as seen:
        seen.module(x, "alone")
    assert torch.equal(seen["asks@in"], x)


def test_an_input_is_kept_as_it_was_before_an_in_place_module():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    x = torch.randn(4, 3)
    with Capture(net, ["1@in", "1"]) as seen:
        net(x)
    assert torch.equal(seen["1@in"], net[0](x))
    assert torch.equal(seen["1"], net[0](x).relu())
    assert not torch.equal(seen["1"], seen["1@in"])


def test_a_recurrent_network_and_an_attention_layer():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 6, batch_first=True)
            self.attend = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x):
            x, _ = self.lstm(x)
            return self.attend(x, x, x, need_weights=False)[0]

    net = Mixed()
    with Capture(net, ["lstm[0]", "lstm[1][0]", "attend", "attend@in[query]"]) as seen:
        out = net(torch.randn(2, 5, 4))
    assert seen.shapes == {
        "lstm[0]": (2, 5, 6), "lstm[1][0]": (1, 2, 6), "attend@in[query]": (2, 5, 6), "attend": (2, 5, 6)
    }  # fmt: skip
    assert seen.duplicates == {"attend@in[query]": "lstm[0]"}
    assert torch.equal(seen["attend"], out)


def test_outputs_of_diffusers_are_taken_apart_and_put_together():
    diffusers = pytest.importorskip("diffusers.utils")

    @dataclasses.dataclass
    class UNetOutput(diffusers.BaseOutput):
        sample: Any = None
        extra: Any = None

    x = torch.randn(2, 3)
    both = UNetOutput(sample=x, extra=x + 1)
    assert [keys for keys, _ in leaves(both)] == [("sample",), ("extra",)]
    changed = replace(both, ("extra",), x + 2)
    assert isinstance(changed, UNetOutput)
    assert torch.equal(changed.extra, x + 2) and torch.equal(changed["extra"], x + 2)
    assert torch.equal(both.extra, x + 1) and torch.equal(changed[0], x)
    net = Around(lambda x: UNetOutput(sample=x + 1))
    with Capture(net, "inner") as seen:
        net(x)
    assert torch.equal(seen["inner"], x + 1)


@pytest.mark.parametrize(("what", "first", "second"), SEVERAL.values(), ids=SEVERAL)
def test_a_replaced_tensor_leaves_the_rest_and_the_original_alone(what, first, second, x):
    value, new = what(x), torch.zeros(1)
    keys = tuple(second[1:-1].split("]["))
    path, old = pick(value, keys, "inner")
    changed = replace(value, path, new)
    assert type(changed) is type(value)
    assert pick(changed, keys, "inner")[1] is new
    assert pick(value, keys, "inner")[1] is old
    others = [id(tensor) for found, tensor in leaves(value) if found != path]
    assert [id(tensor) for found, tensor in leaves(changed) if found != path] == others


def test_sites_lists_every_tensor(x):
    found = sites(Around(lambda x: (x, {"h": x[:, :1]})), ["inner", "inner@in"], x)
    assert [(site.name, site.shape) for site in found] == [
        ("inner@in", (3,)), ("inner[0]", (3,)), ("inner[1][h]", (1,))
    ]  # fmt: skip


def test_the_network_itself_is_a_site_by_name():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
    x = torch.randn(2, 3)
    with Capture(net, ["@in", "0", "@out"]) as seen:
        out = net(x)
    assert list(seen) == ["@in", "0", "@out"]
    assert torch.equal(seen["@in"], x) and torch.equal(seen["@out"], out)
    assert seen.kinds["@out"] == "Sequential"
    layer = nn.Linear(3, 4)
    with Capture(layer, "@out", stop_after=True) as seen:
        for _ in range(2):
            seen.run(layer, x)
        assert torch.equal(seen["@out"], layer(x))
    lstm = nn.LSTM(3, 4, batch_first=True)
    with Capture(lstm, "@out[0]") as seen:
        lstm(torch.randn(2, 5, 3))
    assert seen["@out[0]"].shape == (2, 5, 4)


def test_a_network_without_inner_modules_says_what_there_is():
    with pytest.raises(SiteError, match="it has no inner modules; ask for '@out', its own output"):
        Capture(nn.Linear(3, 4), "**")
