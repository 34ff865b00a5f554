"""Streaming through features against textbook values and against tiles, in bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from featlens import compare
from featlens.comparison import engine, streaming
from featlens.comparison.device import open_device
from featlens.comparison.request import Handle
from featlens.comparison.streaming import stream
from featlens.errors import UsageError
from featlens.measures import cka
from tests.engine_helpers import FORMS, Made, brute, errors_of, features, groups, handles, precise, values
from tests.test_comparison_tiles import CASES

NAMES = ("cka", "cka(estimator=biased)")


def streamed(a, b, formula="debiased", dtype="float64", **told):
    sites = handles(a, b)
    return stream(sites, groups(a, b), [formula], len(sites[0].side), dtype, open_device("cpu"), **told)[0]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(streaming, "ROWS", 17)


@pytest.mark.parametrize("rows", [1, 7, 41, 100])
@pytest.mark.parametrize("form", FORMS[:2], ids=str)
def test_values_do_not_depend_on_the_size_of_blocks(monkeypatch, rows, form):
    monkeypatch.setattr(streaming, "ROWS", rows)
    a, b = features(41)
    found = streamed(a, b, form.formula)
    np.testing.assert_allclose(found.value, brute(a, b, form), rtol=0, atol=1e-12)
    assert np.isnan(found.error).all()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("given", ["float32", "float64"])
@pytest.mark.parametrize("made", ["float32", "float64"])
def test_streaming_and_tiles_agree(monkeypatch, small_blocks, case, given, made):
    precise(monkeypatch, made)
    a, b = ({site: x.astype(given) for site, x in side.items()} for side in CASES[case])
    ways = [
        compare({"a": a, "b": b}, NAMES, plan=plan, permutations=0, memory=4e9)
        for plan in ("tiles", "features")
    ]
    exact = 1e-8 if case == "an outlier" else 1e-10
    for name in ways[0].measures:
        found = [way.panel(name).arrays for way in ways]
        truth = [
            [cka(x, y, estimator="biased" if "biased" in name else "debiased") for y in b.values()]
            for x in a.values()
        ]
        for arrays in found:
            atol = exact if made == "float64" else 1e-5
            np.testing.assert_allclose(arrays["value"][0], truth, rtol=0, atol=atol)
        # Without the outlier a millionth of a millionth of the self-similarity is left.
        for end in ("ci_low", "ci_high") if case != "an outlier" else ():
            atol = 1e-9 if made == "float64" else 1e-4
            np.testing.assert_allclose(found[0][end], found[1][end], rtol=0, atol=atol)


@pytest.mark.parametrize("made", ["float32", "float64"])
@pytest.mark.parametrize("n", [50, 300])
def test_sites_without_self_similarity_are_undefined(monkeypatch, small_blocks, made, n):
    precise(monkeypatch, made)
    a = {
        "flat": np.full((n, 3), 0.1),
        "one-hot": np.eye(n),
        "one-hot elsewhere": 7.3 * np.eye(n)[::-1] + 5,
        "simplex": np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0],
        "fine": np.random.default_rng(1).normal(size=(n, 4)),
    }
    result = compare({"a": a, "b": {"fine": a["fine"]}}, NAMES, plan="features", permutations=0)
    undefined = np.isnan(result.panel("cka").arrays["value"][0, :, 0]).tolist()
    assert undefined == [True, True, True, True, False]
    biased = np.isnan(result.panel(NAMES[1]).arrays["value"][0, :, 0]).tolist()
    assert biased == [True, False, False, False, False]


@pytest.mark.parametrize("start", [0.0, 1e-30, 1e-12, 1e12, 1e25])
@pytest.mark.parametrize("made", ["float32", "float64"])
def test_first_rows_out_of_proportion_to_the_rest(monkeypatch, start, made):
    precise(monkeypatch, made)
    a, b = (
        {site: np.vstack([start * x[:1024], x[1024:]]) for site, x in side.items()}
        for side in features(1300, ((4,), (3, 6)))
    )
    found, tiles = (compare({"a": a, "b": b}, plan=way, permutations=0) for way in ("features", "tiles"))
    truth = [[cka(x, y) for y in b.values()] for x in a.values()]
    np.testing.assert_allclose(values(found)[0], truth, rtol=0, atol=1e-11 if made == "float64" else 2e-6)
    np.testing.assert_allclose(errors_of(found), errors_of(tiles), rtol=1e-9 if made == "float64" else 1e-4)


def test_zeros_and_then_tiny_numbers(monkeypatch):
    precise(monkeypatch, "float32")
    x = np.random.default_rng(0).normal(size=(1300, 5)).astype("f4") * np.float32(1e-30)
    x[:1100] = 0
    found = values(compare({"a": {"s": x}, "b": {"s": x[:, ::-1]}}, plan="features", permutations=0))
    assert found[0, 0, 0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("scale", [1e200, 1e-200])
@pytest.mark.parametrize("made", ["float32", "float64"])
def test_float64_of_extreme_scale(monkeypatch, scale, made):
    precise(monkeypatch, made)
    plain = features(40)
    a, b = ({site: x * scale for site, x in side.items()} for side in plain)
    found = compare({"a": a, "b": b}, plan="features", permutations=0)
    exact = 1e-11 if made == "float64" else 1e-5
    np.testing.assert_allclose(values(found)[0], brute(*plain, FORMS[0]), rtol=0, atol=exact)


def test_a_few_samples_far_from_all_others_are_computed_again_in_float64(monkeypatch):
    precise(monkeypatch, "float32")
    a, b = ({site: np.vstack([x[:-1], 1e4 * x[-1:]]) for site, x in s.items()} for s in features(300))
    told = []
    result = compare(
        {"a": a, "b": b}, plan="features", permutations=0, progress=lambda *step: told.append(step)
    )
    np.testing.assert_allclose(values(result)[0], brute(a, b, FORMS[0]), rtol=0, atol=1e-6)
    assert told == sorted(told)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 1023, 1024, 2047, 2048, 2100])
def test_features_that_are_not_finite_are_named(bad, row):
    models = {key: {"s": np.random.default_rng(0).normal(size=(2, 2101, 2))} for key in "ab"}
    models["b"]["t"] = models["b"]["s"].astype("f4")
    models["b"]["t"][1, row, 1] = bad
    with pytest.raises(UsageError, match=rf"row {row} of site 't' of 'b' at sigma 2\.5 holds NaN") as e:
        compare(models, sigmas=(0.5, 2.5), plan="features", permutations=0)
    assert "\n" not in str(e.value)


def test_groups_of_sites_are_passed_one_after_another(monkeypatch):
    sides = features(40, ((5, 9, 4, 11), (6, 3, 8)))
    whole = compare(dict(zip("ab", sides, strict=True)), plan="features", permutations=0)
    passes = []

    def counted(sites, *rest):
        passes.append([handle.site for handle in sites])
        return stream(sites, *rest)

    monkeypatch.setattr(engine, "stream", counted)
    for groups_ in ([(2, 1)], [(1, 2), (3, 1)], [(1, 1)] * 12):
        cuts = [(slice(0, 2), slice(0, 3)), (slice(2, 4), slice(0, 3))]
        if len(groups_) == 2:
            cuts = [(slice(0, 4), slice(0, 1)), (slice(0, 4), slice(1, 3))]
        if len(groups_) == 12:
            cuts = [(slice(i, i + 1), slice(j, j + 1)) for i in range(4) for j in range(3)]
        monkeypatch.setattr(engine, "split_sites", lambda *sizes, cuts=cuts: cuts)
        passes.clear()
        told = []
        result = compare(
            dict(zip("ab", sides, strict=True)),
            plan="features",
            permutations=0,
            progress=lambda *step, told=told: told.append(step[0]),
        )
        assert len(passes) == len(cuts)
        np.testing.assert_allclose(values(result), values(whole), rtol=0, atol=1e-13)
        np.testing.assert_allclose(errors_of(result), errors_of(whole), rtol=0, atol=1e-12)
        assert told == sorted(told)
        assert told[-1] == 1000


def test_models_of_the_same_features_are_one():
    a = features(60)[0]
    found = values(compare({"a": a, "b": a}, plan="features", permutations=0))[0]
    np.testing.assert_allclose(found.diagonal(), 1, atol=1e-12)
    np.testing.assert_allclose(found, found.T, atol=1e-13)


def test_far_more_rows_than_fit_are_read_block_by_block():
    n, width = 200_000, 64

    def make(site, start, stop):
        rng = np.random.default_rng([start, len(site)])
        rows = rng.standard_normal((stop - start, width), dtype=np.float32)
        return rows + np.float32(30)

    sides = [Made(name, {"x": width, "yy": width}, n, make) for name in "ab"]
    sites = [Handle(side, site, 0.0) for side in sides for site in side.widths]
    tracemalloc.start()
    found = stream(sites, (slice(0, 2), slice(2, 4)), ["debiased"], n, "float32", open_device("cpu"))[0].value
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found.diagonal(), 1, atol=1e-5)
    assert abs(found[0, 1]) < 1e-3
    assert max(side.largest for side in sides) <= streaming.ROWS
    # 205 MB of features.
    assert peak < 10e6


def test_a_large_file_is_compared_in_a_fraction_of_its_size(tmp_path, make_store):
    n = 40_000
    for seed, name in enumerate("ab"):
        make_store(tmp_path / f"{name}.h5", {"s": 64, "t": 64}, n=n, seed=seed)
    tracemalloc.start()
    result = compare({name: tmp_path / f"{name}.h5" for name in "ab"}, permutations=0, memory=16e6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "feature" in result.panel().how["plan"]
    assert np.abs(values(result)).max() < 1e-3
    # 41 MB of features.
    assert peak < 16e6
