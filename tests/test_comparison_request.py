"""What a comparison may be asked for: every refusal in one line, and what is settled by default."""

from __future__ import annotations

import numpy as np
import pytest

from featlens import compare, plan_comparison
from featlens.errors import FeatlensError, SiteError, UsageError
from featlens.measures.declare import resolve

X = np.random.default_rng(0).normal(size=(60, 4))
PAIR = {"a": {"enc.conv": X, "dec.conv": X[:, :2]}, "b": {"enc.conv": X[::-1]}}


def refused(error, message, models=PAIR, **options):
    """Planning and comparing refuse alike, in one line, before anything is computed."""
    for function in (plan_comparison, compare):
        with pytest.raises(error, match=message) as e:
            function(models, **options)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"measure": "cak"}, UsageError, "unknown measure 'cak': did you mean 'cka'"),
        ({"measure": ["cka", "ras"]}, UsageError, "unknown measure 'ras': did you mean 'rsa'"),
        ({"measure": []}, UsageError, "no measure was chosen; give one, such as 'cka'"),
        ({"measure": "rsa(distnce=cosine)"}, UsageError, "no option 'distnce': did you mean 'distance'"),
        ({"measure": "rsa(distance=cosin)"}, UsageError, "'cosin'.*did you mean 'cosine'"),
        ({"measure": "cka(biased)"}, UsageError, r"expected NAME or NAME\(option=value"),
        ({"sites": "enc.cnov"}, SiteError, r"no site 'enc\.cnov' in 'a': did you mean 'enc\.conv'"),
        ({"sites": ["enc.*", "dec.*"]}, SiteError, r"no site .*'dec\.\*' in 'b'"),
        ({"sites": {"c": "enc.*"}}, UsageError, "sites are given for 'c': choose from a, b"),
        ({"sites": {"a": []}}, FeatlensError, "no site was asked for in 'a': choose from enc"),
        ({"permutations": 1.5}, UsageError, "permutations must be a whole number of at least 0, got 1.5"),
        ({"level": "0.9"}, UsageError, "level must be a number, got '0.9'"),
        ({"memory": "1GB"}, UsageError, "memory must be a number, got '1GB'"),
        ({"measure": None}, UsageError, "no measure was chosen"),
        ({"sigmas": "0.5"}, UsageError, "sigmas must be numbers such as"),
        ({"permutations": -1}, UsageError, "permutations must be a whole number of at least 0, got -1"),
        ({"resamples": -1}, UsageError, "resamples must be a whole number of at least 0, got -1"),
        ({"level": 1}, UsageError, "level must be between 0 and 1, got 1"),
        ({"level": 0.0}, UsageError, "level must be between 0 and 1, got 0"),
        ({"level": float("nan")}, UsageError, "level must be between 0 and 1, got nan"),
        ({"plan": "tile"}, UsageError, "unknown plan 'tile': did you mean 'tiles'"),
        ({"memory": 1e6}, UsageError, "memory must be at least 16e6 bytes, got 1000000"),
        ({"memory": float("nan")}, UsageError, "memory must be at least 16e6 bytes, got nan"),
        ({"memory": float("inf")}, UsageError, "memory must be at least 16e6 bytes, got inf"),
        ({"reference": "c"}, UsageError, "unknown reference 'c'"),
        ({"n": 0}, UsageError, "n must be a whole number of at least 1, got 0"),
        ({"n": 3}, UsageError, "cka needs at least 4 samples, there are 3"),
        (
            {"n": 11, "measure": "mutual_knn"},
            UsageError,
            "mutual_knn needs at least 12 samples, there are 11",
        ),
        ({"sigmas": []}, UsageError, "no noise level was chosen"),
    ],
)
def test_wrong_requests_are_one_line(options, error, message):
    refused(error, message, **options)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"a": PAIR["a"]}, r"expected two or more models .*, got 1: \['a'\]"),
        ({}, "expected two or more models .*, got 0"),
        ([X, X], "expected two or more models .*, got a list; give each a name"),
        ({"a": PAIR["a"], "b": 3}, "'b' is a int; expected a feature file or"),
        ({"a": PAIR["a"], "b": X}, "'b' is a ndarray; expected a feature file or"),
        ({"a": PAIR["a"], "b": {}}, "'b' has no sites"),
        ({"a": PAIR["a"], "b": {"x": np.ones(4)}}, r"site 'x' must be \(n, d\), got \(4,\)"),
        ({"a": PAIR["a"], "b": {"x": np.ones((4, 0))}}, r"site 'x' must be \(n, d\), got \(4, 0\)"),
        (
            {"a": PAIR["a"], "b": {"x": np.ones((2, 60, 3))}},
            "site 'x' has 2 noise levels, expected 1; pass sigmas=",
        ),
        ({"a": PAIR["a"], "b": {"x": X, "y": X[:9]}}, "sites of 'b' have different numbers of samples.*9"),
        ({"a": PAIR["a"], "b": {"x": X[:9]}}, "'a' has 60 samples, 'b' 9; row i of both must be"),
        ({"a": PAIR["a"], "b": {"x": X + 1j}}, "expected real numbers, got an array of complex128"),
        ({"a": PAIR["a"], "b": {"x": np.full((60, 2), "x")}}, "expected real numbers, got an array of <U1"),
    ],
)
def test_wrong_sources_are_one_line(models, message):
    refused(UsageError, message, models)


def test_missing_and_foreign_files_are_one_line(tmp_path):
    (tmp_path / "text.h5").write_text("hello")
    for path in (tmp_path / "missing.h5", tmp_path / "text.h5"):
        refused(FeatlensError, path.name, {"a": path, "b": PAIR["b"]})


def test_an_unfinished_file_is_refused(tmp_path, make_store):
    make_store(tmp_path / "a.h5", rows=0)
    refused(FeatlensError, r"a\.h5", {"a": tmp_path / "a.h5", "b": PAIR["b"]})


def test_other_kinds_of_arrays_are_taken():
    whole = {"s": X}
    truth = compare({"a": whole, "b": PAIR["b"]}, permutations=0).cells()[0]["value"]
    for array in (X.tolist(), X.astype(">f8"), X[::1], np.asfortranarray(X)):
        found = compare({"a": {"s": array}, "b": PAIR["b"]}, permutations=0).cells()[0]["value"]
        assert found == pytest.approx(truth, abs=1e-14)
    for kind in ("int8", "uint16", "bool", "float16"):
        array = (X > 0).astype(kind)
        found = compare({"a": {"s": array}, "b": {"s": array.astype(float)}}, permutations=0)
        assert found.cells()[0]["value"] == pytest.approx(1, abs=1e-12)


def test_tensors_are_taken_with_their_gradient():
    torch = pytest.importorskip("torch")
    found = []
    for kind in (torch.float64, torch.float32, torch.bfloat16):
        tensor = torch.tensor(X, dtype=kind, requires_grad=True)
        result = compare({"a": {"s": tensor}, "b": {"s": X}}, permutations=0)
        found.append(result.cells()[0]["value"])
    assert found[0] == pytest.approx(1, abs=1e-12)
    assert 1 - 1e-4 < found[2] < 1 - 1e-8 < found[1]


def test_only_common_noise_levels_are_compared_and_that_is_said(tmp_path, make_store):
    for name, sigmas in (("a", (0.1, 0.5, 2.5)), ("b", (2.5, 0.5, 9.0)), ("c", (7.0,))):
        make_store(tmp_path / f"{name}.h5", sigmas=sigmas)
    paths = {name: tmp_path / f"{name}.h5" for name in "ab"}
    result = compare(paths, permutations=0)
    assert result.levels == ((0.5, 0.5), (2.5, 2.5))
    assert result.warnings == (
        "only the common noise levels are compared, 0.5, 2.5 ('a' has 0.1, 0.5, 2.5; 'b' has 2.5, 0.5, 9)",
    )
    assert compare(paths, sigmas=[2.5], permutations=0).warnings == ()
    refused(
        UsageError,
        r"'a' has 0\.1, 0\.5, 2\.5; 'b' has 2\.5, 0\.5, 9\); not all that were asked for are in all of them",
        paths,
        sigmas=[0.5, 0.1],
    )
    refused(UsageError, "'c' has 7.*none is common", {"a": paths["a"], "c": tmp_path / "c.h5"})
    crossed = compare({**paths, "d": paths["b"]}, cross_sigmas=True, permutations=0)
    assert crossed.levels == ((0.5, 0.5), (0.5, 2.5), (2.5, 0.5), (2.5, 2.5))


def test_noise_levels_are_equal_up_to_a_text(tmp_path, make_store):
    for seed, (name, sigma) in enumerate((("a", 0.1), ("b", 0.1 * (1 + 1e-9)))):
        make_store(tmp_path / f"{name}.h5", sigmas=(sigma,), seed=seed)
    result = compare({name: tmp_path / f"{name}.h5" for name in "ab"}, permutations=0)
    assert len(result.levels) == 1


def test_noise_levels_asked_for_twice_are_there_once(tmp_path, make_store):
    make_store(tmp_path / "a.h5", sigmas=(0.1, 0.5))
    result = compare({"a": tmp_path / "a.h5", "b": tmp_path / "a.h5"}, sigmas=[0.5, 0.5, 0.1], permutations=0)
    assert result.levels == ((0.5, 0.5), (0.1, 0.1))


def test_files_of_other_inputs_are_refused(tmp_path):
    from featlens.store import FeatureWriter, SiteInfo

    for name, inputs in (("a", "noised"), ("b", "sampled")):
        manifest = {"sample_digest": "d", "sample_set": "made", "noise_seed": 0, "inputs": inputs}
        sites = [SiteInfo("s", 0, 4)]
        with FeatureWriter.create(tmp_path / f"{name}.h5", sites, (0.5,), np.arange(60), manifest) as writer:
            writer.append(0, {"s": X.astype("f4")})
    pair = {name: tmp_path / f"{name}.h5" for name in "ab"}
    refused(FeatlensError, "was extracted on noised inputs, .* on sampled ones", pair)


def test_bound_measures_and_names_may_be_mixed():
    plan = plan_comparison(PAIR, [resolve("cka"), "rsa", resolve("cka(estimator=biased)")])
    assert [choice.measure for choice in plan.choices] == ["cka", "rsa", "cka(estimator='biased')"]


def test_few_samples_are_said_to_be_few():
    notices = plan_comparison(PAIR, n=49).notices
    assert any(told.startswith("only 49 samples") for told in notices)
    assert not any(told.startswith("only") for told in plan_comparison(PAIR, n=50).notices)


def test_arguments_without_a_meaning_are_refused_by_python():
    with pytest.raises(TypeError, match="permutation"):
        plan_comparison(PAIR, permutation=3)
