"""Rules applied to any network, the manifest of what was done, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from featlens.errors import FeatlensError, UsageError
from featlens.weights import TAKES, Manifest, Rule, apply, recipes, select, sources_of, tensor_digest

Weights = dict[str, Tensor]


def network(seed: int, width: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {
            "encoder": nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width)),
            "decoder": nn.Sequential(nn.Conv2d(width, width, 3), nn.Linear(width, 1)),
        }
        return nn.ModuleDict(parts)


@pytest.fixture(scope="module")
def sources() -> dict[str, Weights]:
    return {"teacher": network(1).state_dict(), "other": network(2).state_dict()}


def same(first: Weights, second: Weights) -> set[str]:
    return {name for name in first if torch.equal(first[name], second[name])}


# --- which rule counts --------------------------------------------------------------------------------------

matches = st.sampled_from(
    ["**", "encoder", "decoder.*", "**.bias", "role:conv", "role:decoder+!conv", "re:.*0.weight"]
)
rules = st.builds(
    lambda match, take: Rule(
        match, take, 0.5 if take == "interpolate" else None, "other" if take == "copy" else None
    ),
    matches,
    st.sampled_from(TAKES),
)


@given(st.lists(rules, max_size=5))
@settings(max_examples=15, deadline=None)
def test_the_last_rule_that_matches_a_tensor_decides(rules: list[Rule]) -> None:
    held = {"teacher": network(1).state_dict(), "other": network(2).state_dict()}
    made = network(0)
    manifest = apply(made, rules, held)
    for name in made.state_dict():
        last = next((rule for rule in reversed(rules) if name in select(made, rule.match)), None)
        alone = network(0)
        # The same tensor as if that rule were the only one, and for it alone.
        apply(alone, [Rule(name, last.take, last.amount, last.source)] if last else [], held)
        assert torch.equal(made.state_dict()[name], alone.state_dict()[name]), name
        assert manifest.tensors[name].rule == (last.match if last else None)
    manifest.verify(made)


def test_what_no_rule_names_stays_as_it_was_or_comes_from_the_teacher(sources) -> None:
    made = network(0)
    apply(made, [Rule("decoder", "teacher")], sources)
    kept = {name for name in made.state_dict() if name.startswith("encoder")}
    fresh = network(0).state_dict()
    assert all(torch.equal(made.state_dict()[name], fresh[name]) for name in kept)
    other = network(0)
    apply(other, [Rule("decoder", "random")], sources, default="teacher")
    assert same(other.state_dict(), fresh) - kept == set(fresh) - kept
    assert all(torch.equal(other.state_dict()[name], sources["teacher"][name]) for name in kept)
    with pytest.raises(UsageError, match=r"unknown default 'teachr'.*did you mean 'teacher'"):
        apply(network(0), [], sources, default="teachr")


@pytest.mark.parametrize("take", ["permuted", "moments", "spectrum", "no_zero"])
def test_a_rule_on_one_tensor_never_changes_another(take: str, sources) -> None:
    def made(*rules: Rule) -> Weights:
        student = network(0)
        with torch.no_grad():
            student["decoder"][0].weight.mul_(1e-5)
        apply(student, rules, sources, seed=3)
        return student.state_dict()

    alone = made(Rule("decoder.0.weight", take))
    beside = made(Rule("**", take), Rule("encoder", "teacher"))
    assert torch.equal(alone["decoder.0.weight"], beside["decoder.0.weight"])
    assert not torch.equal(alone["decoder.0.weight"], network(0).state_dict()["decoder.0.weight"])


# --- what each take does ------------------------------------------------------------------------------------


def test_takes_do_what_their_recipes_do(sources) -> None:
    name, fresh, teacher = "decoder.0.weight", network(0).state_dict(), sources["teacher"]
    expected = {
        "teacher": teacher[name],
        "copy": sources["other"][name],
        "random": fresh[name],
        "permuted": recipes.permuted(teacher[name], recipes.stream(5, "permute", name)),
        "moments": recipes.moments(teacher[name], recipes.stream(5, "moments", name)),
        "spectrum": recipes.spectrum(teacher[name], recipes.stream(5, "spectrum", name)),
        "interpolate": 0.75 * fresh[name] + 0.25 * teacher[name],
        "no_zero": fresh[name],
    }
    assert set(expected) == set(TAKES)
    for take, wanted in expected.items():
        made = network(0)
        amount, source = (0.25 if take == "interpolate" else None), ("other" if take == "copy" else None)
        apply(made, [Rule(name, take, amount, source)], sources, seed=5)
        assert torch.allclose(made.state_dict()[name], wanted, atol=1e-7), take
        assert same(made.state_dict(), fresh) >= set(fresh) - {name}


def test_no_zero_draws_weights_that_start_near_zero_and_no_others() -> None:
    made = network(0)
    with torch.no_grad():
        made["decoder"][0].weight.zero_()
        made["decoder"][0].bias.zero_()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    manifest = apply(made, [Rule("**", "no_zero")], seed=1)
    assert same(made.state_dict(), before) == set(before) - {"decoder.0.weight"}
    assert float(made["decoder"][0].weight.detach().std()) == pytest.approx((2 / (9 * 8)) ** 0.5, rel=0.2)
    assert manifest.counts() == {"random": len(before) - 1, "random, not near zero": 1}


def test_sources_are_found_with_or_without_what_wraps_them(sources) -> None:
    bare, wrapped = network(0), nn.ModuleDict({"network": network(0)})
    there = {"teacher": {f"module.network.{name}": t for name, t in sources["teacher"].items()}}
    for student, given_ones in ((bare, there), (wrapped, sources), (wrapped, there)):
        apply(student, [Rule("encoder.*.weight", "teacher")], given_ones)
        held = {name.removeprefix("network."): tensor for name, tensor in student.state_dict().items()}
        assert torch.equal(held["encoder.0.weight"], sources["teacher"]["encoder.0.weight"])


def test_values_are_cast_and_counts_are_taken_over(sources) -> None:
    teacher = network(1)
    teacher["encoder"][1].num_batches_tracked.fill_(7)
    half = {name: t.bfloat16() if t.is_floating_point() else t for name, t in teacher.state_dict().items()}
    made = network(0)
    apply(made, [Rule("**", "moments"), Rule("encoder.0", "teacher")], {"teacher": half})
    assert made["encoder"][0].weight.dtype == torch.float32
    assert torch.equal(made["encoder"][0].weight, half["encoder.0.weight"].float())
    assert int(made["encoder"][1].num_batches_tracked) == 7


# --- the manifest -------------------------------------------------------------------------------------------


def test_the_manifest_says_rule_source_and_digests_and_goes_through_json(sources) -> None:
    made = network(0)
    rules = [Rule("encoder", "teacher"), Rule("role:decoder+conv", "interpolate", 0.5, "other")]
    manifest = apply(made, rules, sources, seed=9)
    entry, mixed = manifest.tensors["encoder.0.weight"], manifest.tensors["decoder.0.weight"]
    assert entry.origin == entry.source == "teacher" and entry.rule == "encoder"
    # A tensor that was taken over as it is has one digest, whatever it is called.
    assert entry.digest == entry.source_digest == tensor_digest(sources["teacher"]["encoder.0.weight"])
    assert mixed.origin == "other, interpolated 0.5" and mixed.source == "other"
    assert mixed.source_digest == tensor_digest(sources["other"]["decoder.0.weight"]) != mixed.digest
    rest = manifest.tensors["decoder.1.bias"]
    assert (rest.origin, rest.rule, rest.source, rest.source_digest) == ("random", None, None, None)
    assert manifest.counts() == {"teacher": 7, "other, interpolated 0.5": 2, "random": 2}
    assert manifest.origins()["decoder.1.bias"] == "random"
    again = Manifest.from_dict(json.loads(json.dumps(manifest.to_dict())))
    assert again == manifest and again.seed == 9
    again.verify(made)


def test_digests_tell_shape_dtype_and_every_value_apart() -> None:
    held = torch.arange(6, dtype=torch.float32)
    others = [held.reshape(2, 3), held.double(), held.flip(0), held + 1e-6 * (held == 5), held[:5]]
    assert len({tensor_digest(one) for one in [held, *others]}) == 6
    assert tensor_digest(held.reshape(2, 3).T.contiguous().T) == tensor_digest(held.reshape(2, 3))
    assert tensor_digest(torch.zeros(())) != tensor_digest(torch.zeros(1))


def test_a_network_that_changed_is_not_the_one_of_the_manifest(sources) -> None:
    made = network(0)
    manifest = apply(made, [Rule("encoder", "teacher")], sources)
    with torch.no_grad():
        made["decoder"][1].bias.add_(1e-3)
    with pytest.raises(FeatlensError, match=r"1 tensors differ, first decoder.1.bias has other values"):
        manifest.verify(made)
    made["more"] = nn.Linear(1, 1)
    with pytest.raises(FeatlensError, match=r"3 tensors differ, first more.weight is not described"):
        manifest.verify(made)
    with pytest.raises(FeatlensError, match=r"encoder.0.weight is missing"):
        manifest.verify(nn.Linear(1, 1))


@pytest.mark.parametrize(
    "mapping",
    [
        {},
        {"seed": 0, "tensors": []},
        {"seed": 0, "tensors": {"a": {"origin": "random"}}},
        {"seed": 0, "tensors": {"a": {"origin": "random", "digest": 3}}},
        {"seed": 0, "tensors": {"a": {"origin": "random", "digest": "0", "more": "x"}}},
    ],
)
def test_a_damaged_manifest_is_refused(mapping) -> None:
    with pytest.raises(FeatlensError, match="manifest"):
        Manifest.from_dict(mapping)


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("a", "teachr"), "unknown take 'teachr': did you mean 'teacher'"),
        (("", "teacher"), "a rule matches ''"),
        (("role:decodr", "teacher"), "unknown role 'decodr'"),
        (("re:[", "teacher"), "no regular expression"),
        (("a", "copy"), "needs a source"),
        (("a", "random", None, "x"), "reads no source, got source = 'x'"),
        (("a", "teacher", None, "x"), "reads no source"),
        (("a", "teacher", 0.5), "amount = 0.5 belongs to take = 'interpolate'"),
        (("a", "interpolate"), "from 0 to 1, got None"),
        (("a", "interpolate", 1.5), "from 0 to 1, got 1.5"),
        (("a", "interpolate", float("nan")), "from 0 to 1, got nan"),
    ],
)
def test_impossible_rules_are_refused_when_they_are_made(rule: tuple, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Rule(*rule)


def test_what_does_not_fit_is_refused_and_nothing_is_changed(sources) -> None:
    whole = [Rule("**", "teacher")]
    broken = {**sources["teacher"], "decoder.1.bias": torch.tensor([float("nan")])}
    lacking = {name: t for name, t in sources["teacher"].items() if name != "decoder.0.weight"}
    cases = [
        (
            [Rule("encodr", "teacher")],
            sources,
            "no tensor of the network ModuleDict matches 'encodr'.*'encoder'",
        ),
        (whole, {}, "weights of 'teacher', which were not given"),
        ([Rule("**", "copy", source="runs/x")], sources, "weights of 'runs/x', which were not given"),
        (
            whole,
            {"teacher": network(1, 6).state_dict()},
            r"'encoder.0.weight' of shape \(4, 1, 3, 3\), got \(6,",
        ),
        (whole, {"teacher": lacking}, "they hold no 'decoder.0.weight'"),
        (whole, {"teacher": broken}, "'decoder.1.bias' that are not finite"),
    ]
    for rules, given_ones, message in cases:
        made = network(0)
        with pytest.raises(FeatlensError, match=message):
            apply(made, [Rule("encoder.*.bias", "random"), *rules], given_ones)
        assert same(made.state_dict(), network(0).state_dict()) == set(made.state_dict())


def test_only_the_tensors_that_are_taken_have_to_fit() -> None:
    source = network(1, 6).state_dict()
    source["decoder.1.bias"] = torch.tensor([4.0])
    made = network(0)
    apply(
        made,
        [Rule("**", "teacher"), Rule("re:.*(0|weight|mean|var|encoder.*bias|tracked).*", "random")],
        {"teacher": source},
    )
    assert float(made["decoder"][1].bias.detach()) == 4.0


def test_one_shared_tensor_has_one_rule(sources) -> None:
    shared = nn.Linear(2, 2)
    tied = nn.ModuleDict({"first": shared, "second": shared})
    given_ones = {"teacher": {name: torch.ones_like(t) for name, t in tied.state_dict().items()}}
    with pytest.raises(UsageError, match=r"'first.weight' and 'second.weight' are one shared tensor"):
        apply(tied, [Rule("first", "teacher")], given_ones)
    apply(tied, [Rule("*.weight", "teacher")], given_ones)
    assert torch.equal(shared.weight, torch.ones(2, 2))


def test_sources_of_rules() -> None:
    rules = [
        Rule("a", "random"),
        Rule("b", "moments"),
        Rule("c", "copy", source="runs/x"),
        Rule("d", "no_zero"),
    ]
    assert sources_of(rules) == {"teacher", "runs/x"}
