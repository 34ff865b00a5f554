"""Ratio networks and denoisers on every backbone: what they share, what tensors fit, how they run."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from featlens.denoiser import EDMDenoiser
from featlens.errors import UsageError
from featlens.testing import check_denoiser
from featlens_trainers.networks import (
    ADMConfig,
    DiTConfig,
    FakeScoreRatio,
    NetworkConfig,
    RatioConfig,
    RatioNetwork,
    UNetConfig,
    build_denoiser,
    build_ratio,
)
from featlens_trainers.settings.ratio import scaled

BACKBONES: dict[str, NetworkConfig] = {
    "unet": UNetConfig(channels=16, labels=3, augment_labels=9, dropout=0.1),
    "adm": ADMConfig(8, 1, 1, 16, (1, 2), 1, (4,), labels=3, augment_labels=9, channels_per_head=16),
    "dit": DiTConfig(width=32, depth=4, heads=4, labels=3, augment_labels=9, dropout=0.1),
}


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=BACKBONES)
def config(request: pytest.FixtureRequest) -> NetworkConfig:
    return BACKBONES[request.param]


def randomised(module: nn.Module, scale: float = 0.1) -> nn.Module:
    """Away from special initial values: no layer is zero or almost."""
    numbers = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=numbers))
    return module.eval()


def batch(count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(count, 1, 8, 8), torch.linspace(0.1, 5, count), torch.arange(count) % 3


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- denoisers ----------------------------------------------------------------------------------------------


def test_denoisers_of_every_kind_pass_the_public_test(config: NetworkConfig) -> None:
    for labels in (0, 3):
        check_denoiser(randomised(build_denoiser(dataclasses.replace(config, labels=labels), 0.5, seed=1)))


def test_weights_depend_on_the_seed_alone(config: NetworkConfig) -> None:
    one, other = build_denoiser(config, 0.5, seed=1), build_denoiser(config, 0.5, seed=2)
    torch.rand(7)
    again = build_denoiser(config, 0.5, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_row_without_a_label_is_the_unconditional_estimate(config: NetworkConfig) -> None:
    denoiser = randomised(build_denoiser(config, 0.5, seed=1))
    x, sigma, _ = batch()
    mixed = denoiser(x, sigma, torch.tensor([2, -1, 0]))
    torch.testing.assert_close(mixed[1:2], denoiser(x, sigma)[1:2])
    torch.testing.assert_close(mixed[:1], denoiser(x, sigma, torch.tensor([2, 2, 2]))[:1])
    assert not torch.allclose(mixed[:1], denoiser(x, sigma)[:1], atol=1e-4)


def test_augmentation_labels_reach_the_network_and_zeros_say_nothing(config: NetworkConfig) -> None:
    denoiser = randomised(build_denoiser(config, 0.5, seed=1))
    x, sigma, labels = batch()
    plain = denoiser(x, sigma, labels)
    assert torch.equal(denoiser(x, sigma, labels, torch.zeros(3, 9)), plain)
    assert not torch.allclose(denoiser(x, sigma, labels, torch.ones(3, 9)), plain, atol=1e-4)
    without = build_denoiser(dataclasses.replace(config, augment_labels=0), 0.5, seed=1)
    with pytest.raises(UsageError, match=r"expected no augmentation labels, got \(3, 9\).*augment_labels"):
        without(x, sigma, labels, torch.zeros(3, 9))


# --- ratio networks -----------------------------------------------------------------------------------------


def test_a_teachers_tensors_fit_by_name(config: NetworkConfig) -> None:
    teacher = build_denoiser(config, 0.5, seed=1)
    state = {name.removeprefix("network."): tensor.shape for name, tensor in teacher.state_dict().items()}
    own = {name: tensor.shape for name, tensor in build_ratio(config).state_dict().items()}
    heads = {name for name in own if name.startswith("head")}
    body = {name: shape for name, shape in state.items() if name.startswith(("map_", "enc."))}
    assert {name: shape for name, shape in own.items() if name not in heads} == body
    assert heads == {"head_norm.weight", "head_norm.bias", "head.weight", "head.bias"}
    joined = build_ratio(config, RatioConfig("fake_score")).state_dict()
    assert {f"denoiser.{name}" for name in teacher.state_dict()} | heads == set(joined)


def test_default_construction_is_that_of_the_settings(config: NetworkConfig) -> None:
    torch.manual_seed(5)
    one = RatioNetwork(config, 0.75)
    torch.manual_seed(5)
    other = build_ratio(config, RatioConfig(), 0.75)
    assert one.sigma_data == other.sigma_data == 0.75
    assert list(one.state_dict()) == list(other.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_light_ratio_network_has_about_a_quarter_of_the_weights(config: NetworkConfig) -> None:
    full, light = build_ratio(config), build_ratio(config, RatioConfig(width=0.5))
    assert list(full.state_dict()) == list(light.state_dict())
    assert 0.2 < parameters(light) / parameters(full) < 0.35
    assert light(*batch()).shape == (3,)


@pytest.mark.parametrize("width", [0.1, 0.3, 0.5, 0.75, 1.5, 2.0])
@pytest.mark.parametrize(
    "network",
    [
        UNetConfig(channels=24, heads=3),
        UNetConfig(16, channels=20, channel_mult=(1, 3), heads=5),
        ADMConfig(32, channels=192, channel_mult=(1, 2, 3), labels=0),
        DiTConfig(width=36, heads=6),
        DiTConfig(width=384, heads=6),
    ],
)
def test_any_width_is_rounded_to_one_that_is_possible(network: NetworkConfig, width: float) -> None:
    out = scaled(network, RatioConfig(width=width))
    name = "width" if isinstance(network, DiTConfig) else "channels"
    full, made = getattr(network, name), getattr(out, name)
    assert (
        dataclasses.replace(out, **{name: full, **({"heads": network.heads} if name == "width" else {})})
        == network
    )
    # No further from the width asked for than one step of heads or groups.
    assert abs(made - width * full) <= max(full / 3, 20)
    if isinstance(network, DiTConfig):
        assert out.width // out.heads == network.width // network.heads


def test_dropout_of_the_ratio_network_is_its_own_if_asked_for(config: NetworkConfig) -> None:
    assert build_ratio(config).config.dropout == config.dropout
    assert build_ratio(config, RatioConfig(dropout=0.0)).config.dropout == 0
    ratio = randomised(build_ratio(config, RatioConfig(dropout=0.5))).train()
    assert not torch.equal(ratio(*batch()), ratio(*batch()))


@pytest.mark.parametrize("kind", ["encoder", "fake_score"])
def test_the_logit_knows_image_noise_level_and_label_and_no_other_row(
    config: NetworkConfig, kind: str
) -> None:
    ratio = randomised(build_ratio(config, RatioConfig(kind)))
    x, sigma, labels = batch()
    logit = ratio(x, sigma, labels)
    assert logit.shape == (3,)
    for other in (
        ratio(x.flip(3), sigma, labels),
        ratio(x, 2 * sigma, labels),
        ratio(x, sigma, (labels + 1) % 3),
        ratio(x, sigma),
    ):
        assert (other - logit).abs().min() > 1e-4
    alone = torch.cat([ratio(x[i : i + 1], sigma[i : i + 1], labels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, logit, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["encoder", "fake_score"])
def test_the_logit_is_that_of_the_pooled_encoder(config: NetworkConfig, kind: str) -> None:
    ratio = randomised(build_ratio(config, RatioConfig(kind), 0.75))
    body = ratio.denoiser.network if isinstance(ratio, FakeScoreRatio) else ratio
    x, sigma, labels = batch()
    hidden = []
    list(body.enc.values())[-1].register_forward_hook(lambda _, inputs, out: hidden.append(out))
    first = next(iter(body.enc.values()))
    first.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    logit = ratio(x, sigma, labels)
    torch.testing.assert_close(hidden[0], x / (sigma**2 + 0.75**2).sqrt()[:, None, None, None])
    maps = hidden[1].movedim(-1, 1) if config.kind == "dit" else hidden[1].flatten(2)
    if config.kind == "dit":
        last = torch.nn.functional.layer_norm(maps.movedim(1, -1), (32,), eps=1e-6).movedim(-1, 1)
    else:
        last = torch.nn.functional.group_norm(maps, ratio.head_norm.num_groups, eps=1e-6)
    last = last * ratio.head_norm.weight[:, None] + ratio.head_norm.bias[:, None]
    expected = (last * torch.sigmoid(last)).mean(dim=2) @ ratio.head.weight[0] + ratio.head.bias
    torch.testing.assert_close(logit, expected, rtol=1e-4, atol=1e-5)


def test_one_pass_of_the_fake_score_gives_both(config: NetworkConfig) -> None:
    ratio = randomised(build_ratio(config, RatioConfig("fake_score")))
    assert isinstance(ratio, FakeScoreRatio)
    ran = []
    for side in ("enc", "dec"):
        for name, module in getattr(ratio.denoiser.network, side).items():
            module.register_forward_hook(lambda *_, key=f"{side}.{name}": ran.append(key))
    x, sigma, labels = batch()
    logit = ratio(x, sigma, labels)
    assert ran and all(name.startswith("enc.") for name in ran)
    ran.clear()
    denoised, same = ratio.both(x, sigma, labels)
    assert len(ran) == len(set(ran)) == len(ratio.denoiser.network.enc) + len(ratio.denoiser.network.dec)
    assert torch.equal(same, logit)
    assert torch.equal(denoised, ratio.denoiser(x, sigma, labels))


def test_a_gradient_through_the_logit_reaches_image_encoder_and_head_but_no_decoder(
    config: NetworkConfig,
) -> None:
    ratio = randomised(build_ratio(config, RatioConfig("fake_score")))
    x, sigma, labels = batch()
    x.requires_grad_(True)
    ratio(x, sigma, labels).sum().backward()
    assert x.grad.flatten(1).norm(dim=1).min() > 0
    reached = {name for name, p in ratio.named_parameters() if p.grad is not None}
    assert {"head.weight", "denoiser.network.map_layer0.weight"} <= reached
    assert not any(name.startswith(("denoiser.network.dec", "denoiser.network.out")) for name in reached)


def test_a_foreign_network_has_no_head() -> None:
    with pytest.raises(UsageError, match=r"needs the encoder of a network of featlens .*got a Conv2d; use"):
        FakeScoreRatio(EDMDenoiser(nn.Conv2d(1, 1, 1), (1, 8, 8)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "encodr"}, "unknown ratio network 'encodr': did you mean 'encoder'"),
        ({"width": 0.0}, "width must be above 0 and at most 8, got 0.0"),
        ({"kind": "fake_score", "width": 0.5}, "has the fake score's width, got 0.5; set width to 1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ],
)
def test_impossible_ratio_networks_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RatioConfig(**settings)


# --- running ------------------------------------------------------------------------------------------------


def test_under_autocast_estimates_and_logits_are_float32_and_near(config: NetworkConfig) -> None:
    ratio = randomised(build_ratio(config, RatioConfig("fake_score")), 0.05)
    x, sigma, labels = batch()
    exact, exact_logit = ratio.both(x, sigma, labels)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            denoised, logit = ratio.both(given, sigma, labels)
            assert denoised.dtype == logit.dtype == torch.float32
            torch.testing.assert_close(logit, exact_logit, rtol=0.1, atol=0.1)
            torch.testing.assert_close(denoised, exact, rtol=0.05, atol=0.1)


def test_channels_last_changes_no_more_than_rounding(config: NetworkConfig) -> None:
    ratio = randomised(build_ratio(config, RatioConfig("fake_score")))
    other = copy.deepcopy(ratio).to(memory_format=torch.channels_last)
    x, sigma, labels = batch()
    for one, same in zip(
        ratio.both(x, sigma, labels),
        other.both(x.to(memory_format=torch.channels_last), sigma, labels),
        strict=True,
    ):
        torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_compiles_as_one_graph(name: str) -> None:
    changes = {"depth": 1} if name == "dit" else {"channel_mult": (1,), "attention_resolutions": (8,)}
    ratio = randomised(
        build_ratio(dataclasses.replace(BACKBONES[name], **changes), RatioConfig("fake_score"))
    )
    given = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=name == "unet"):
        compiled = torch.compile(lambda *x: ratio.both(*x), backend="eager", fullgraph=True)(*given)
        for one, same in zip(compiled, ratio.both(*given), strict=True):
            torch.testing.assert_close(one, same)
