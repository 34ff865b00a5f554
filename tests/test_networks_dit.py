"""The transformer: re-implemented naively as a whole, and what its start, its tokens and its sites are."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

import featlens
from featlens.errors import UsageError
from featlens.reduce import gap, tokens
from featlens_trainers.networks import DiT, DiTConfig, build_denoiser
from featlens_trainers.networks.dit import positions

TINY = DiTConfig(4, 2, 1, patch=2, width=8, depth=3, heads=2, mlp_ratio=2, labels=3, augment_labels=9)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def randomised(module: nn.Module, scale: float = 0.3) -> nn.Module:
    numbers = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=numbers))
    return module


# --- naive re-implementation --------------------------------------------------------------------------------


def applied(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def normed(x: Tensor) -> Tensor:
    """One token (D,)."""
    return (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + 1e-6)


def naive_block(block: nn.Module, x: Tensor, embedding: Tensor, heads: int) -> Tensor:
    """One image: (T, D) and (E,) -> (T, D)."""
    count, width = x.shape
    told = applied(block.affine, embedding).reshape(6, width)
    seen = torch.stack([normed(token) * (1 + told[1]) + told[0] for token in x])
    rows = applied(block.qkv, seen)
    query, key, value = rows[:, :width], rows[:, width : 2 * width], rows[:, 2 * width :]
    mixed = torch.zeros_like(x)
    each = width // heads
    for head in range(heads):
        part = slice(head * each, (head + 1) * each)
        for at in range(count):
            scores = torch.stack([query[at, part] @ key[to, part] for to in range(count)])
            weights = torch.softmax(scores / math.sqrt(each), dim=0)
            mixed[at, part] = sum(weights[to] * value[to, part] for to in range(count))
    x = x + told[2] * applied(block.proj, mixed)
    seen = torch.stack([normed(token) * (1 + told[4]) + told[3] for token in x])
    return x + told[5] * applied(block.mlp1, gelu(applied(block.mlp0, seen)))


def naive(network: DiT, x: Tensor, noise: float, label: int, how: Tensor) -> Tensor:
    """One image (C, H, W) -> (C_out, H, W)."""
    config, patch = network.config, network.config.patch
    side, width = config.resolution // patch, config.width
    frequencies = [10_000 ** -(index / (width // 2 - 1)) for index in range(width // 2)]
    told = torch.tensor([f(noise * w) for f in (math.sin, math.cos) for w in frequencies]).double()
    told = told + how @ network.map_augment.weight.T
    told = applied(network.map_layer1, silu(applied(network.map_layer0, told)))
    told = silu(told + network.map_label.weight[:, label] + network.map_label.bias)
    words, proj = [], network.enc["patch"].proj
    for row in range(side):
        for column in range(side):
            at = []
            for place in (row, column):
                angles = [place * 10_000 ** -(index / (width // 4)) for index in range(width // 4)]
                at += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            square = x[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            word = torch.stack([(kernel * square).sum() for kernel in proj.weight]) + proj.bias
            words.append(word + torch.tensor(at).double())
    hidden = torch.stack(words)
    for block in [*list(network.enc.values())[1:], *list(network.dec.values())[:-1]]:
        hidden = naive_block(block, hidden, told, config.heads)
    last = network.dec["out"]
    shift, scale = applied(last.affine, told).reshape(2, width)
    out = torch.zeros(config.out_channels, config.resolution, config.resolution).double()
    for index, token in enumerate(hidden):
        row, column = divmod(index, side)
        pixels = applied(last.linear, normed(token) * (1 + scale) + shift)
        square = pixels.reshape(config.out_channels, patch, patch)
        out[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = square
    return out


@torch.no_grad()
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_the_network_is_the_one_of_the_paper(patch: int) -> None:
    network = randomised(DiT(dataclasses.replace(TINY, patch=patch))).double()
    x, noise, how = (
        torch.randn(2, 2, 4, 4).double(),
        torch.tensor([0.4, -1.1]).double(),
        torch.randn(2, 9).double(),
    )
    out = network(x, noise, torch.eye(3)[[2, 0]], how)
    expected = torch.stack(
        [naive(network, x[i], float(noise[i]), label, how[i]) for i, label in enumerate((2, 0))]
    )
    # Positions and sinusoids are computed in float32.
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


# --- structure ----------------------------------------------------------------------------------------------


def test_names_are_coordinates_counted_through_from_encoder_to_decoder() -> None:
    network = DiT(TINY)
    assert list(network.enc) == ["patch", "block0", "block1"]
    assert list(network.dec) == ["block2", "out"]
    assert list(DiT(dataclasses.replace(TINY, depth=4)).dec) == ["block2", "block3", "out"]
    assert list(DiT(dataclasses.replace(TINY, depth=1)).dec) == ["out"]
    tops = {name.partition(".")[0] for name in network.state_dict()}
    assert tops == {"map_augment", "map_layer0", "map_layer1", "map_label", "enc", "dec"}
    assert "enc.patch.where" not in network.state_dict()


def test_the_number_of_parameters_is_the_textbook_sum() -> None:
    config = DiTConfig(32, 3, 3, patch=2, width=384, depth=12, heads=6, labels=10)
    width = config.width
    attention, mlp, modulation = 4 * width**2 + 4 * width, 8 * width**2 + 5 * width, 6 * (width**2 + width)
    ends = (12 * width + width) + (12 * width + 12) + 2 * (width**2 + width)
    embedding = 2 * (width**2 + width) + 11 * width
    with torch.device("meta"):
        network = DiT(config)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == 12 * (attention + mlp + modulation) + ends + embedding


def test_every_token_has_a_position_of_its_own() -> None:
    where = positions(8, 32)
    assert where.shape == (64, 32)
    assert len({tuple(row.tolist()) for row in where}) == 64
    # sin^2 + cos^2 of 8 angles a row and 8 a column.
    torch.testing.assert_close((where**2).sum(dim=1), torch.full((64,), 16.0))
    # The similarity of two positions depends on their distance alone.
    likeness = (where @ where.T).reshape(8, 8, 8, 8)
    torch.testing.assert_close(likeness[1, 2, 3, 5], likeness[4, 0, 6, 3])


def test_a_fresh_network_puts_out_zeros_and_its_blocks_pass_on_their_input() -> None:
    network = DiT(TINY)
    x = torch.randn(3, 2, 4, 4)
    assert torch.equal(network(x, torch.zeros(3)), torch.zeros(3, 1, 4, 4))
    held = torch.randn(3, 4, 8)
    assert torch.equal(network.enc["block0"](held, torch.randn(3, 8)), held)


def test_without_blocks_that_do_anything_a_patch_answers_to_itself_alone() -> None:
    network = DiT(TINY)
    randomised(network.dec["out"])
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    out = network(x, torch.zeros(1))
    (slope,) = torch.autograd.grad(out[0, 0, 3, 0], x)
    assert slope[0, :, 2:, :2].abs().min() > 0
    slope[0, :, 2:, :2] = 0
    assert not slope.any()


def test_dropout_acts_in_training_mode_only() -> None:
    network = randomised(DiT(dataclasses.replace(TINY, dropout=0.5)))
    x, noise = torch.randn(2, 2, 4, 4), torch.zeros(2)
    assert not torch.equal(network(x, noise), network(x, noise))
    network.eval()
    assert torch.equal(network(x, noise), network(x, noise))


# --- sites --------------------------------------------------------------------------------------------------


def test_sites_are_chosen_as_in_a_unet_and_tokens_are_reduced() -> None:
    denoiser = build_denoiser(TINY, 0.5, seed=0)
    found = {site.name: site for site in featlens.sites(denoiser, ["enc.*", "dec.*block*"])}
    assert list(found) == ["enc.patch", "enc.block0", "enc.block1", "dec.block2"]
    assert {site.shape for site in found.values()} == {(4, 8)}
    assert {(site.channels, site.resolution) for site in found.values()} == {(8, 0)}
    x, sigma = torch.randn(3, 2, 4, 4), torch.ones(3)
    with featlens.Capture(denoiser.network, ["enc.block1"]) as whole:
        denoiser.eval()(x, sigma)
    kept = whole["enc.block1"]
    assert kept.shape == (3, 4, 8)
    torch.testing.assert_close(gap(kept), kept.mean(dim=1))
    assert torch.equal(tokens(kept), kept)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"patch": 3}, "resolution 4 does not divide into patches of 3 pixels"),
        ({"patch": 0}, "patch must be at least 1"),
        ({"resolution": 0}, "resolution must be at least 1"),
        ({"width": 6}, "width must be a multiple of 4"),
        ({"width": 20, "heads": 3}, "width 20 does not divide into 3 attention heads"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"depth": 10**9}, "depth must be at most 65536"),
        ({"mlp_ratio": 0}, "mlp_ratio must be at least 1"),
        ({"out_channels": 0}, "out_channels must be at least 1"),
        ({"kind": "vit"}, "DiTConfig is of kind 'dit', got kind 'vit'"),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(changes: dict, named: str) -> None:
    with pytest.raises(UsageError, match=r"^network: ") as caught:
        dataclasses.replace(TINY, **changes)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
