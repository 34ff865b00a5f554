"""Which sites a selection means, in which order, with which shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featlens import Capture, Site, sites
from featlens.errors import SiteError, UsageError


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Linear(width, width)

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Net(nn.Module):
    """Defined in another order than it runs; one part runs twice, one never, one gives a tuple."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.blocks = nn.ModuleList([Block(4), Block(4)])
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.never = nn.Conv1d(4, 4, 1)
        self.stem = nn.Conv2d(1, 4, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, scale=1.0):
        x = self.stem(x).flatten(2).transpose(1, 2) * scale
        for _ in range(2):
            x = self.blocks[0](x)
        return self.drop(self.head(self.lstm(self.blocks[1](x))[0].mean(1)))


DEFINED = ["head", "blocks.0", "blocks.0.norm", "blocks.0.mlp", "blocks.1", "blocks.1.norm", "blocks.1.mlp"]
DEFINED += ["lstm", "never", "stem", "drop"]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (None, DEFINED),
        ("**", DEFINED),
        ("*", ["head", "lstm", "never", "stem", "drop"]),
        ("blocks.*", ["blocks.0", "blocks.1"]),
        ("blocks.?.mlp", ["blocks.0.mlp", "blocks.1.mlp"]),
        (r"re:blocks\.\d", ["blocks.0", "blocks.1"]),
        ("re:.*(mlp|stem)", ["blocks.0.mlp", "blocks.1.mlp", "stem"]),
        (r"re:blocks\.\d@in", ["blocks.0@in", "blocks.1@in"]),
        (r"re:lstm@out[1][0]", ["lstm[1][0]"]),
        ("type:Linear", ["head", "blocks.0.mlp", "blocks.1.mlp"]),
        ("type:_ConvNd", ["never", "stem"]),
        ("type:Conv?d", ["never", "stem"]),
        ("type:Module", DEFINED),
        ("type:Linear@in", ["head@in", "blocks.0.mlp@in", "blocks.1.mlp@in"]),
        (nn.Linear, ["head", "blocks.0.mlp", "blocks.1.mlp"]),
        ("index:3", ["blocks.0.mlp"]),
        (3, ["blocks.0.mlp"]),
        (-1, ["drop"]),
        ("index:-2", ["stem"]),
        ("index:2:6", DEFINED[2:6]),
        ("index::2", DEFINED[:2]),
        ("index:7:", DEFINED[7:]),
        ("index:0@in", ["head@in"]),
        (lambda name, module: isinstance(module, nn.Conv2d) or name.endswith("norm"),
         ["blocks.0.norm", "blocks.1.norm", "stem"]),
        (["stem", 0, "type:LSTM[0]", lambda name, module: name == "drop"],
         ["head", "lstm[0]", "stem", "drop"]),
        (["head", "head@out", "type:Linear", 0], ["head", "blocks.0.mlp", "blocks.1.mlp"]),
        (("stem@in", "stem"), ["stem@in", "stem"]),
        ("blocks.*@in[x]", ["blocks.0@in[x]", "blocks.1@in[x]"]),
        ("lstm['1'][0]", ["lstm[1][0]"]),
        ("blocks.0#1", ["blocks.0#1"]),
    ],
)  # fmt: skip
def test_selections_mean_sites_in_order_of_definition(net, selection, expected):
    assert [site.name for site in sites(net, selection)] == expected


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("hade", "no site 'hade' in the network Net: did you mean 'head'"),
        ("stem@inn", "no site 'stem@inn' in the network Net: did you mean 'stem'"),
        (["**", "type:Conv3d"],
         r"no site 'type:Conv3d' in the network Net: did you mean 'Conv2d' or 'Conv1d'\?"),
        ("re:blocks", "no site 're:blocks' in the network Net: "),
        ("index:11", "no site 'index:11' in the network Net: it has 11, index:0 to index:10"),
        (-12, "no site -12 in the network Net: it has 11"),
        ("index:4:4", "no site 'index:4:4' in the network Net"),
        ("blocks", "no site 'blocks' in the network Net: a ModuleList only holds others "
         r"and never runs; ask for 'blocks\.\*'"),
        (nn.GRU, "no site chosen by 'GRU' in the network Net: choose from head"),
        (lambda name, module: False, "no site chosen by '<lambda>' in the network Net"),
        ([], "no site was asked for in the network Net"),
    ],
)  # fmt: skip
def test_what_matches_nothing_is_named_with_the_choices(net, selection, message):
    with pytest.raises(SiteError, match=f"^{message}"):
        sites(net, selection)


@pytest.mark.parametrize("selection", [1.5, True, [None], object, "index:a", "index:1:2:0", "re:("])
def test_what_is_no_selection_is_refused(net, selection):
    with pytest.raises(UsageError, match=r"sites are chosen by|expected index:|is no regular expression"):
        sites(net, selection)


def test_with_inputs_sites_come_in_order_of_execution_with_shapes(net):
    found = sites(net, inputs=(torch.zeros(3, 1, 6, 6),))
    assert [site.name for site in found] == [
        "stem",
        "blocks.0.norm#0", "blocks.0.mlp#0", "blocks.0#0", "blocks.0.norm#1", "blocks.0.mlp#1", "blocks.0#1",
        "blocks.1.norm", "blocks.1.mlp", "blocks.1", "lstm[0]", "lstm[1][0]", "lstm[1][1]", "head", "drop",
        "never",
    ]  # fmt: skip
    assert [site.order for site in found] == [*range(15), None]
    by_name = {site.name: site for site in found}
    assert by_name["stem"] == Site("stem", "Conv2d", 9, 0, (4, 4, 4), 4, 4)
    assert by_name["blocks.0#1"] == Site("blocks.0#1", "Block", 1, 6, (16, 4), 4, 0)
    assert by_name["head"] == Site("head", "Linear", 0, 13, (2,), 2, 0)
    assert by_name["never"] == Site("never", "Conv1d", 8)
    assert [site.index for site in sites(net)] == list(range(11))


def test_the_names_that_sites_gives_are_what_capture_keeps(net):
    x = torch.zeros(3, 1, 6, 6)
    found = [site for site in sites(net, ["**", "**@in"], x) if site.order is not None]
    with Capture(net, [site.name for site in found]) as seen:
        net(x)
    assert list(seen) == [site.name for site in found]
    assert [shape[1:] for shape in seen.shapes.values()] == [site.shape for site in found]
    assert list(seen.kinds.values()) == [site.kind for site in found]


def test_looking_leaves_modes_hooks_gradients_and_random_state_alone(net):
    net.blocks.eval()
    modes, state = [module.training for module in net.modules()], torch.get_rng_state()
    noisy = nn.Sequential(net, nn.Identity())
    noisy[1].forward = lambda x: x + torch.rand_like(x)
    sites(noisy, inputs={"input": torch.zeros(1, 1, 6, 6)})
    with pytest.raises(RuntimeError):
        sites(net, inputs=(torch.zeros(1, 7, 6, 6),))
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()) == 0


def test_arguments_are_a_tuple_a_dict_or_a_tensor(net):
    x = torch.zeros(2, 1, 6, 6)
    ways = (x, (x,), [x], {"x": x}, (x, 2.0), {"x": x, "scale": 2.0})
    assert len({tuple(sites(net, "stem", inputs)) for inputs in ways}) == 1


@pytest.mark.parametrize("num_labels", [0, 3])
def test_a_denoiser_is_run_by_itself(make_denoiser, num_labels):
    denoiser = make_denoiser(num_labels)
    found = sites(denoiser)
    assert [site.name for site in found] == [
        "enc.conv", "enc.norm", "mid.0", "mid.1", "mid.2", "mid", "told", "out",
    ]  # fmt: skip
    assert found[0] == Site("enc.conv", "Conv2d", 0, 0, (6, 8, 8), 6, 8)
    assert [site.order for site in found] == list(range(8))
    assert denoiser.training


def test_a_denoiser_that_is_no_module_is_run_too(make_denoiser):
    class Mine:
        sample_shape, num_labels, sigma_data = (1, 8, 8), 0, 0.5

        def __init__(self, inner):
            self.inner, self.network = inner, inner.network

        def __call__(self, x, sigma, labels=None):
            return self.inner(x, sigma, labels)

    assert sites(Mine(make_denoiser())) == sites(make_denoiser())
    with pytest.raises(UsageError, match=r"looked up in an nn\.Module, got a Mine; pass its \.network"):
        Capture(Mine(make_denoiser()), "**")
    with pytest.raises(UsageError, match=r"looked up in an nn\.Module, got a int; pass one"):
        sites(3)


def test_lists_and_dicts_of_modules_are_no_sites_but_what_is_in_them_is(make_denoiser):
    network = make_denoiser().network
    found = [(site.name, site.kind, site.order) for site in sites(network, ["*", "enc.*"])]
    assert found == [
        ("enc.conv", "Conv2d", None),
        ("enc.norm", "GroupNorm", None),
        ("mid", "Sequential", None),
        ("told", "Linear", None),
        ("out", "ConvTranspose2d", None),
    ]
    with pytest.raises(SiteError, match="no site 'enc' in the network Net"):
        sites(network, "enc")


def test_a_module_under_two_names_has_one_and_the_other_is_told():
    shared = nn.Sequential(nn.Linear(2, 2))
    net = nn.ModuleDict({"encoder": shared, "decoder": shared})
    assert [site.name for site in sites(net)] == ["encoder", "encoder.0"]
    for path in ("decoder", "decoder.0"):
        with pytest.raises(SiteError, match="'decoder' is the same module as 'encoder'; ask for 'encoder"):
            sites(net, path)


def test_paths_with_brackets_and_signs_in_them_are_found_verbatim():
    net = nn.Sequential()
    for name in ("a[0]", "a", "b@in", "c#1", "re:d"):
        net.add_module(name, nn.LSTM(2, 2) if name == "a[0]" else nn.Identity())
    for name in ("a[0]", "b@in", "c#1", "re:d", "b@in@in", "a[0][0]", "a[0][1][0]", "a[0]@in"):
        assert [site.name for site in sites(net, name)] == [name]
        assert (sites(net, name)[0].kind == "LSTM") == name.startswith("a[0]")
    alone = nn.ModuleDict({"a[0]": net[0]})  # a glob, too, can only mean the module that is called so
    assert [site.name for site in sites(alone, "?[0][1][0]")] == ["a[0][1][0]"]
    with Capture(nn.Sequential(net[0]), "0[0]") as seen:
        seen.module(torch.zeros(1, 3, 2))
    assert list(seen) == ["0[0]"]


def test_two_sites_of_one_name_are_refused_not_mixed_up():
    twice = nn.Sequential()
    for name in ("a", "a@in", "a#1"):
        twice.add_module(name, nn.Identity())
    with pytest.raises(SiteError, match="two sites are called 'a@in'; leave one out"):
        sites(twice, ["a@in", "re:a@in"])
    twice.forward = lambda x: twice[2](twice[0](twice[0](x)))
    with Capture(twice, ["a", "a#1"]) as seen:
        twice(torch.zeros(1))
    for _ in range(2):
        with pytest.raises(SiteError, match="two sites are called 'a#1'; leave one out"):
            list(seen)


def test_module_that_gives_no_tensor_is_listed_without_shape():
    class Words(nn.Module):
        def forward(self, x):
            return "text"

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = Words()

        def forward(self, x):
            return self.words(x)

    assert sites(Outer(), inputs=torch.zeros(1)) == [Site("words", "Words", 0, 0)]
