"""Roles of tensors by place and kind of layer, in every family of names, and what a match selects."""

from __future__ import annotations

import pytest
from torch import nn

from featlens.errors import UsageError
from featlens.weights import roles, select
from featlens.weights.rules import WORDS, bare
from featlens_trainers import (
    ADMConfig,
    DiTConfig,
    RatioConfig,
    UNetConfig,
    build_denoiser,
    build_network,
    build_ratio,
)

UNET = UNetConfig(channels=8, labels=3, augment_labels=9)
ADM = ADMConfig(
    resolution=16,
    in_channels=1,
    out_channels=1,
    channels=8,
    channel_mult=(1, 1, 2),
    blocks=1,
    attention_resolutions=(8,),
    labels=3,
    channels_per_head=8,
)
DIT = DiTConfig(width=16, depth=5, heads=2, labels=3)
KINDS = {"conv", "norm", "attention", "embedding", "linear", "other"}
NETWORKS = {
    "unet": lambda: build_denoiser(UNET, 0.5, 0),
    "adm": lambda: build_denoiser(ADM, 0.5, 0),
    "dit": lambda: build_denoiser(DIT, 0.5, 0),
    "ratio": lambda: build_ratio(UNET),
    "dit ratio": lambda: build_ratio(DIT),
    "fake score": lambda: build_ratio(UNET, RatioConfig(kind="fake_score")),
}


def values(has: frozenset[str], key: str) -> list[int]:
    return [int(role.partition("=")[2]) for role in has if role.startswith(f"{key}=")]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_has_one_kind_and_at_most_one_of_what_excludes_each_other(name: str) -> None:
    network = NETWORKS[name]()
    known = roles(network)
    assert list(known) == list(network.state_dict())
    for tensor, has in known.items():
        assert len(has & KINDS) == 1 and "other" not in has, tensor
        assert len(has & {"encoder", "decoder", "noise_embedding", "head"}) == 1, tensor
        assert {role.partition("=")[0] for role in has} <= {*WORDS, "resolution", "depth", "block"}
        for key in ("resolution", "depth", "block"):
            assert len(values(has, key)) <= 1
        assert bool(values(has, "block")) == bool(values(has, "depth"))
        if not has & {"in", "out", "noise_embedding", "head"}:
            assert values(has, "block"), tensor


@pytest.mark.parametrize("name", ["unet", "adm"])
def test_u_nets_are_read_as_their_names_say(name: str) -> None:
    for tensor, has in roles(NETWORKS[name]()).items():
        inner = tensor.removeprefix("network.")
        side, _, rest = inner.partition(".")
        assert ("noise_embedding" in has) == inner.startswith("map_")
        assert ("encoder" in has) == (side == "enc")
        assert ("decoder" in has) == (side in ("dec", "out_norm", "out_conv"))
        assert ("bottleneck" in has) == ("_in0." in rest or "_in1." in rest)
        assert ("in" in has) == (side == "enc" and rest.split(".")[0].endswith("_conv"))
        assert ("out" in has) == ("_aux_" in rest or side.startswith("out_"))
        if rest and side in ("enc", "dec"):
            assert values(has, "resolution") == [int(rest.split("x")[0])]
        assert ("norm" in has) == ("norm" in inner)
        assert ("attention" in has) == any(part in ("qkv", "proj") for part in inner.split("."))
        assert ("embedding" in has) == ("affine" in inner or inner.startswith("map_"))


def test_blocks_are_counted_in_order_of_execution_in_thirds() -> None:
    network = NETWORKS["unet"]()
    known = roles(network)
    order: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, at=path: order.append(at))
        for side in ("enc", "dec")
        for path, module in getattr(network.network, side).named_children()
        if not path.endswith("_conv") and "_aux_" not in path
        for path in [f"network.{side}.{path}"]
    ]
    import torch

    network(torch.zeros(1, 1, 8, 8), torch.ones(1))
    for handle in handles:
        handle.remove()
    assert len(order) == 10
    for index, path in enumerate(order):
        inside = [has for tensor, has in known.items() if tensor.startswith(f"{path}.")]
        assert inside and all(f"block={index}" in has for has in inside)
        assert all(f"depth={3 * index // 10}" in has for has in inside)


def test_transformers_have_halves_and_thirds() -> None:
    known = roles(NETWORKS["dit"]())
    for index in range(5):
        half = "enc" if index < 3 else "dec"
        has = known[f"network.{half}.block{index}.mlp0.weight"]
        third = 3 * index // 5
        assert has == {
            "linear",
            "encoder" if half == "enc" else "decoder",
            f"block={index}",
            f"depth={third}",
        }
    assert known["network.enc.patch.proj.weight"] == {"conv", "encoder", "in"}
    assert known["network.dec.out.linear.weight"] == {"linear", "decoder", "out"}
    assert known["network.enc.block0.affine.bias"] >= {"embedding", "encoder"}


def test_transformers_with_numbered_blocks() -> None:
    def network(last: str) -> nn.Module:
        blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(4))
        return nn.ModuleDict({"patch_embed": nn.Conv2d(1, 8, 2), "blocks": blocks, last: nn.Linear(8, 4)})

    whole, classifier = roles(network("final_layer")), roles(network("head"))
    assert whole["patch_embed.weight"] == {"conv", "in", "encoder"}
    assert whole["blocks.0.self_attn.in_proj_weight"] == {"attention", "encoder", "block=0", "depth=0"}
    assert whole["blocks.3.self_attn.out_proj.weight"] == {"attention", "decoder", "block=3", "depth=2"}
    assert whole["blocks.1.norm1.weight"] == {"norm", "encoder", "block=1", "depth=0"}
    assert whole["final_layer.weight"] == {"linear", "out", "decoder"}
    assert all("decoder" not in has for has in classifier.values())
    assert classifier["head.bias"] == {"linear", "head"}


def test_networks_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    known = roles(network)
    assert all(len(has & KINDS) == 1 and "other" not in has for has in known.values())
    assert known["conv_in.weight"] == {"conv", "in", "encoder", "resolution=16"}
    assert known["conv_norm_out.weight"] == {"norm", "out", "decoder", "resolution=16"}
    assert known["time_embedding.linear_1.weight"] == {"embedding", "noise_embedding"}
    assert known["down_blocks.0.resnets.0.conv1.weight"] >= {"conv", "encoder", "resolution=16", "block=0"}
    assert known["down_blocks.0.downsamplers.0.conv.weight"] >= {"encoder", "resolution=8", "block=1"}
    assert known["down_blocks.1.attentions.0.to_out.0.weight"] >= {"attention", "resolution=8", "block=2"}
    assert known["mid_block.resnets.0.norm1.weight"] >= {"norm", "bottleneck", "resolution=8", "block=3"}
    assert known["up_blocks.0.attentions.1.group_norm.weight"] >= {
        "norm",
        "decoder",
        "resolution=8",
        "block=5",
    }
    assert known["up_blocks.0.upsamplers.0.conv.weight"] >= {"decoder", "resolution=16", "block=6"}
    assert known["up_blocks.1.resnets.1.time_emb_proj.weight"] >= {"embedding", "resolution=16", "block=8"}
    wrapped = nn.ModuleDict({"network": network})
    assert {bare(name): has for name, has in roles(wrapped).items()} == known


def test_any_module_has_kinds_of_layers() -> None:
    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mix = nn.LayerNorm(4), nn.Linear(4, 4)

    network = nn.ModuleDict(
        {
            "stem": nn.Conv1d(1, 4, 3),
            "body": nn.ModuleList([SelfAttention(), nn.MultiheadAttention(4, 2), nn.BatchNorm1d(4)]),
            "words": nn.Embedding(5, 4),
            "read": nn.Linear(4, 1),
            "gate": nn.PReLU(),
        }
    )
    kinds = {
        "stem.weight": "conv",
        "body.0.norm.bias": "norm",
        "body.0.mix.weight": "attention",
        "body.1.in_proj_weight": "attention",
        "body.1.out_proj.weight": "attention",
        "body.2.num_batches_tracked": "norm",
        "words.weight": "embedding",
        "read.weight": "linear",
        "gate.weight": "other",
    }
    known = roles(network)
    assert {name: known[name] for name in kinds} == {name: {kind} for name, kind in kinds.items()}


# --- select -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ("role:norm", {"0.1.weight", "0.1.bias"}),
        ("role:conv+!in", {"0.0.weight", "0.0.bias", "1.weight", "1.bias"}),
        ("0", {"0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"}),
        ("*", {"0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "1.weight", "1.bias"}),
        ("**.bias", {"0.0.bias", "0.1.bias", "1.bias"}),
        ("*.bias", {"1.bias"}),
        (r"re:.*\.1", {"0.1.weight", "0.1.bias"}),
        (r"re:1\.(weight|bias)", {"1.weight", "1.bias"}),
    ],
)
def test_select_takes_globs_regexes_and_roles(match: str, expected: set[str]) -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(1, 4)), nn.Conv2d(4, 1, 3))
    assert set(select(network, match)) == expected


def test_names_may_leave_out_what_wraps_the_network() -> None:
    denoiser, network = build_denoiser(UNET, 0.5, 0), build_network(UNET)
    for match in ("enc.8x8_block0", "re:dec.*conv1.weight", "role:encoder+norm", "dec.4x4_in0.*.bias"):
        assert select(denoiser, match) == [f"network.{name}" for name in select(network, match)] != []
    assert select(denoiser, "network.enc.8x8_conv") == select(denoiser, "enc.8x8_conv")


@pytest.mark.parametrize(
    ("match", "message"),
    [
        ("role:encodr", r"unknown role 'encodr'.*did you mean 'encoder'"),
        ("role:decoder+nrom", r"unknown role 'nrom'.*did you mean 'norm'"),
        ("role:resolution=9", r"has the role 'resolution=9': choose from resolution=4, resolution=8"),
        ("role:depth=3", r"choose from depth=0, depth=1, depth=2"),
        ("role:depth", r"depth needs a number, such as depth=0"),
        ("role:block=x", r"expected a whole number after block=, got 'x'"),
        ("role:head", r"no tensor of the network EDMDenoiser has the role 'head'"),
        ("role:in+norm", r"has all of 'role:in\+norm', though each role is there"),
        ("enc.8x8_blok0", r"matches 'enc.8x8_blok0': did you mean 'enc.8x8_block0'"),
        ("re:(", r"no regular expression"),
    ],
)
def test_what_matches_nothing_is_an_error_with_the_nearest(match: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        select(build_denoiser(UNET, 0.5, 0), match)
