"""What every measure declares holds, whatever it does not declare does not, and no input makes one go astray.

Generated from :data:`featlens.measures.MEASURES`; what a measure cannot do stands in one of the tables below,
with the reason.
"""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featlens.measures
from featlens.errors import UsageError
from featlens.measures import MEASURES, resolve
from featlens.measures.declare import INVARIANCES

ROOT = Path(__file__).parent.parent
NAMES = sorted(MEASURES)
SEEDS = st.integers(0, 2**32 - 1)

WIDE_IS_NAN = dict.fromkeys(
    ("mean_cca", "mean_squared_cca", "pwcca", "subspace_overlap", "svcca"),
    "a span of n - 1 dimensions is everything, and contains any other whatever the data",
)
"""Undefined for d >> n, and at the smallest n for more than one feature."""
FOLDS = {
    "linear_predictivity": "the folds belong to row positions: another order of the samples, other folds"
}
ITSELF_FREE = {"linear_predictivity": "held-out samples are predicted well from themselves, not perfectly"}
COUNTS = dict.fromkeys(
    ("rsa", "mutual_knn", "jaccard_knn", "cknna"), "a rounding error may swap two ranks or two neighbours"
)


def orthogonal(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def related(rng, n, d1, d2):
    """Two feature sets that share a signal, with features of unequal scales."""
    x = rng.normal(size=(n, d1)) * np.geomspace(0.5, 2, d1)
    y = x @ rng.normal(size=(d1, d2)) + 1.5 * d1**0.5 * rng.normal(size=(n, d2))
    return x, y * np.geomspace(0.5, 2, d2)


TRANSFORMATIONS = {
    "shift": lambda rng, x: x + 3 * rng.normal(size=x.shape[1]),
    "scale": lambda rng, x: x * 10 ** rng.uniform(-3, 3),
    "permutation": lambda rng, x: x[:, rng.permutation(x.shape[1])],
    "orthogonal": lambda rng, x: x @ orthogonal(rng, x.shape[1]),
    "feature_scale": lambda rng, x: x * 10 ** rng.uniform(-1, 1, size=x.shape[1]),
    "linear": lambda rng, x: (
        x
        @ orthogonal(rng, x.shape[1])
        @ (np.geomspace(1, 10, x.shape[1])[:, None] * orthogonal(rng, x.shape[1]))
    ),
}
DECLARED = [(name, kind) for name in NAMES for kind in INVARIANCES if kind in MEASURES[name].invariances]
UNDECLARED = [
    (name, kind) for name in NAMES for kind in INVARIANCES if kind not in MEASURES[name].invariances
]


def changed(rng, kind, x, y):
    """The pair with one side, the other, or both transformed."""
    transform = TRANSFORMATIONS[kind]
    return [(transform(rng, x), y), (x, transform(rng, y)), (transform(rng, x), transform(rng, y))]


def in_range(name, value):
    return MEASURES[name].low - 1e-9 <= value <= MEASURES[name].high + 1e-9


def test_transformations_are_those_that_can_be_declared():
    assert set(TRANSFORMATIONS) == set(INVARIANCES)


def test_tables_of_exceptions_name_measures():
    assert (WIDE_IS_NAN | FOLDS | ITSELF_FREE | COUNTS).keys() <= set(NAMES)


@pytest.mark.parametrize(("name", "kind"), DECLARED)
@settings(max_examples=6)
@given(seed=SEEDS)
def test_declared_invariances_hold_on_either_side(name, kind, seed):
    rng, f = np.random.default_rng(seed), MEASURES[name].function
    x, y = related(rng, 30, int(rng.integers(3, 8)), int(rng.integers(3, 8)))
    expected = f(x, y)
    assert math.isfinite(expected)
    for a, b in changed(rng, kind, x, y):
        assert f(a, b) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("name", "kind"), UNDECLARED)
def test_undeclared_invariances_do_not_hold(name, kind):
    rng, f = np.random.default_rng(5), MEASURES[name].function
    differences = []
    for _ in range(5):
        x, y = related(rng, 30, 5, 6)
        expected = f(x, y)
        differences += [abs(f(a, b) - expected) for a, b in changed(rng, kind, x, y)]
    assert max(differences) > 1e-3


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10)
@given(seed=SEEDS)
def test_range_and_symmetry_are_as_declared(name, seed):
    rng, f = np.random.default_rng(seed), MEASURES[name].function
    x, y = related(rng, 25, int(rng.integers(3, 9)), int(rng.integers(3, 9)))
    value = f(x, y)
    assert isinstance(value, float)
    assert in_range(name, value)
    assert in_range(name, f(x, -x)), "opposite features"
    assert in_range(name, f(x, rng.normal(size=(25, 4)))), "unrelated features"
    if MEASURES[name].symmetric:
        assert f(y, x) == pytest.approx(value, abs=1e-10)


@pytest.mark.parametrize("name", [name for name in NAMES if not MEASURES[name].symmetric])
def test_asymmetry_is_as_declared(rng, name):
    f = MEASURES[name].function
    pairs = [related(rng, 30, 4, 6) for _ in range(5)]
    assert max(abs(f(x, y) - f(y, x)) for x, y in pairs) > 1e-3


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6)
@given(seed=SEEDS)
def test_a_side_with_itself_gives_the_declared_value(name, seed):
    rng, measure = np.random.default_rng(seed), MEASURES[name]
    x = related(rng, 30, int(rng.integers(3, 9)), 3)[0]
    assert math.isnan(measure.itself) == (name in ITSELF_FREE)
    if name in ITSELF_FREE:
        assert measure.function(x, x) == pytest.approx(1, abs=0.01)
    else:
        assert measure.function(x, x) == pytest.approx(measure.itself, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_noise_makes_a_similarity_smaller_and_a_distance_larger(rng, name):
    f, measure = MEASURES[name].function, MEASURES[name]
    x, noise = (rng.normal(size=(60, 5)) for _ in range(2))
    values = [f(x, x + level * noise) for level in (0.1, 0.5, 2.0, 20.0)]
    assert values == sorted(values, reverse=measure.direction == "similarity")
    assert abs(values[0] - values[-1]) > 0.2


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_samples_does_not_matter_but_their_pairing_does(rng, name):
    f = MEASURES[name].function
    x = rng.normal(size=(40, 5))
    y = x + 0.1 * rng.normal(size=(40, 5))
    order = rng.permutation(40)
    assert f(x[order], y[order]) == pytest.approx(f(x, y), abs=0.05 if name in FOLDS else 1e-9)
    assert abs(f(x, y[order]) - f(x, y)) > 0.2


@pytest.mark.parametrize("name", NAMES)
def test_permuted_states_are_states_of_permuted_features(rng, name):
    bound = resolve(name)
    method = bound.method
    for x, y in (related(rng, 30, 5, 6), related(rng, 30, 6, 3)):
        order = rng.permutation(30)
        a, b = method.prepare(x.copy()), method.prepare(y.copy())
        f = bound.measure.function
        assert method.combine(a, b) == pytest.approx(f(x, y), abs=1e-12)
        assert method.combine(a, method.permute(b, order)) == pytest.approx(f(x, y[order]), abs=1e-9)
        assert method.combine(method.permute(a, order), b) == pytest.approx(f(x[order], y), abs=1e-9)
        assert method.combine(a, b) == pytest.approx(f(x, y), abs=1e-12), "the states were changed"


@pytest.mark.parametrize("name", NAMES)
def test_torch_tensors_give_what_numpy_gives(rng, name):
    torch = pytest.importorskip("torch")
    f = MEASURES[name].function
    for x, y in (related(rng, 30, 5, 6), related(rng, 30, 7, 2)):
        value = f(torch.tensor(x), torch.tensor(y))
        assert isinstance(value, float)
        assert value == pytest.approx(f(x, y), abs=1e-10)
    constant = torch.ones(30, 3, dtype=torch.float64)
    assert math.isnan(f(constant, torch.tensor(y))) and math.isnan(f(torch.tensor(x), constant))


@pytest.mark.parametrize("name", NAMES)
def test_permuted_states_of_torch_tensors(rng, name):
    torch = pytest.importorskip("torch")
    method, f = resolve(name).method, MEASURES[name].function
    x, y = related(rng, 30, 5, 6)
    order = rng.permutation(30)
    states = [method.prepare(torch.tensor(side)) for side in (x, y)]
    assert method.combine(states[0], method.permute(states[1], order)) == pytest.approx(
        f(x, y[order]), abs=1e-9
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_float32_features_agree_with_float64(rng, name, kind):
    f = MEASURES[name].function
    x, y = related(rng, 60, 6, 5)
    narrow = [side.astype(np.float32) for side in (x, y)]
    if kind == "torch":
        narrow = [pytest.importorskip("torch").tensor(side) for side in narrow]
    assert f(*narrow) == pytest.approx(f(x, y), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_mean_a_hundred_times_the_spread_in_float32(rng, name):
    f = MEASURES[name].function
    x, y = (side + 100 * side.std() for side in related(rng, 60, 6, 5))
    value = f(*(side.astype(np.float32) for side in (x, y)))
    assert value == pytest.approx(f(x, y), abs=0.02 if name in COUNTS else 1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-150, 1e-12, 1e12, 1e150])
def test_tiny_and_huge_scales_do_not_matter(rng, name, scale):
    f = MEASURES[name].function
    x, y = related(rng, 30, 5, 6)
    if "scale" in MEASURES[name].invariances:
        assert f(scale * x, y) == pytest.approx(f(x, y), abs=1e-9)
        assert f(x, scale * y) == pytest.approx(f(x, y), abs=1e-9)
        assert f(scale * x, y / scale) == pytest.approx(f(x, y), abs=1e-9)
    if "feature_scale" in MEASURES[name].invariances:
        assert f(x * scale ** np.linspace(0, 1, 5), y) == pytest.approx(f(x, y), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_far_more_features_than_samples(rng, name):
    f = MEASURES[name].function
    x, y = related(rng, 30, 600, 400)
    assert math.isfinite(f(x, y)) == (name not in WIDE_IS_NAN)
    assert math.isfinite(f(x, y[:, :5])) == (name not in WIDE_IS_NAN)
    assert name in WIDE_IS_NAN or in_range(name, f(x, y))


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_number_of_samples_is_enough_and_one_less_is_refused(rng, name):
    measure = MEASURES[name]
    least = resolve(name).least
    assert least == measure.least
    d = 1 if name in WIDE_IS_NAN else 5
    values = [measure.function(rng.normal(size=(least, d)), rng.normal(size=(least, d))) for _ in range(20)]
    assert all(in_range(name, value) for value in values)
    assert np.ptp(values) > 1e-3, "the value depends on the data"
    with pytest.raises(UsageError, match=rf"at least {least} samples"):
        measure.function(rng.normal(size=(least - 1, d)), rng.normal(size=(least - 1, d)))


@pytest.mark.parametrize("name", NAMES)
def test_constant_features_beside_real_ones(rng, name):
    f = MEASURES[name].function
    x, y = related(rng, 30, 5, 6)
    for padded in (np.hstack([x, np.full((30, 2), 0.1)]), np.hstack([np.zeros((30, 1)), x])):
        assert in_range(name, f(padded, y)) and in_range(name, f(y, padded))
        # Without invariance to shifts a constant is a feature of the samples as good as others.
        if "shift" in MEASURES[name].invariances:
            assert f(padded, y) == pytest.approx(f(x, y), abs=1e-9)
            assert f(y, padded) == pytest.approx(f(y, x), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_duplicated_features(rng, name):
    f = MEASURES[name].function
    x, y = related(rng, 30, 5, 6)
    twice = np.hstack([x, x])
    assert in_range(name, f(twice, y)) and in_range(name, f(y, twice)) and in_range(name, f(twice, twice))
    if {"shift", "scale", "orthogonal"} <= MEASURES[name].invariances:
        # [x, x] is sqrt(2) times a rotation of [x, 0].
        assert f(twice, y) == pytest.approx(f(x, y), abs=1e-9)
        assert f(y, twice) == pytest.approx(f(y, x), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e9 / 3])
def test_a_side_without_variation_has_no_value(rng, name, value):
    f = MEASURES[name].function
    constant, y = np.full((30, 5), value), rng.normal(size=(30, 4))
    assert math.isnan(f(constant, y)) and math.isnan(f(y, constant)) and math.isnan(f(constant, constant))


@pytest.mark.parametrize("name", NAMES)
def test_features_are_left_as_they_were(rng, name):
    x, y = related(rng, 30, 5, 6)
    before = x.copy(), y.copy()
    MEASURES[name].function(x, y)
    assert np.array_equal(x, before[0]) and np.array_equal(y, before[1])


BAD = np.where(np.arange(120).reshape(30, 4) == 29, np.nan, 1.0)
GOOD = np.arange(120.0).reshape(30, 4) ** 2 % 17


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (BAD, GOOD, r"row 7 of x holds NaN or infinity"),
        (GOOD, BAD * np.inf, r"row 0 of y holds NaN or infinity \(30 such rows\)"),
        (GOOD, GOOD[:-1], "x has 30 rows and y 29; row i of both must be the features of the same sample"),
        (GOOD[:, 0], GOOD, r"x must be \(n, d\) with d > 0, got shape \(30,\)"),
        (GOOD, GOOD[:, :0], r"y must be \(n, d\) with d > 0, got shape \(30, 0\)"),
        (GOOD[:0], GOOD, r"at least \d+ samples"),
        (
            GOOD.tolist(),
            GOOD,
            "expected numpy arrays or torch tensors, all of one kind, got list and ndarray",
        ),
        (GOOD, np.full((30, 4), "a"), "y must hold real numbers"),
    ],
)
def test_wrong_features_are_refused_in_one_line(name, x, y, message):
    with pytest.raises(UsageError, match=message) as caught:
        MEASURES[name].function(x, y)
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_options_are_refused_by_name(name):
    measure = MEASURES[name]
    for option, value in itertools.product(measure.options, ["zzz", -1, math.nan, True, [1]]):
        with pytest.raises(UsageError, match=rf"^{name}: .*\b{option}\b") as caught:
            measure.function(GOOD, GOOD, **{option: value})
        assert repr(value) in str(caught.value)
    with pytest.raises(UsageError, match=f"{name} has no option 'zzz'"):
        resolve(f"{name}(zzz=1)")


@pytest.mark.parametrize("name", NAMES)
def test_defaults_of_function_and_method_are_the_same(rng, name):
    measure = MEASURES[name]
    x, y = related(rng, 30, 5, 6)
    method = measure.method()
    assert method.combine(method.prepare(x), method.prepare(y)) == measure.function(x, y)
    assert resolve(name).name == name
    assert resolve(name).options == measure.options


@pytest.mark.parametrize("name", NAMES)
def test_declarations_are_complete_and_documented(name):
    measure = MEASURES[name]
    assert measure.direction in ("similarity", "distance")
    assert measure.low < measure.high
    for told in (measure.title, measure.cost, measure.reference, measure.blind):
        assert told.strip() == told != ""
    assert re.search(r"\d{4}", measure.reference), "a year or an arXiv id"
    assert name in featlens.measures.__all__
    assert getattr(featlens.measures, name) is measure.function
    page = (ROOT / "docs" / "notes" / f"{measure.family}.md").read_text(encoding="utf-8")
    assert name in page
    if measure.function.__module__ == f"featlens.measures.{name}":
        # Of a module and a function of one name the page would show the module, without members.
        assert f"::: featlens.measures.{name}.{name}\n" in api_page()
    else:
        listed = re.search(r"::: featlens\.measures\n.*?members: \[(.*?)\]", api_page(), flags=re.DOTALL)
        assert listed and name in re.findall(r"\w+", listed[1])
    assert f"notes/{measure.family}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    docstring = measure.function.__doc__ or ""
    assert f"Direction: {measure.direction}" in docstring
    assert all(word in docstring for word in ("Range:", "nvarian", "References", "Examples", "NaN"))


def api_page():
    return (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_warnings_say_how_many_samples_there_are(name):
    warning = getattr(resolve(name).method, "warning", None)
    if warning is None:
        assert name not in WIDE_IS_NAN, "what is undefined for d >> n must say so"
        return
    assert warning(100_000, 8, 8) is None
    assert "50 samples" in warning(50, 900, 700)
