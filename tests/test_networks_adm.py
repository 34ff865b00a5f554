"""The ADM family: its block, its noise embedding and its start, each re-derived naively."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from featlens.errors import UsageError
from featlens_trainers.networks import ADMConfig, ADMNet
from featlens_trainers.networks.layers import ADM, Block

TINY = ADMConfig(8, 2, 1, 16, (1, 2), 1, (8,), labels=3, augment_labels=9, channels_per_head=8, dropout=0.0)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def randomised(module: nn.Module, scale: float = 0.2) -> nn.Module:
    numbers = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=numbers))
    return module


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def normed(x: Tensor, layer: nn.GroupNorm) -> Tensor:
    parts = x.reshape(len(x), layer.num_groups, -1)
    parts = parts - parts.mean(2, keepdim=True)
    parts = parts / torch.sqrt((parts**2).mean(2, keepdim=True) + 1e-5)
    return parts.reshape(x.shape) * layer.weight[:, None, None] + layer.bias[:, None, None]


def convolved(x: Tensor, layer: nn.Conv2d) -> Tensor:
    size = layer.weight.shape[-1]
    columns = nn.functional.unfold(x, size, padding=size // 2)
    out = layer.weight.flatten(1) @ columns + layer.bias[:, None]
    return out.reshape(len(x), -1, *x.shape[2:])


def halved(x: Tensor) -> Tensor:
    return sum(x[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)) / 4


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


@pytest.mark.parametrize(
    ("cout", "resample", "change"),
    [(8, None, lambda x: x), (12, None, lambda x: x), (8, "down", halved), (8, "up", doubled)],
)
def test_the_embedding_scales_and_shifts_and_a_shortcut_of_equal_width_has_no_weights(
    cout: int, resample: str | None, change
) -> None:
    block = randomised(Block(8, cout, 16, resample=resample, family=ADM)).double()
    x, embedding = torch.randn(2, 8, 4, 4).double(), torch.randn(2, 16).double()
    hidden = convolved(change(silu(normed(x, block.norm0))), block.conv0)
    told = embedding @ block.affine.weight.T + block.affine.bias
    scale, shift = told[:, :cout, None, None], told[:, cout:, None, None]
    hidden = silu(shift + normed(hidden, block.norm1) * (scale + 1))
    shortcut = change(x) if cout == 8 else convolved(x, block.skip)
    assert (block.skip is None) == (cout == 8)
    torch.testing.assert_close(block(x, embedding), convolved(hidden, block.conv1) + shortcut)


def test_attention_adds_to_its_input_and_heads_have_the_width_asked_for() -> None:
    network = ADMNet(dataclasses.replace(TINY, channels=64, channels_per_head=32))
    heads = {
        name: (module.attention, module.heads) for name, module in network.enc.items() if "block" in name
    }
    assert heads == {"8x8_block0": (True, 2), "4x4_block0": (False, 4)}
    attends = [name for name, module in network.dec.items() if getattr(module, "attention", False)]
    assert attends == ["4x4_in0", "8x8_block0", "8x8_block1"]
    block = randomised(Block(8, 8, 16, attention=True, family=ADM)).double()
    plain = Block(8, 8, 16, family=ADM).double()
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if k in plain.state_dict()})
    x, embedding = torch.randn(2, 8, 2, 2).double(), torch.randn(2, 16).double()
    before = plain(x, embedding)
    packed = convolved(normed(before, block.norm2), block.qkv).flatten(2)
    query, key, value = packed[:, 0::3], packed[:, 1::3], packed[:, 2::3]
    weights = torch.softmax(query.transpose(1, 2) @ key / math.sqrt(8), dim=2)
    mixed = (value @ weights.transpose(1, 2)).reshape(2, 8, 2, 2)
    torch.testing.assert_close(block(x, embedding), before + convolved(mixed, block.proj))


@pytest.mark.parametrize(("channels", "heads"), [(192, 3), (384, 6), (63, 1), (288, 4), (864, 12), (20, 1)])
def test_heads_are_as_many_as_fit_and_divide(channels: int, heads: int) -> None:
    assert ADMConfig().heads(channels) == heads


def test_the_label_joins_after_the_two_layers_and_cosines_come_first() -> None:
    network = randomised(ADMNet(TINY)).double()
    noise, hot, how = torch.tensor([0.3, -1.2]), torch.eye(3)[[2, 0]].double(), torch.randn(2, 9).double()
    frequencies = [10_000 ** -(index / 8) for index in range(8)]
    start = torch.tensor(
        [[f(float(n) * w) for f in (math.cos, math.sin) for w in frequencies] for n in noise]
    ).double()
    told = start + how @ network.map_augment.weight.T
    told = silu(told @ network.map_layer0.weight.T + network.map_layer0.bias)
    told = told @ network.map_layer1.weight.T + network.map_layer1.bias
    expected = silu(told + hot @ network.map_label.weight.T)
    torch.testing.assert_close(network.embed(noise, hot, how), expected, rtol=1e-5, atol=1e-6)


def test_no_label_is_a_row_of_zeros() -> None:
    network = randomised(ADMNet(TINY)).eval()
    x, noise = torch.randn(2, 2, 8, 8), torch.zeros(2)
    assert torch.equal(network(x, noise), network(x, noise, torch.zeros(2, 3)))
    assert not torch.equal(network(x, noise), network(x, noise, torch.eye(3)[:2]))


def test_a_fresh_network_puts_out_zeros_and_its_blocks_pass_on_the_shortcut() -> None:
    network = ADMNet(TINY)
    assert torch.equal(network(torch.randn(2, 2, 8, 8), torch.zeros(2)), torch.zeros(2, 1, 8, 8))
    block = Block(8, 8, 32, attention=True, family=ADM)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(x, torch.randn(2, 32)), x)


def test_fresh_weights_are_uniform_with_a_third_of_one_over_fan_in_for_variance() -> None:
    network = ADMNet(dataclasses.replace(TINY, channels=64, labels=20))
    for name in ("enc.8x8_block0.conv0", "map_layer1", "dec.4x4_in0.qkv", "enc.8x8_block0.affine"):
        layer = network.get_submodule(name)
        bound = 1 / math.sqrt(layer.weight[0].numel())
        assert float(layer.weight.detach().abs().max()) <= bound
        assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert float(layer.bias.detach().abs().max()) > 0.5 * bound
    assert float(network.map_label.weight.detach().std()) == pytest.approx(1, rel=0.05)
    assert not network.map_augment.weight.any()
    assert network.out_norm.eps == network.enc["8x8_block0"].norm0.eps == 1e-5


def test_dropout_acts_in_training_mode_only() -> None:
    network = randomised(ADMNet(dataclasses.replace(TINY, dropout=0.5)))
    x, noise = torch.randn(2, 2, 8, 8), torch.zeros(2)
    assert not torch.equal(network(x, noise), network(x, noise))
    network.eval()
    assert torch.equal(network(x, noise), network(x, noise))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"channels": 10**9}, "channels must be at most 65536"),
        ({"blocks": 0}, "blocks must be at least 1"),
        ({"resolution": 6, "channel_mult": (1, 1, 1)}, "resolution 6 cannot be halved 2 times"),
        ({"channels_per_head": 0}, "channels_per_head must be at least 1"),
        ({"attention_resolutions": (0,)}, "attention_resolutions are pixels above 0, got 0"),
        ({"labels": -1}, "labels must be at least 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"kind": "unet"}, "ADMConfig is of kind 'adm', got kind 'unet'"),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(changes: dict, named: str) -> None:
    with pytest.raises(UsageError, match=r"^network: ") as caught:
        dataclasses.replace(TINY, **changes)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
