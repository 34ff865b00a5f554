"""Gram tiles against kernel matrices made one distance at a time."""

from __future__ import annotations

import numpy as np
import pytest

from featlens import compare
from featlens.comparison.entries import Entries, entries_of
from featlens.comparison.forms import Kernel, form_of
from featlens.comparison.jackknife import Sums, values
from featlens.comparison.tiles import accumulate, tile_size
from featlens.errors import FeatlensError, UsageError
from featlens.measures.declare import resolve
from tests.engine_helpers import (
    FORMS,
    KINDS,
    WIDTH,
    brute,
    cosine,
    features,
    groups,
    kernel,
    precise,
    rows_of,
)

MEASURES = (
    "cka",
    "cka(estimator=biased)",
    "cka(kernel=rbf)",
    "cka(kernel=rbf,estimator=biased)",
    "cka(kernel=rbf,bandwidth=40)",
    "distance_correlation",
    "distance_correlation(estimator=biased)",
    "rsa(distance=euclidean,comparison=pearson)",
)


def from_tiles(form, *models, pairs=None, **told):
    """(A, B) values of each pair of models, all sites in one pass."""
    rows = rows_of(*models, **told)
    where = groups(*models)
    chosen = [(where[i], where[j]) for i, j in (pairs or [(0, 1)])]
    widths = [WIDTH / scale for scale in rows.scales]
    moments = accumulate(rows, chosen, [form.kernel], [widths])[0]
    sums = Sums(form, moments, rows.dtype)
    return [values(sums, index, pair) for index, pair in enumerate(chosen)]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("size", [7, 16, 41, 64])
def test_values_do_not_depend_on_the_size_of_tiles(form, size):
    a, b = features(41)
    found = from_tiles(form, a, b, size=size)[0]
    np.testing.assert_allclose(found, brute(a, b, form), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS[::2], ids=str)
def test_several_pairs_of_models_share_one_pass(form):
    models = features(30, ((3, 9), (6,), (4, 2, 11)))
    pairs = [(0, 1), (2, 0), (1, 1)]
    for (i, j), found in zip(pairs, from_tiles(form, *models, pairs=pairs), strict=True):
        np.testing.assert_allclose(found, brute(models[i], models[j], form), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_that_are_not_kept_are_read_again(kind, dtype):
    a, b = features(41)
    for form in (form for form in FORMS if form.kernel.kind == kind):
        kept, read = (from_tiles(form, a, b, dtype=dtype, memory=memory)[0] for memory in (1e9, 1e3))
        np.testing.assert_allclose(read, kept, rtol=0, atol=1e-6 if dtype == "float32" else 1e-13)


def test_several_kernels_share_one_pass():
    a, b = features(33)
    rows, (left, right) = rows_of(a, b), groups(a, b)
    kernels = [Kernel("distance"), Kernel("linear"), Kernel("rbf", 0.5), Kernel("rbf", 2.0)]
    widths = [[WIDTH] * 5, [1.0] * 5, [2.0] * 5, [WIDTH] * 5]
    found = accumulate(rows, [(left, right)], kernels, widths)
    for moments, each, width in zip(found, kernels, (WIDTH, WIDTH, 2.0, WIDTH), strict=True):
        form = next(form for form in FORMS if form.kernel.kind == each.kind)
        np.testing.assert_allclose(
            values(Sums(form, moments, "float64"), 0, (left, right)),
            brute(a, b, form, width),
            rtol=0,
            atol=1e-12,
        )


@pytest.mark.parametrize("kind", ["rbf", "distance"])
@pytest.mark.parametrize("width", [0.3, 3.0, 100.0])
def test_entries_are_those_of_the_kernel_less_a_constant(kind, width):
    x = features(20)[0]["a1"]
    x = x - x.mean(axis=0)
    norms = (x * x).sum(axis=1)
    entries = entries_of(Kernel(kind), width, norms)
    found = entries.tile(x @ x.T, norms[:, None], norms[None, :], np)
    np.fill_diagonal(found, entries.diagonal)
    truth = kernel(x, kind, width)
    # One constant apart; a wide Gaussian also by a common factor, which is 1 up to FLAT.
    apart = found - truth
    scale = 1.0 if kind == "distance" or width < 10 else np.exp(norms.mean() / width**2)
    np.testing.assert_allclose(found - scale * truth, (found - scale * truth)[0, 1], atol=1e-12)
    if kind == "distance" or width > 10:
        assert abs(found.mean()) < 0.1 * abs(apart[0, 1])


def test_distances_of_equal_rows_are_zero():
    rng = np.random.default_rng(0)
    for dtype in ("float32", "float64"):
        x = np.repeat(rng.normal(size=(5, 60)), 4, axis=0)
        x = (x - x.mean(axis=0)).astype(dtype)
        norms = (x.astype("f8") ** 2).sum(axis=1)
        entries = Entries(Kernel("distance"), 1.0, 0.0)
        found = entries.tile(x @ x.T, norms[:, None].astype(dtype), norms[None, :].astype(dtype), np)
        assert found.dtype == dtype
        equal = np.kron(np.eye(5), np.ones((4, 4))) > 0
        assert (found[equal] == 0).all()
        assert (found[~equal] > 1).all()


def hard_cases():
    """Features on which other packages go wrong."""
    n = 60
    a, b = features(n)
    bits = np.random.default_rng(0)
    return {
        "plain": (a, b),
        "mean 100 times the spread": tuple({k: x + 100 * np.sqrt(10) for k, x in s.items()} for s in (a, b)),
        "tiny": tuple({k: x * 1e-30 for k, x in s.items()} for s in (a, b)),
        "large": tuple({k: x * 1e30 for k, x in s.items()} for s in (a, b)),
        "constant features": ({k: np.hstack([x, np.full((n, 3), 0.1)]) for k, x in a.items()}, b),
        "equal features": ({k: np.hstack([x, x, x]) for k, x in a.items()}, b),
        "equal rows": tuple({k: np.tile(x[:15], (4, 1)) for k, x in s.items()} for s in (a, b)),
        "few numbers": (
            {f"a{d}": (bits.random((n, d)) < 0.3) * 1.0 for d in (2, 5, 40)},
            {f"b{d}": (bits.random((n, d)) < 0.3) * 1.0 for d in (3, 6)},
        ),
        "wide": tuple(features(20, ((1500,), (1200,)))),
        "an outlier": tuple({k: np.vstack([x[:-1], 1e3 * x[-1:]]) for k, x in s.items()} for s in (a, b)),
        "n 4": tuple(features(4)),
        "n 5": tuple(features(5)),
        "n 6": tuple(features(6)),
    }


CASES = hard_cases()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("given", ["float32", "float64"])
@pytest.mark.parametrize("made", ["float32", "float64"])
def test_hard_cases_are_as_the_functions_say(monkeypatch, case, given, made):
    precise(monkeypatch, made)
    a, b = ({site: x.astype(given) for site, x in side.items()} for side in CASES[case])
    result = compare({"a": a, "b": b}, MEASURES, plan="tiles", permutations=0, intervals=False)
    for name, measure in zip(MEASURES, result.measures, strict=True):
        bound = resolve(name)
        truth = [[bound.measure.function(x, y, **bound.options) for y in b.values()] for x in a.values()]
        exact = {"an outlier": 1e-6}.get(case, 1e-11)
        np.testing.assert_allclose(
            result.panel(measure).arrays["value"][0],
            truth,
            rtol=0,
            atol=exact if made == "float64" else 1e-5,
            err_msg=name,
        )


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_float64_of_extreme_scale(monkeypatch, scale):
    a, b = ({site: x * scale for site, x in side.items()} for side in features(40))
    truth = compare(dict(zip("ab", features(40), strict=True)), MEASURES, permutations=0, intervals=False)
    for made in ("float32", "float64"):
        precise(monkeypatch, made)
        found = compare({"a": a, "b": b}, MEASURES, permutations=0, intervals=False, plan="tiles")
        for name in truth.measures:
            np.testing.assert_allclose(
                found.panel(name).arrays["value"],
                truth.panel(name).arrays["value"],
                rtol=0,
                atol=1e-12 if made == "float64" else 1e-5,
            )


@pytest.mark.parametrize("made", ["float32", "float64"])
@pytest.mark.parametrize("n", [50, 300])
def test_sites_without_self_similarity_are_undefined(monkeypatch, made, n):
    precise(monkeypatch, made)
    a = {
        "flat": np.full((n, 3), 0.1),
        "one-hot": np.eye(n),
        "one-hot elsewhere": 7.3 * np.eye(n)[::-1] + 5,
        "simplex": np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0],
        "fine": np.random.default_rng(1).normal(size=(n, 4)),
    }
    result = compare({"a": a, "b": {"fine": a["fine"]}}, MEASURES, plan="tiles", permutations=5)
    for name in MEASURES:
        panel = result.panel(name)
        form = form_of(resolve(name))
        undefined = [True, *[form.formula != "biased"] * 3, False]
        for quantity in ("value", "ci_low", "ci_high", "p", "p_family", "q", "null"):
            assert np.isnan(panel.arrays[quantity][0, :, 0]).tolist() == undefined, (name, quantity)
        for site, nothing in enumerate(undefined):
            assert any("undefined" in told for told in panel.remarks_of(0, site, 0)) == nothing
        assert panel.arrays["value"][0, 4, 0] == pytest.approx(1, abs=1e-5 if made == "float32" else 1e-12)


def test_a_few_samples_far_from_all_others_are_computed_again_in_float64(monkeypatch):
    precise(monkeypatch, "float32")
    a, b = ({site: np.vstack([x[:-1], 1e4 * x[-1:]]) for site, x in s.items()} for s in features(300))
    result = compare({"a": a, "b": b}, ["cka", "distance_correlation"], plan="tiles", permutations=400)
    for name, form in (("cka", FORMS[0]), ("distance_correlation", FORMS[5])):
        found = result.panel(name).arrays
        np.testing.assert_allclose(found["value"][0], brute(a, b, form), rtol=0, atol=1e-6)
        assert not np.isnan(found["p"]).any()
        assert (found["ci_low"] < found["ci_high"]).all()


@pytest.mark.parametrize("name", ["cka", "cka(kernel=rbf)", "distance_correlation", "rsa", "procrustes"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 3, 537])
def test_features_that_are_not_finite_are_named(name, bad, row):
    n = 600 if row > 500 else 30
    if row > 500 and name not in ("cka", "cka(kernel=rbf)"):
        pytest.skip("reads the whole site at once")
    models = {key: {"s": np.random.default_rng(0).normal(size=(2, n, 4))} for key in "ab"}
    models["b"]["t"] = models["b"]["s"].astype("f4")
    models["b"]["t"][1, row, 2] = bad
    with pytest.raises(
        FeatlensError, match=rf"row {row} of site 't' of 'b' at sigma 2\.5 holds NaN or inf"
    ) as e:
        compare(models, name, sigmas=(0.5, 2.5), plan="auto" if name != "cka" else "tiles", permutations=0)
    assert "\n" not in str(e.value)


def test_opposite_infinities_and_huge_sums_are_told_apart():
    x = np.random.default_rng(0).normal(size=(20, 4))
    x[3, 1], x[4, 1] = np.inf, -np.inf
    with pytest.raises(UsageError, match=r"row 3 of site 's' of 'a'.*2 such rows"):
        compare({"a": {"s": x}, "b": {"s": x[:, 2:]}}, plan="tiles", permutations=0)
    large = np.random.default_rng(0).normal(size=(400, 4)).astype("f4") * np.float32(5e37)
    result = compare({"a": {"s": large}, "b": {"s": large / 1e37}}, plan="tiles", permutations=0)
    assert result.cells()[0]["value"] == pytest.approx(1, abs=1e-6)


def test_tiles_shrink_with_the_number_of_sites():
    assert tile_size(10_000, 24, 1e9) == 384
    assert tile_size(100, 24, 1e9) == 100
    assert tile_size(10_000, 10_000, 16e6) == 16
    size = tile_size(10_000, 400, 64e6)
    assert 4 * 400 * size**2 <= 64e6 / 8


def test_what_is_fixed_by_hand_is_found():
    # Two clusters against themselves and against an unrelated split: 1 and, debiased, -1 / 3 for n = 4.
    k, m = (np.array([[1.0], [1.0], [-1.0], [-1.0]]), np.array([[1.0], [-1.0], [1.0], [-1.0]]))
    found = from_tiles(FORMS[0], {"k": k}, {"k": k, "m": m}, size=3)[0]
    np.testing.assert_allclose(found, [[1.0, cosine(k @ k.T, m @ m.T, "debiased")]], atol=1e-14)
    assert found[0, 1] == pytest.approx(-0.5)
