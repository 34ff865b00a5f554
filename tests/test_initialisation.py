"""Which tensor of a student or ratio network comes from where, exactly, for every initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError, UsageError
from featlens.seeds import derive
from featlens_trainers import (
    InitSpec,
    OneStepGenerator,
    RatioNetwork,
    UNetConfig,
    build_denoiser,
    initialise_ratio,
    initialise_student,
    start_teacher,
)
from featlens_trainers.initialisation import seeded
from featlens_trainers.settings import INITIALISATIONS, STUDY_INITIALISATIONS, RegressionConfig
from featlens_trainers.settings.initialisation import TRAINED
from featlens_trainers.teacher import regress_map

CONFIG = UNetConfig(channels=8, labels=3, augment_labels=9)

Weights = dict[str, Tensor]


def trained(seed: int, config: UNetConfig = CONFIG) -> EDMDenoiser:
    """Denoiser without any special initial value left, such as zero biases."""
    denoiser = build_denoiser(config, 0.5, seed)
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=numbers)
    return denoiser


@pytest.fixture(scope="module")
def sources() -> dict[str, Weights]:
    return {name: trained(seed).state_dict() for seed, name in enumerate(TRAINED, start=100)}


def initialised(init: str, sources: dict[str, Weights], seed: int = 0) -> tuple[Weights, dict[str, str]]:
    student = build_denoiser(CONFIG, 0.5, seed)
    manifest = initialise_student(student, InitSpec(init), sources, seed)
    manifest.verify(student)
    return student.state_dict(), manifest.origins()


def same(first: Weights, second: Weights) -> set[str]:
    return {name for name in first if torch.equal(first[name], second[name])}


MAP = {
    "network.enc.8x8_conv.weight",
    "network.enc.8x8_conv.bias",
    "network.dec.8x8_aux_conv.weight",
    "network.dec.8x8_aux_conv.bias",
    "network.map_layer0.weight",
    "network.map_layer0.bias",
    "network.map_layer1.weight",
    "network.map_layer1.bias",
    "network.map_label.weight",
    "network.map_label.bias",
    "network.map_augment.weight",
}


# --- student ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", sorted(set(TRAINED) - {"classifier_body"}))
def test_whole_networks_are_taken_over_tensor_by_tensor(init: str, sources) -> None:
    weights, origin = initialised(init, sources)
    assert same(weights, sources[init]) == set(weights)
    assert origin == dict.fromkeys(weights, init)
    for other in set(sources) - {init}:
        assert same(weights, sources[other]) == set()


def test_random_keeps_nothing_of_the_teacher(sources) -> None:
    weights, origin = initialised("random", sources)
    fresh = build_denoiser(CONFIG, 0.5, 0).state_dict()
    assert same(weights, fresh) == set(weights)
    assert same(weights, sources["teacher"]) == set()
    assert set(origin.values()) == {"random"}


def test_features_only_draws_input_output_and_noise_embedding_anew_and_nothing_else(sources) -> None:
    weights, origin = initialised("features_only", sources)
    assert same(weights, sources["teacher"]) == set(weights) - MAP
    fresh = build_denoiser(CONFIG, 0.5, 0).state_dict()
    assert all(torch.equal(weights[name], fresh[name]) for name in MAP)
    assert {name for name, where in origin.items() if where == "random"} == MAP
    assert {name for name, where in origin.items() if where == "teacher"} == set(weights) - MAP


def test_features_only_changes_the_map_of_the_network(sources) -> None:
    z = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = {}
    for init in ("teacher", "features_only"):
        student = build_denoiser(CONFIG, 0.5, 0)
        initialise_student(student, InitSpec(init), sources, 0)
        images[init] = OneStepGenerator(student.eval())(z).detach()
    assert float((images["teacher"] - images["features_only"]).abs().mean()) > 0.05


def test_prior_only_permutes_each_tensor_within_itself(sources) -> None:
    weights, origin = initialised("prior_only", sources)
    for name, tensor in weights.items():
        teacher = sources["teacher"][name]
        assert tensor.shape == teacher.shape
        assert torch.equal(tensor.flatten().sort().values, teacher.flatten().sort().values), name
        if tensor.numel() > 1:
            assert not torch.equal(tensor, teacher), name
        if tensor.numel() > 100:
            matching = (tensor == teacher).float().mean()
            assert float(matching) < 0.05, name
    assert set(origin.values()) == {"teacher, permuted"}


def test_permutations_depend_on_the_seed_and_differ_between_equal_tensors(sources) -> None:
    first, second = initialised("prior_only", sources, 0)[0], initialised("prior_only", sources, 1)[0]
    assert same(first, initialised("prior_only", sources, 0)[0]) == set(first)
    name = "network.dec.8x8_block1.conv1.weight"
    assert not torch.equal(first[name], second[name])
    ramp = {key: torch.arange(tensor.numel()).reshape(tensor.shape).float() for key, tensor in first.items()}
    permuted = initialised("prior_only", {"teacher": ramp})[0]
    twins = [f"network.dec.{block}.conv1.weight" for block in ("4x4_in0", "4x4_in1")]
    assert not torch.equal(permuted[twins[0]], permuted[twins[1]])


def as_before_rules(init: str, sources: dict[str, Weights], seed: int) -> Weights:
    """The six initialisations of the digits study as they were made before there were rules."""
    own = build_denoiser(CONFIG, 0.5, seed).state_dict()
    if init == "random":
        return own
    source = sources[init if init in ("single_sigma", "map_regressed") else "teacher"]
    out = {}
    for name, tensor in own.items():
        if init == "features_only" and name in MAP:
            out[name] = tensor
        elif init == "prior_only":
            numbers = torch.Generator().manual_seed(derive(seed, "permute", name))
            order = torch.randperm(tensor.numel(), generator=numbers)
            out[name] = source[name].flatten()[order].reshape(tensor.shape)
        else:
            out[name] = source[name]
    return out


@pytest.mark.parametrize("init", STUDY_INITIALISATIONS)
def test_the_studys_initialisations_are_bit_for_bit_what_they_were(init: str, sources) -> None:
    weights, _ = initialised(init, sources, seed=3)
    assert same(weights, as_before_rules(init, sources, 3)) == set(weights)


@pytest.mark.parametrize("init", INITIALISATIONS)
def test_the_source_is_left_as_it_was_and_shares_no_memory(init: str, sources) -> None:
    before = {name: {key: t.clone() for key, t in held.items()} for name, held in sources.items()}
    student = build_denoiser(CONFIG, 0.5, 0)
    initialise_student(student, InitSpec(init), sources, 0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1.0
    for name, held in sources.items():
        assert same(held, before[name]) == set(held)


def test_students_of_a_seed_share_their_random_weights_and_only_those() -> None:
    def weights(seed: int) -> Weights:
        torch.rand(3)
        return build_denoiser(CONFIG, 0.5, seed).state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert same(first, again) == set(first)
    drawn = {name for name in first if name.endswith("weight") and "norm" not in name}
    assert len(drawn) > 30
    assert same(first, other) == set(first) - drawn


def test_random_tensors_are_the_same_in_features_only_and_random(sources) -> None:
    partly, random = initialised("features_only", sources)[0], initialised("random", sources)[0]
    assert same(partly, random) == MAP


# --- ratio network ------------------------------------------------------------------------------------------


def ratio(config: UNetConfig = CONFIG, seed: int = 0) -> RatioNetwork:
    with seeded(seed):
        return RatioNetwork(config)


def test_ratio_network_takes_encoder_and_noise_embedding_from_the_teacher(sources) -> None:
    network = ratio()
    origin = initialise_ratio(network, InitSpec("random", "teacher"), sources).origins()
    for name, tensor in network.state_dict().items():
        if name.startswith("head"):
            assert origin[name] == "random"
            assert torch.equal(tensor, ratio().state_dict()[name])
        else:
            assert origin[name] == "teacher"
            assert torch.equal(tensor, sources["teacher"][f"network.{name}"])
    assert sum(where == "teacher" for where in origin.values()) > 20


def test_random_ratio_network_stays_as_it_was_drawn(sources) -> None:
    network = ratio()
    origin = initialise_ratio(network, InitSpec("teacher", "random"), {}).origins()
    assert same(network.state_dict(), ratio().state_dict()) == set(network.state_dict())
    assert set(origin.values()) == {"random"}


# --- refusals -----------------------------------------------------------------------------------------------


NEEDY = sorted(set(INITIALISATIONS) - {"random", "random_no_zero"})


@pytest.mark.parametrize("init", NEEDY)
def test_a_missing_source_is_named(init: str) -> None:
    wanted = init if init in TRAINED else "teacher"
    with pytest.raises(FeatlensError, match=f"weights of '{wanted}', which were not given"):
        initialised(init, {})
    with pytest.raises(FeatlensError, match="no teacher was given"):
        initialise_ratio(ratio(), InitSpec("random", "teacher"), {})


@pytest.mark.parametrize("init", NEEDY)
@pytest.mark.parametrize(
    ("other", "named"),
    [
        (UNetConfig(channels=12, labels=3, augment_labels=9), "network.map_label.weight"),
        (UNetConfig(channels=8, augment_labels=9), "network.map_label.weight"),
        (UNetConfig(channels=8, labels=3, augment_labels=9, blocks=2), "network.dec.4x4_block1"),
    ],
)
def test_another_architecture_is_refused_with_the_tensor(init: str, other: UNetConfig, named: str) -> None:
    weights = build_denoiser(other, 0.5, 0).state_dict()
    sources = dict.fromkeys(TRAINED, weights)
    student = build_denoiser(CONFIG, 0.5, 0)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(FeatlensError, match="another architecture") as caught:
        initialise_student(student, InitSpec(init), sources, 0)
    assert named in str(caught.value)
    assert same(student.state_dict(), before) == set(before)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (UNetConfig(channels=12, labels=3, augment_labels=9), "map_label.weight"),
        (UNetConfig(channels=8, labels=3, augment_labels=9, channel_mult=(1,)), "enc.4x4_down"),
    ],
)
def test_ratio_network_refuses_a_teacher_of_another_architecture(other: UNetConfig, named: str) -> None:
    teacher = build_denoiser(other, 0.5, 0).state_dict()
    with pytest.raises(FeatlensError, match="another architecture") as caught:
        initialise_ratio(ratio(), InitSpec("random", "teacher"), {"teacher": teacher})
    assert named in str(caught.value)


def test_unknown_initialisations_get_the_nearest_match() -> None:
    with pytest.raises(UsageError, match="did you mean 'prior_only'"):
        InitSpec("prior_onyl")
    with pytest.raises(UsageError, match=r"ratio-network initialisation 'teacer'.*did you mean 'teacher'"):
        InitSpec("teacher", "teacer")


# --- map_regressed ------------------------------------------------------------------------------------------


def test_regression_brings_a_random_network_to_the_teachers_map_but_not_to_its_weights() -> None:
    class Teacher(nn.Module):
        """A smooth map of its own, nothing like a fresh network's."""

        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(1.5))

        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            return torch.tanh(self.gain * x.flip(3) / sigma[:, None, None, None]) - 0.3

    tiny = UNetConfig(4, channels=8, channel_mult=(1,), attention_resolutions=())
    config = RegressionConfig(images=32 * 80, batch=32, lr=8e-3, ramp_images=160, ema_half_life=200)
    training, teacher = start_teacher(build_denoiser(tiny, 0.5, 0), config), Teacher()
    z = torch.randn(200, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    wanted = OneStepGenerator(teacher, 2.5)(z).detach()

    def error() -> float:
        with torch.no_grad():
            return float((OneStepGenerator(training.networks["ema"], 2.5)(z) - wanted).square().mean())

    before = error()
    steps = list(regress_map(training, teacher, (1, 4, 4), 2.5, config, seed=0))
    assert error() < 0.2 * before
    assert len(steps) == 80
    assert training.images == config.images
    assert steps[-1].metrics["loss"] < 0.3 * steps[0].metrics["loss"]
    assert teacher.gain.grad is None
