"""The EDM U-Net and the ratio network: released names and sizes, and every layer re-derived naively."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from featlens.errors import UsageError
from featlens_trainers.networks import RatioNetwork, UNet, UNetConfig
from featlens_trainers.networks.layers import Block, group_norm, positional_embedding
from featlens_trainers.presets import PRESETS

CIFAR = UNetConfig(32, 3, 3, 128, (2, 2, 2), 4, (16,), labels=0, augment_labels=9)
TINY = UNetConfig(channels=8)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def cifar() -> UNet:
    with torch.device("meta"):
        return UNet(CIFAR)


def randomised(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """Every parameter away from its special initial value, so that no layer is almost zero."""
    numbers = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=numbers))
    return module


# --- names and sizes ----------------------------------------------------------------------------------------


def test_digits_network_has_the_released_names_in_order_of_execution() -> None:
    network = UNet(UNetConfig())
    assert list(network.enc) == ["8x8_conv", "8x8_block0", "4x4_down", "4x4_block0"]
    assert list(network.dec) == [
        *("4x4_in0", "4x4_in1", "4x4_block0", "4x4_block1"),
        *("8x8_up", "8x8_block0", "8x8_block1", "8x8_aux_norm", "8x8_aux_conv"),
    ]
    names = set(network.state_dict())
    for expected in (
        "map_layer0.weight",
        "map_layer1.bias",
        "enc.8x8_conv.weight",
        "enc.4x4_down.skip.weight",
        "enc.4x4_block0.qkv.weight",
        "dec.4x4_in0.proj.bias",
        "dec.8x8_up.affine.weight",
        "dec.8x8_aux_norm.weight",
        "dec.8x8_aux_conv.bias",
    ):
        assert expected in names
    assert not any(name.startswith(("map_label", "map_augment")) for name in names)


def test_cifar_network_has_the_published_size(cifar: UNet) -> None:
    assert parameters(cifar) == 55_733_891
    assert parameters(cifar.enc) / 1e6 == pytest.approx(19.3, abs=0.05)
    assert parameters(cifar.dec) / 1e6 == pytest.approx(36.1, abs=0.05)


def test_cifar_network_has_the_released_blocks(cifar: UNet) -> None:
    blocks = [f"block{index}" for index in range(5)]
    encoder = [
        *(f"32x32_{name}" for name in ["conv", *blocks[:4]]),
        *(f"16x16_{name}" for name in ["down", *blocks[:4]]),
        *(f"8x8_{name}" for name in ["down", *blocks[:4]]),
    ]
    decoder = [
        *(f"8x8_{name}" for name in ["in0", "in1", *blocks]),
        *(f"16x16_{name}" for name in ["up", *blocks]),
        *(f"32x32_{name}" for name in ["up", *blocks, "aux_norm", "aux_conv"]),
    ]
    assert list(cifar.enc) == encoder
    assert list(cifar.dec) == decoder
    attend = [f"enc.{name}" for name, module in cifar.enc.items() if getattr(module, "attention", False)]
    attend += [f"dec.{name}" for name, module in cifar.dec.items() if getattr(module, "attention", False)]
    assert attend == [*(f"enc.16x16_block{index}" for index in range(4)), "dec.8x8_in0", "dec.16x16_block4"]
    assert cifar.enc["32x32_conv"].weight.shape == (128, 3, 3, 3)
    assert cifar.map_augment.weight.shape == (128, 9)
    assert cifar.map_augment.bias is None


def test_digits_preset_stays_small() -> None:
    assert 150_000 < parameters(UNet(PRESETS["digits"].network)) < 250_000


@pytest.mark.parametrize("channels", [4, 8, 24, 128, 132, 144, 144 + 72, 1024])
def test_group_norm_has_at_most_32_groups_of_at_least_four_channels(channels: int) -> None:
    groups = group_norm(channels).num_groups
    assert channels % groups == 0
    assert groups <= 32
    assert channels // groups >= 4
    if channels % (4 * min(32, channels // 4)) == 0:
        assert groups == min(32, channels // 4)


# --- start --------------------------------------------------------------------------------------------------


def test_a_fresh_network_puts_out_almost_nothing() -> None:
    out = UNet(TINY)(torch.randn(16, 1, 8, 8), torch.linspace(-1.5, 1.0, 16)).detach()
    assert 0 < float(out.std()) < 1e-3


def test_fresh_residual_blocks_pass_on_the_shortcut() -> None:
    block = Block(8, 8, 32, attention=True)
    x = torch.randn(4, 8, 4, 4)
    # Twice the factor sqrt(1/2): once after the convolutions, once after the attention.
    assert torch.allclose(block(x, torch.randn(4, 32)), x / 2, atol=1e-3)


# --- layers against textbook code ---------------------------------------------------------------------------


def naive_group_norm(x: Tensor, layer: nn.GroupNorm) -> Tensor:
    out = torch.empty_like(x)
    width = x.shape[1] // layer.num_groups
    for image in range(len(x)):
        for first in range(0, x.shape[1], width):
            part = x[image, first : first + width]
            spread = ((part - part.mean()) ** 2).mean()
            out[image, first : first + width] = (part - part.mean()) / torch.sqrt(spread + 1e-6)
    return out * layer.weight[:, None, None] + layer.bias[:, None, None]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def naive_conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
    size = layer.weight.shape[-1]
    padded = torch.zeros(*x.shape[:2], x.shape[2] + size - 1, x.shape[3] + size - 1, dtype=x.dtype)
    padded[:, :, size // 2 : size // 2 + x.shape[2], size // 2 : size // 2 + x.shape[3]] = x
    out = torch.zeros(len(x), len(layer.weight), *x.shape[2:], dtype=x.dtype)
    for row in range(size):
        for column in range(size):
            window = padded[:, :, row : row + x.shape[2], column : column + x.shape[3]]
            out += torch.einsum("oc,bchw->bohw", layer.weight[:, :, row, column], window)
    return out + layer.bias[:, None, None]


def halved(x: Tensor) -> Tensor:
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


@pytest.mark.parametrize(("resample", "change"), [("down", halved), ("up", doubled)])
def test_resampling_block_averages_or_repeats_pixels_before_it_convolves(resample: str, change) -> None:
    block = randomised(Block(8, 12, 16, resample=resample)).double()
    x, embedding = torch.randn(2, 8, 4, 4).double(), torch.randn(2, 16).double()
    hidden = naive_conv(change(silu(naive_group_norm(x, block.norm0))), block.conv0)
    hidden = hidden + (embedding @ block.affine.weight.T + block.affine.bias)[:, :, None, None]
    hidden = naive_conv(silu(naive_group_norm(hidden, block.norm1)), block.conv1)
    expected = (hidden + naive_conv(change(x), block.skip)) / math.sqrt(2)
    torch.testing.assert_close(block(x, embedding), expected)


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_softmax_attention_in_the_released_layout(heads: int) -> None:
    block = randomised(Block(8, 8, 16, attention=True, heads=heads)).double()
    plain = Block(8, 8, 16)
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if k in plain.state_dict()})
    x, embedding = torch.randn(2, 8, 2, 2).double(), torch.randn(2, 16).double()
    before = plain.double()(x, embedding)
    packed = naive_conv(naive_group_norm(before, block.norm2), block.qkv).flatten(2)
    width = 8 // heads
    mixed = torch.empty(2, 8, 4).double()
    for image in range(2):
        for channel in range(8):
            head, inner = divmod(channel, width)
            first = 3 * width * head
            # Released order of the 3 C rows: head by head, channel by channel, query, key, value.
            query, key = (packed[image, first + part : first + 3 * width : 3] for part in (0, 1))
            value = packed[image, first + 3 * inner + 2]
            for at in range(4):
                scores = torch.stack([(query[:, at] * key[:, to]).sum() for to in range(4)]) / width**0.5
                weights = scores.exp() / scores.exp().sum()
                mixed[image, channel, at] = (weights * value).sum()
    expected = (before + naive_conv(mixed.reshape(2, 8, 2, 2), block.proj)) / math.sqrt(2)
    torch.testing.assert_close(block(x, embedding), expected)


def test_positional_embedding_is_sines_then_cosines() -> None:
    out = positional_embedding(torch.tensor([0.7]), 8)[0]
    frequencies = [10_000 ** -(index / 3) for index in range(4)]
    expected = [math.sin(0.7 * f) for f in frequencies] + [math.cos(0.7 * f) for f in frequencies]
    assert out.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_decoder_uses_every_skip_connection_once_and_in_reverse() -> None:
    network = UNet(TINY)
    seen: dict[str, Tensor] = {}
    for side in ("enc", "dec"):
        for name, module in getattr(network, side).items():
            module.register_forward_hook(
                lambda _, inputs, out, key=f"{side}.{name}": seen.update({f"{key}<": inputs[0], key: out})
            )
    network(torch.randn(2, 1, 8, 8), torch.zeros(2))
    wanted = ["enc.4x4_block0", "enc.4x4_down", "enc.8x8_block0", "enc.8x8_conv"]
    takers = ["dec.4x4_block0", "dec.4x4_block1", "dec.8x8_block0", "dec.8x8_block1"]
    for source, taker in zip(wanted, takers, strict=True):
        assert torch.equal(seen[f"{taker}<"][:, -seen[source].shape[1] :], seen[source])


# --- conditioning -------------------------------------------------------------------------------------------


def test_an_images_output_does_not_depend_on_its_batch() -> None:
    network = randomised(UNet(TINY), 0.2).eval()
    x, noise = torch.randn(5, 1, 8, 8), torch.randn(5)
    whole = network(x, noise)
    alone = torch.cat([network(x[i : i + 1], noise[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)


def test_labels_and_augmentation_labels_enter_through_their_own_layers() -> None:
    network = randomised(UNet(UNetConfig(channels=8, labels=3, augment_labels=9)), 0.2).eval()
    x, noise, hot = torch.randn(2, 1, 8, 8), torch.zeros(2), torch.eye(3)[:2]
    plain = network(x, noise)
    assert not torch.allclose(network(x, noise, hot), plain)
    assert not torch.allclose(network(x, noise, None, torch.ones(2, 9)), plain)
    assert torch.equal(network(x, noise, None, torch.zeros(2, 9)), plain)
    expected = hot * math.sqrt(3) @ network.map_label.weight.T + network.map_label.bias
    seen = []
    network.map_layer0.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    network(x, noise, hot)
    torch.testing.assert_close(seen[0] - positional_embedding(noise, 8), expected)


def test_dropout_acts_in_training_mode_only() -> None:
    network = randomised(UNet(UNetConfig(channels=8, dropout=0.5)), 0.2)
    x, noise = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert not torch.equal(network(x, noise), network(x, noise))
    network.eval()
    assert torch.equal(network(x, noise), network(x, noise))


# --- ratio network ------------------------------------------------------------------------------------------


def test_ratio_network_is_the_encoder_with_a_pooled_head() -> None:
    ratio, network = randomised(RatioNetwork(TINY, 0.75)), UNet(TINY)
    head = {name for name in ratio.state_dict() if name.startswith("head")}
    assert {name: ratio.state_dict()[name].shape for name in set(ratio.state_dict()) - head} == {
        name: tensor.shape for name, tensor in network.state_dict().items() if not name.startswith("dec")
    }
    x, sigma = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 5.0])
    embedding = ratio.embed(sigma.log() / 4)
    hidden = x / (sigma**2 + 0.75**2).sqrt()[:, None, None, None]
    hidden = ratio.enc["8x8_block0"](ratio.enc["8x8_conv"](hidden), embedding)
    hidden = ratio.enc["4x4_block0"](ratio.enc["4x4_down"](hidden, embedding), embedding)
    pooled = silu(naive_group_norm(hidden, ratio.head_norm)).mean(dim=(2, 3))
    expected = (pooled @ ratio.head.weight.T + ratio.head.bias)[:, 0]
    assert expected.shape == (3,)
    torch.testing.assert_close(ratio(x, sigma), expected, rtol=1e-4, atol=1e-5)


def test_ratio_network_knows_noise_level_and_label() -> None:
    ratio = randomised(RatioNetwork(UNetConfig(channels=8, labels=2)))
    x, sigma = torch.randn(2, 1, 8, 8), torch.ones(2)
    plain = ratio(x, sigma, torch.tensor([0, 0]))
    assert not torch.allclose(ratio(x, sigma, torch.tensor([1, 1])), plain)
    assert not torch.allclose(ratio(x, 2 * sigma, torch.tensor([0, 0])), plain)


# --- bad configurations -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"resolution": 6, "channel_mult": (1, 1, 1)}, "resolution 6"),
        ({"resolution": 2, "channel_mult": (1, 1, 1)}, "resolution 2"),
        ({"resolution": 0}, "resolution 0"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"channel_mult": (1, 0)}, "channel_mult"),
        ({"channels": 10}, "channels must be a multiple of 4"),
        ({"channels": 0}, "channels"),
        ({"in_channels": 0}, "in_channels"),
        ({"out_channels": -1}, "out_channels"),
        ({"blocks": 0}, "blocks"),
        ({"heads": 0}, "heads"),
        ({"heads": 3}, "3 attention heads"),
        ({"labels": -1}, "labels"),
        ({"augment_labels": -2}, "augment_labels"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(changes: dict, named: str) -> None:
    with pytest.raises(UsageError, match="network: ") as caught:
        dataclasses.replace(TINY, **changes)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        UNetConfig(4, channels=4, channel_mult=(1,), attention_resolutions=()),
        UNetConfig(16, 2, 3, 12, (1, 2, 3), 2, (8, 4), labels=4, heads=2),
        UNetConfig(8, channels=36, channel_mult=(1, 2), attention_resolutions=(8,)),
    ],
)
def test_every_allowed_size_runs(config: UNetConfig) -> None:
    out = UNet(config)(torch.randn(2, config.in_channels, *[config.resolution] * 2), torch.zeros(2))
    assert out.shape == (2, config.out_channels, config.resolution, config.resolution)
    assert RatioNetwork(config)(
        torch.randn(2, config.in_channels, *[config.resolution] * 2), torch.ones(2)
    ).shape == (2,)
