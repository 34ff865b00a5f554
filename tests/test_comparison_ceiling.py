"""The noise ceiling from other draws of the noise, by hand; and what is no other draw."""

from __future__ import annotations

import numpy as np
import pytest

from featlens import compare
from featlens.errors import FeatlensError, StoreError, UsageError
from featlens.measures import cka, procrustes, rsa
from featlens.store import FeatureWriter, SiteInfo

SIGMAS = (2.5, 0.1)


def noisy(n=50, levels=2, seed=0, noise=1.0, widths=(4, 6)):
    """A model and another draw: the same signal, other noise."""
    rng = np.random.default_rng(seed)
    signals = {f"s{width}": rng.normal(size=(levels, n, width)) for width in widths}
    return tuple(
        {site: signal + noise * rng.normal(size=signal.shape) for site, signal in signals.items()}
        for _ in range(2)
    )


def ceiling(result, **which):
    return result.panel(**which).arrays["ceiling"]


@pytest.mark.parametrize(("name", "function"), [("cka", cka), ("rsa", rsa)])
@pytest.mark.parametrize("way", ["auto", "tiles", "features"])
def test_it_is_the_root_of_the_product_of_reliabilities(name, function, way):
    if (name, way) == ("rsa", "features"):
        pytest.skip("cannot be streamed")
    (a, other_a), (b, other_b) = noisy(seed=0), noisy(seed=1, noise=0.5, widths=(3,))
    result = compare(
        {"a": a, "b": b},
        name,
        sigmas=SIGMAS,
        draws={"a": other_a, "b": other_b},
        plan=way,
        permutations=0,
        intervals=False,
    )
    found = ceiling(result)
    for level in range(2):
        for i, site in enumerate(a):
            left = function(a[site][level], other_a[site][level])
            right = function(b["s3"][level], other_b["s3"][level])
            assert found[level, i, 0] == pytest.approx((left * right) ** 0.5, abs=1e-9)
    assert result.provenance["draws"] == ["a", "b"]


def test_a_model_without_another_draw_counts_as_one():
    (a, other), (b, _) = noisy(seed=0), noisy(seed=1)
    for models in ({"a": a, "b": b}, {"b": b, "a": a}):
        found = ceiling(compare(models, sigmas=SIGMAS, draws={"a": other}, permutations=0))
        expected = [[cka(a[site][level], other[site][level]) ** 0.5 for site in a] for level in range(2)]
        found = found if next(iter(models)) == "a" else found.transpose(0, 2, 1)
        np.testing.assert_allclose(found, np.repeat(np.array(expected)[:, :, None], 2, axis=2), atol=1e-12)


def test_pairs_without_any_other_draw_have_none():
    (a, other), (b, _), (c, _) = noisy(seed=0), noisy(seed=1), noisy(seed=2)
    result = compare({"a": a, "b": b, "c": c}, sigmas=SIGMAS, draws={"a": other}, permutations=0)
    assert np.isnan(ceiling(result, a="b", b="c")).all()
    assert not np.isnan(ceiling(result, a="a", b="c")).any()
    assert np.isnan(ceiling(compare({"a": a, "b": b}, sigmas=SIGMAS, permutations=0))).all()


def test_each_side_has_its_own_noise_level():
    (a, other_a), (b, other_b) = noisy(seed=0), noisy(seed=1, widths=(3,))
    result = compare(
        {"a": a, "b": b},
        sigmas=SIGMAS,
        cross_sigmas=True,
        draws={"a": other_a, "b": other_b},
        permutations=0,
    )
    found = ceiling(result)
    for number, (low, high) in enumerate(result.levels):
        left = cka(a["s4"][SIGMAS.index(low)], other_a["s4"][SIGMAS.index(low)])
        right = cka(b["s3"][SIGMAS.index(high)], other_b["s3"][SIGMAS.index(high)])
        assert found[number, 0, 0] == pytest.approx((left * right) ** 0.5, abs=1e-12)


def test_distances_have_none():
    (a, other), (b, _) = noisy(seed=0), noisy(seed=1)
    result = compare({"a": a, "b": b}, "procrustes", sigmas=SIGMAS, draws={"a": other}, permutations=0)
    assert np.isnan(ceiling(result)).all()
    assert result.panel().arrays["value"][0, 0, 0] == pytest.approx(procrustes(a["s4"][0], b["s4"][0]))


def test_a_reliability_below_zero_has_no_root():
    (a, _), (b, _) = noisy(n=12, seed=0), noisy(n=12, seed=1)
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        other = {site: rng.normal(size=array.shape) for site, array in a.items()}
        top = ceiling(compare({"a": a, "b": b}, sigmas=SIGMAS, draws={"a": other}, permutations=0))
        own = [[cka(a[site][level], other[site][level]) for site in a] for level in range(2)]
        assert (np.isnan(top[:, :, 0]) == (np.array(own) <= 0)).all()
        found += int(np.isnan(top).any())
    assert found


def test_the_same_subset_of_both_draws_is_used():
    (a, other), (b, _) = noisy(seed=0), noisy(seed=1)
    from featlens.seeds import derive

    result = compare({"a": a, "b": b}, sigmas=SIGMAS, n=30, draws={"a": other}, permutations=0)
    rows = np.sort(np.random.default_rng(derive(0, "subset")).permutation(50)[:30])
    expected = cka(a["s4"][0][rows], other["s4"][0][rows]) ** 0.5
    assert ceiling(result)[0, 0, 0] == pytest.approx(expected, abs=1e-12)


def test_only_the_sites_that_are_compared_need_to_be_there():
    (a, other), (b, _) = noisy(seed=0), noisy(seed=1)
    some = {"s4": other["s4"]}
    result = compare({"a": a, "b": b}, sites="s4", sigmas=SIGMAS, draws={"a": some}, permutations=0)
    assert ceiling(result).shape == (2, 1, 1)


@pytest.fixture
def write(tmp_path):
    """Writes a feature file of noise level 0.5 unless told otherwise."""

    def run(name, seed=0, sigmas=(0.5,), ids=None, sites=("s",), **manifest):
        told = {"sample_digest": f"d{seed}", "sample_set": "made", "weights_digest": "w", "noise_seed": seed}
        ids = np.arange(40) if ids is None else ids
        path = tmp_path / f"{name}.h5"
        signal = np.random.default_rng(99).normal(size=(len(ids), 4))
        rng = np.random.default_rng(seed)
        infos = [SiteInfo(site, order, 4) for order, site in enumerate(sites)]
        with FeatureWriter.create(path, infos, sigmas, ids, told | manifest) as writer:
            for index in range(len(sigmas)):
                rows = {site: signal + rng.normal(size=signal.shape) for site in sites}
                writer.append(index, {site: array.astype("f4") for site, array in rows.items()})
        return path

    return run


def test_files_of_the_same_images_and_other_noise(write):
    from featlens import FeatureStore

    models = {"a": write("a"), "b": write("b", weights_digest="v")}
    other = write("c", seed=1)
    result = compare(models, draws={"a": other}, permutations=0)
    with FeatureStore(models["a"]) as one, FeatureStore(other) as two:
        truth = cka(one.read("s", 0.5), two.read("s", 0.5)) ** 0.5
    assert ceiling(result)[0, 0, 0] == pytest.approx(truth, abs=1e-12)


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        ({}, StoreError, r"c\.h5 holds the same noise as .*a\.h5; another draw needs another --seed"),
        (
            {"seed": 1, "ids": np.arange(40) + 3},
            StoreError,
            r"c\.h5 holds other samples than .*a\.h5; .*--seed",
        ),
        ({"seed": 1, "sample_set": "x"}, StoreError, r"c\.h5 holds other samples than"),
        ({"seed": 1, "weights_digest": "x"}, StoreError, r"c\.h5 comes from other weights than .*a\.h5"),
        ({"seed": 1, "ids": np.arange(30)}, UsageError, "'a' has 40 samples, its other draw 30"),
        ({"seed": 1, "sites": ("t",)}, UsageError, "the other draw of 'a' has no site 's' of the same width"),
        ({"seed": 1, "sigmas": (0.7,)}, UsageError, r"the other draw of 'a' has no sigma 0\.5"),
    ],
)
def test_what_is_no_other_draw_is_refused_before_anything_is_compared(write, told, error, message):
    models = {"a": write("a"), "b": write("b", weights_digest="v")}
    steps = []
    with pytest.raises(error, match=message) as e:
        compare(models, draws={"a": write("c", **told)}, progress=lambda *step: steps.append(step))
    assert "\n" not in str(e.value)
    assert not any(done for done, _ in steps)


def test_samples_may_be_said_to_correspond(write):
    models = {"a": write("a"), "b": write("b", weights_digest="v")}
    other = write("c", seed=1, weights_digest="x")
    result = compare(models, draws={"a": other}, allow_other_samples=True, permutations=0)
    assert ceiling(result)[0, 0, 0] > 0


def test_unknown_models_and_sources_are_refused(write):
    models = {"teacher": write("a"), "b": write("b")}
    with pytest.raises(UsageError, match="draws are given for 'techer': did you mean 'teacher'"):
        compare(models, draws={"techer": models["b"]})
    with pytest.raises(FeatlensError, match="expected a feature file or"):
        compare(models, draws={"teacher": 3})
    with pytest.raises(FeatlensError, match=r"missing\.h5"):
        compare(models, draws={"teacher": "missing.h5"})
