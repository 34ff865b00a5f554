"""Names, shapes and order of the two families of U-Nets, derived once more from the papers' description."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from featlens_trainers.networks import ADMConfig, UNet, UNetConfig, build_denoiser, build_network

Shapes = dict[str, tuple[int, ...]]

CIFAR = UNetConfig(32, 3, 3, 128, (2, 2, 2), 4, (16,), augment_labels=9, dropout=0.13)
CIFAR_COND = UNetConfig(32, 3, 3, 128, (2, 2, 2), 4, (16,), labels=10, augment_labels=9, dropout=0.13)
FACES = UNetConfig(64, 3, 3, 128, (1, 2, 2, 2), 4, (16,), augment_labels=9)
IMAGENET = ADMConfig()


def layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}


def block(config: UNetConfig | ADMConfig, name: str, cin: int, cout: int, attends=False, resamples=False):
    adm = isinstance(config, ADMConfig)
    out = layer(f"{name}.norm0", cin) | layer(f"{name}.conv0", cout, cin, 3, 3)
    # ADM: a scale and a shift for each channel, DDPM++: one summand.
    out |= layer(f"{name}.affine", 2 * cout if adm else cout, 4 * config.channels)
    out |= layer(f"{name}.norm1", cout) | layer(f"{name}.conv1", cout, cout, 3, 3)
    if cin != cout or (resamples and not adm):
        out |= layer(f"{name}.skip", cout, cin, 1, 1)
    if attends:
        out |= layer(f"{name}.norm2", cout) | layer(f"{name}.qkv", 3 * cout, cout, 1, 1)
        out |= layer(f"{name}.proj", cout, cout, 1, 1)
    return out


def body(config: UNetConfig | ADMConfig) -> Shapes:
    """Encoder and decoder, the two sides written as the lists that they are in the papers."""
    adm, out = isinstance(config, ADMConfig), {}
    sizes = [config.resolution // 2**level for level in range(len(config.channel_mult))]
    widths = [config.channels * factor for factor in config.channel_mult]
    now = widths[0] if adm else config.channels
    out |= layer(f"enc.{sizes[0]}x{sizes[0]}_conv", now, config.in_channels, 3, 3)
    stack = [now]
    for size, width in zip(sizes, widths, strict=True):
        if size != sizes[0]:
            out |= block(config, f"enc.{size}x{size}_down", now, now, resamples=True)
            stack.append(now)
        for index in range(config.blocks):
            attends = size in config.attention_resolutions
            out |= block(config, f"enc.{size}x{size}_block{index}", now, width, attends)
            now = width
            stack.append(now)
    coarse = f"dec.{sizes[-1]}x{sizes[-1]}"
    out |= block(config, f"{coarse}_in0", now, now, attends=True) | block(config, f"{coarse}_in1", now, now)
    for size, width in zip(sizes[::-1], widths[::-1], strict=True):
        if size != sizes[-1]:
            out |= block(config, f"dec.{size}x{size}_up", now, now, resamples=True)
        for index in range(config.blocks + 1):
            attends = size in config.attention_resolutions and (adm or index == config.blocks)
            out |= block(config, f"dec.{size}x{size}_block{index}", now + stack.pop(), width, attends)
            now = width
    assert stack == []
    last = (
        ("out_norm", "out_conv")
        if adm
        else tuple(f"dec.{sizes[0]}x{sizes[0]}_aux_{n}" for n in ("norm", "conv"))
    )
    return out | layer(last[0], now) | layer(last[1], config.out_channels, now, 3, 3)


def expected(config: UNetConfig | ADMConfig) -> Shapes:
    wide, out = 4 * config.channels, {}
    if config.labels and isinstance(config, UNetConfig):
        out |= layer("map_label", config.channels, config.labels)
    if config.labels and isinstance(config, ADMConfig):
        out["map_label.weight"] = (wide, config.labels)
    if config.augment_labels:
        out["map_augment.weight"] = (config.channels, config.augment_labels)
    out |= layer("map_layer0", wide, config.channels) | layer("map_layer1", wide, wide)
    return out | body(config)


def made(config: UNetConfig | ADMConfig) -> nn.Module:
    with torch.device("meta"):
        return build_network(config)


CONFIGS = {
    "digits": UNetConfig(channels=24),
    "to 4x4": UNetConfig(16, 1, 1, 16, (1, 2, 3), 2, (8, 4)),
    "one level": UNetConfig(4, channels=8, channel_mult=(1,), attention_resolutions=()),
    "shapes": UNetConfig(32, 3, 3, 64, (1, 2, 2), 2, (16, 8), labels=4),
    "cifar": CIFAR,
    "cifar, labels": CIFAR_COND,
    "faces": FACES,
    "imagenet": IMAGENET,
    "small adm": ADMConfig(16, 1, 2, 32, (2, 3), 1, (8,), labels=0, augment_labels=9, channels_per_head=16),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_has_the_derived_name_and_shape(name: str) -> None:
    config = CONFIGS[name]
    state = made(config).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == expected(config)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (CIFAR, 55_733_891),
        # One weight for each of 10 classes and 128 channels, and 128 biases.
        (CIFAR_COND, 55_733_891 + 1_408),
        (IMAGENET, 295_899_267),
    ],
)
def test_the_published_numbers_of_parameters(config: UNetConfig | ADMConfig, count: int) -> None:
    assert sum(math.prod(shape) for shape in expected(config).values()) == count
    assert sum(parameter.numel() for parameter in made(config).parameters()) == count


def test_the_published_numbers_in_millions() -> None:
    # arXiv 2206.00364, table 7: 55.7 M and 295.9 M.
    assert round(sum(p.numel() for p in made(CIFAR).parameters()) / 1e6, 2) == 55.73
    assert round(sum(p.numel() for p in made(IMAGENET).parameters()) / 1e6, 1) == 295.9


@pytest.mark.parametrize("name", ["digits", "to 4x4", "small adm"])
def test_modules_run_in_the_order_of_their_names(name: str) -> None:
    config = CONFIGS[name]
    network = build_network(config)
    ran: list[str] = []
    modules = dict(network.named_modules())
    wanted = [key for key in dict.fromkeys(key.rpartition(".")[0] for key in body(config)) if key]
    wanted = list(dict.fromkeys(".".join(key.split(".")[:2]) for key in wanted))
    for key in wanted:
        modules[key].register_forward_hook(lambda *_, key=key: ran.append(key))
    network(torch.zeros(1, config.in_channels, config.resolution, config.resolution), torch.zeros(1))
    assert ran == wanted


def test_the_initial_weights_of_the_digits_study_stay_as_they_are() -> None:
    network = build_denoiser(UNetConfig(channels=24), 0.75, seed=3).network
    assert isinstance(network, UNet)
    state = network.state_dict()
    for name, first, total in FIRST_WEIGHTS:
        assert float(state[name].flatten()[0]) == pytest.approx(first, rel=1e-5)
        assert float(state[name].double().abs().sum()) == pytest.approx(total, rel=1e-5)


FIRST_WEIGHTS = (
    # Written down before there were families: docs/results/digits.md holds numbers of these weights.
    ("map_layer0.weight", -0.03397226, 259.6527),
    ("enc.8x8_conv.weight", -0.09894834, 18.37698),
    ("enc.4x4_block0.qkv.weight", -0.1003285, 95.91425),
    ("dec.4x4_in1.conv1.weight", 4.856584e-07, 0.003050032),
    ("dec.8x8_aux_conv.weight", -1.228575e-06, 0.0001827774),
)
