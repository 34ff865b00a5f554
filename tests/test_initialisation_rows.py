"""Every row of the table of initialisations on small networks, tensor by tensor, and a user's own rules."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError, UsageError
from featlens.weights import Rule, recipes, roles
from featlens_trainers import (
    ADMConfig,
    DiTConfig,
    InitSpec,
    RatioConfig,
    UNetConfig,
    build_denoiser,
    build_ratio,
    initialise_ratio,
    initialise_student,
)
from featlens_trainers.config import from_mapping, to_mapping
from featlens_trainers.initialisation import load_source, seeded
from featlens_trainers.settings import INITIALISATIONS, NamedInit, parse_init
from featlens_trainers.settings.initialisation import TRAINED, rules_of
from featlens_trainers.snapshots import save_denoiser

CONFIGS = {
    "unet": UNetConfig(channels=8, labels=3, augment_labels=9),
    "adm": ADMConfig(
        resolution=8,
        in_channels=1,
        out_channels=1,
        channels=8,
        channel_mult=(1, 1),
        blocks=1,
        attention_resolutions=(4,),
        labels=3,
        channels_per_head=8,
    ),
    "dit": DiTConfig(width=16, depth=4, heads=2, labels=3),
}
UNET = CONFIGS["unet"]
Weights = dict[str, Tensor]

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def trained(seed: int, kind: str = "unet") -> EDMDenoiser:
    """Denoiser without any special initial value left, such as zero biases."""
    denoiser = build_denoiser(CONFIGS[kind], 0.5, seed)
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=numbers)
    return denoiser


@pytest.fixture(scope="module")
def sources() -> dict[str, dict[str, Weights]]:
    return {
        kind: {name: trained(seed, kind).state_dict() for seed, name in enumerate(TRAINED, start=100)}
        for kind in CONFIGS
    }


def initialised(spec: InitSpec | str, sources, kind: str = "unet") -> tuple[Weights, dict[str, str]]:
    student = build_denoiser(CONFIGS[kind], 0.5, 0)
    wanted = InitSpec(spec) if isinstance(spec, str) else spec
    given = {name: sources[kind][name] for name in wanted.sources()}
    manifest = initialise_student(student, wanted, given, 7)
    manifest.verify(student)
    return student.state_dict(), manifest.origins()


PARTS = {
    "encoder_only": lambda has: bool(has & {"encoder", "noise_embedding"}),
    "decoder_only": lambda has: "decoder" in has,
    "depth:0": lambda has: "depth=0" in has,
    "depth:2": lambda has: "depth=2" in has,
    "block:1": lambda has: "block=1" in has,
    "type:conv": lambda has: "conv" in has,
    "type:attention": lambda has: "attention" in has,
    "type:embedding": lambda has: "embedding" in has,
    "features_only": lambda has: (
        not has & {"in", "noise_embedding"} and not ("out" in has and "norm" not in has)
    ),
}
UNET_PARTS = {
    "type:norm": lambda has: "norm" in has,
    "resolution:8": lambda has: "resolution=8" in has,
    "resolution:4": lambda has: "resolution=4" in has,
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_parts_of_the_teacher_are_that_part_and_the_rest_is_random(kind: str, sources) -> None:
    fresh, teacher = build_denoiser(CONFIGS[kind], 0.5, 0), sources[kind]["teacher"]
    known, random = roles(fresh), fresh.state_dict()
    for name, belongs in {**PARTS, **(UNET_PARTS if kind != "dit" else {})}.items():
        weights, origin = initialised(name, sources, kind)
        taken = {tensor for tensor, has in known.items() if belongs(has)}
        assert 0 < len(taken) < len(known), name
        for tensor, value in weights.items():
            assert torch.equal(value, teacher[tensor] if tensor in taken else random[tensor]), (name, tensor)
            assert origin[tensor] == ("teacher" if tensor in taken else "random")


@pytest.mark.parametrize("kind", CONFIGS)
def test_priors_keep_their_statistic_of_every_tensor_and_no_value_in_its_place(kind: str, sources) -> None:
    teacher = sources[kind]["teacher"]
    moments, _ = initialised("moments", sources, kind)
    spectrum, origin = initialised("spectrum", sources, kind)
    assert set(origin.values()) == {"teacher, spectrum"}
    for name, held in teacher.items():
        assert float(moments[name].mean()) == pytest.approx(float(held.mean()), abs=1e-5)
        assert float(moments[name].std(correction=0)) == pytest.approx(
            float(held.std(correction=0)), abs=1e-5
        )
        matrix = [one.flatten(1) if one.ndim > 1 else one[:, None] for one in (spectrum[name], held)]
        values = [torch.linalg.svdvals(one.double()) for one in matrix]
        assert torch.allclose(values[0], values[1], atol=1e-4), name
        if held.numel() > 1:
            assert not torch.equal(moments[name], held) and not torch.equal(spectrum[name], held)


@pytest.mark.parametrize(
    ("kind", "small"), [("unet", ("conv1", "proj", "aux_conv")), ("dit", ("affine", "linear"))]
)
def test_random_no_zero_draws_only_the_layers_that_start_as_nothing(kind: str, small, sources) -> None:
    weights, origin = initialised("random_no_zero", sources, kind)
    fresh = build_denoiser(CONFIGS[kind], 0.5, 0).state_dict()
    drawn = {name for name in fresh if not torch.equal(weights[name], fresh[name])}
    ends = {name for name in fresh if name.endswith(".weight") and name.split(".")[-2].endswith(small)}
    if kind == "dit":
        assert all("affine" in name or "dec.out" in name for name in drawn)
    else:
        assert drawn == ends
    assert drawn == {name for name, said in origin.items() if said == "random, not near zero"} != set()
    assert not any(recipes.near_zero(value) for name, value in weights.items() if name.endswith("weight"))


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_classifiers_body_comes_without_its_untrained_output_layers(kind: str, sources) -> None:
    weights, origin = initialised("classifier_body", sources, kind)
    fresh = build_denoiser(CONFIGS[kind], 0.5, 0)
    for name, has in roles(fresh).items():
        wanted = fresh.state_dict() if "out" in has else sources[kind]["classifier_body"]
        assert torch.equal(weights[name], wanted[name])
        assert origin[name] == ("random" if "out" in has else "classifier_body")


@pytest.mark.parametrize("name", INITIALISATIONS)
@pytest.mark.parametrize("kind", ["adm", "dit"])
def test_every_row_builds_on_every_backbone_and_gives_finite_images(kind: str, name: str, sources) -> None:
    student = build_denoiser(CONFIGS[kind], 0.5, 0)
    initialise_student(student, InitSpec(name), sources[kind], 0)
    with torch.no_grad():
        assert torch.isfinite(student(torch.randn(2, 1, 8, 8), torch.full((2,), 2.5))).all()


def test_specifications_say_which_networks_they_need() -> None:
    assert InitSpec("random", "random").sources() == InitSpec("random_no_zero").sources() == set()
    assert InitSpec("random", "teacher").sources() == {"teacher"}
    for name in TRAINED:
        assert InitSpec(name).sources() == {name}
    for name in set(INITIALISATIONS) - set(TRAINED) - {"random", "random_no_zero"}:
        assert InitSpec(name).sources() == {"teacher"}
    rules = (Rule("role:norm", "copy", source="runs/x"),)
    assert InitSpec("single_sigma", rules=rules).sources() == {"single_sigma", "runs/x"}
    assert InitSpec("random", ratio_rules=rules).sources() == {"runs/x"}


# --- names and rules of a user's own ------------------------------------------------------------------------


def test_rules_of_a_user_refine_a_named_start(sources) -> None:
    spec = InitSpec("teacher", rules=(Rule("role:decoder", "random"), Rule("dec.*_in?.**", "moments")))
    weights, origin = initialised(spec, sources)
    fresh, teacher = build_denoiser(UNET, 0.5, 0).state_dict(), sources["unet"]["teacher"]
    for name, value in weights.items():
        if not name.startswith("network.dec."):
            assert torch.equal(value, teacher[name])
        elif "_in0." not in name and "_in1." not in name:
            assert torch.equal(value, fresh[name])
        else:
            assert origin[name] == "teacher, moments"
    with pytest.raises(
        UsageError, match="has the role 'resolution=32': choose from resolution=4, resolution=8"
    ):
        initialised("resolution:32", sources)


def test_named_initialisations_of_a_user() -> None:
    norms = (Rule("role:norm", "teacher"),)
    custom = [
        NamedInit("norms", norms),
        NamedInit("all_but_norms", (Rule("role:norm", "random"),), "teacher"),
    ]
    assert parse_init("norms", custom) == InitSpec("random", "random", norms)
    assert parse_init("all_but_norms", custom, "norms").ratio_rules == norms
    assert parse_init("all_but_norms", custom).student == "teacher"
    assert parse_init("resolution:16", custom, "teacher") == InitSpec("resolution:16", "teacher")
    with pytest.raises(UsageError, match="unknown initialisation 'norm': did you mean 'norms'"):
        parse_init("norm", custom)
    with pytest.raises(UsageError, match="two initialisations are called 'norms'"):
        parse_init("norms", [custom[0], custom[0]])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decoder_onyl", "did you mean 'decoder_only'"),
        ("type:cnov", "'type:cnov': did you mean 'conv'"),
        ("depth:x", "'depth:x': expected a whole number"),
        ("resolution:", "expected a whole number"),
        ("layer:3", "unknown initialisation 'layer:3'"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rules_of(name)
    with pytest.raises(UsageError, match=message):
        parse_init(name, [NamedInit("mine", (Rule("**", "random"),))])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Mine", (Rule("**", "random"),)), "lower-case letters"),
        (("a/b", (Rule("**", "random"),)), "lower-case letters"),
        (("teacher", (Rule("**", "random"),)), "exists already"),
        (("mine",), "has no rules"),
        (("mine", (Rule("**", "random"),), "techer"), "unknown initialisation 'techer'"),
    ],
)
def test_impossible_named_initialisations(arguments: tuple, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NamedInit(*arguments)


def test_a_snapshot_is_a_source_under_its_path(tmp_path, sources) -> None:
    folder = tmp_path / "run"
    for images, seed in ((64, 5), (128, 6)):
        path = folder / "snapshots" / f"img-{images:08d}" / "ema.safetensors"
        path.parent.mkdir(parents=True)
        save_denoiser(path, trained(seed))
    spec = InitSpec("random", rules=(Rule("role:encoder", "copy", source=str(folder)),))
    student = build_denoiser(UNET, 0.5, 0)
    manifest = initialise_student(student, spec, {name: load_source(name) for name in spec.sources()}, 0)
    newest = trained(6).state_dict()
    for name, entry in manifest.tensors.items():
        if name.startswith("network.enc."):
            assert entry.source == str(folder) and torch.equal(student.state_dict()[name], newest[name])
    assert load_source(str(path)).keys() == newest.keys()
    with pytest.raises(
        FeatlensError, match=r"no source 'techer': expected the folder.*did you mean 'teacher'"
    ):
        load_source("techer")


# --- ratio networks -----------------------------------------------------------------------------------------


def ratio(backbone: str = "unet", form: str = "encoder", width: float = 1.0):
    with seeded(0):
        return build_ratio(CONFIGS[backbone], RatioConfig(form, width), 0.5)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("form", ["encoder", "fake_score"])
def test_a_ratio_network_of_any_form_starts_from_the_teacher_but_for_its_head(
    kind: str, form: str, sources
) -> None:
    network = ratio(kind, form)
    manifest = initialise_ratio(network, InitSpec("random", "teacher"), sources[kind])
    manifest.verify(network)
    fresh, wrap = ratio(kind, form).state_dict(), "network." if form == "encoder" else ""
    for name, value in network.state_dict().items():
        if name.startswith("head"):
            assert torch.equal(value, fresh[name])
        else:
            assert torch.equal(value, sources[kind]["teacher"][wrap + name.removeprefix("denoiser.")])
    assert set(manifest.counts()) == {"teacher", "random"}


def test_a_ratio_network_follows_the_same_rules(sources) -> None:
    fresh, teacher = ratio().state_dict(), sources["unet"]["teacher"]
    network = ratio()
    spec = InitSpec("random", "random", ratio_rules=(Rule("role:conv+resolution=8", "teacher"),))
    initialise_ratio(network, spec, sources["unet"])
    for name, value in network.state_dict().items():
        taken = ("8x8" in name and ".conv" in name) or "8x8_conv" in name
        assert torch.equal(value, teacher[f"network.{name}"] if taken else fresh[name]), name
    network = ratio()
    origin = initialise_ratio(network, InitSpec("random", "prior_only"), sources["unet"], seed=2).origins()
    assert {origin[name] for name in fresh if name.startswith("head")} == {"random"}
    assert origin["enc.8x8_conv.weight"] == "teacher, permuted"
    for name in ("features_only", "classifier_body"):
        made = initialise_ratio(ratio(), InitSpec("random", name), sources["unet"]).origins()
        assert made["enc.8x8_block0.conv0.weight"] == ("teacher" if name == "features_only" else name)
    with pytest.raises(UsageError, match="no tensor of the network RatioNetwork has the role 'decoder'"):
        initialise_ratio(ratio(), InitSpec("random", "decoder_only"), sources["unet"])


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_light_ratio_network_refuses_the_teacher_in_one_line(kind: str, sources) -> None:
    light = ratio(kind, width=0.5)
    before = {name: value.clone() for name, value in light.state_dict().items()}
    with pytest.raises(FeatlensError, match="of another width cannot start from 'teacher'") as caught:
        initialise_ratio(light, InitSpec("random", "teacher"), sources[kind])
    assert "\n" not in str(caught.value) and "width 1" in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in light.state_dict().items())
    initialise_ratio(light, InitSpec("teacher", "random"), {})


# --- TOML ---------------------------------------------------------------------------------------------------


def test_specifications_go_through_toml() -> None:
    text = """
    student = "features_only"
    ratio = "random"

    [[rules]]
    match = "role:decoder+norm"
    take = "interpolate"
    amount = 1

    [[rules]]
    match = "enc.**"
    take = "copy"
    source = "runs/x"
    """
    spec = from_mapping(InitSpec, tomllib.loads(text))
    rules = (Rule("role:decoder+norm", "interpolate", 1.0), Rule("enc.**", "copy", source="runs/x"))
    assert spec == InitSpec("features_only", "random", rules)
    assert from_mapping(InitSpec, to_mapping(spec)) == spec
    with pytest.raises(UsageError, match=r"unknown key 'rules\[0\].tak'.*did you mean 'take'"):
        from_mapping(InitSpec, {"rules": [{"match": "**", "tak": "random"}]})
    custom = from_mapping(NamedInit, {"name": "mine", "rules": [{"match": "**", "take": "moments"}]})
    assert custom == NamedInit("mine", (Rule("**", "moments"),))
