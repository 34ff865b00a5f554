"""The planner: what it costs, what is taken and why, and what does not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from featlens import compare, plan_comparison
from featlens.comparison.plan import ANCHORS, NULL_ROWS, split_sites
from featlens.errors import UsageError
from tests.engine_helpers import features, values

GRID = [256, 512, 768, 1024] * 3


def models(n, *widths):
    """Models of any size that take no memory."""
    return {
        name: {f"s{i}": np.broadcast_to(np.zeros((1, 1)), (n, width)) for i, width in enumerate(sizes)}
        for name, sizes in zip("abcd", widths, strict=False)
    }


def chosen(rows, *widths, measure="cka", **options):
    return plan_comparison(models(rows, *widths), measure, **options).choices[0]


@pytest.mark.parametrize(
    ("n", "widths", "way"),
    [
        (100_000, GRID, "features"),
        (20_000, GRID, "features"),
        (1000, GRID, "tiles"),
        (300, [4096] * 6, "tiles"),
        (5000, [32] * 20, "features"),
        (40, [64, 64], "tiles"),
    ],
)
def test_the_cheaper_way_is_taken(n, widths, way):
    choice = chosen(n, widths, widths)
    assert choice.way == way
    assert "through features" in choice.why
    assert "through tiles" in choice.why


def test_costs_are_those_of_the_matrix_products():
    total, squares = sum(GRID), sum(width**2 for width in GRID)
    for n in (2000, 50_000):
        found = chosen(n, GRID, GRID, plan="features", intervals=False).products
        assert found == n * (total**2 + 2 * squares)
        found = chosen(n, GRID, GRID, plan="tiles", intervals=False).products
        assert n**2 / 2 * 2 * total <= found <= 1.1 * n**2 / 2 * 2 * total
    narrow = chosen(5000, [1] * 50, [1] * 50, plan="tiles", intervals=False).products
    # The contraction of all cells is more than the Gram matrices.
    assert narrow >= 5000**2 / 2 * (100 + 2500)


def test_costs_grow_with_what_is_asked_for():
    for way in ("tiles", "features"):
        alone = chosen(3000, GRID, GRID, plan=way, intervals=False).products
        assert chosen(3000, GRID, GRID, plan=way).products > alone
        assert chosen(3000, GRID, GRID, plan=way, sites="s1*", intervals=False).products < alone / 3
        three = chosen(3000, GRID, GRID, GRID, plan=way, intervals=False).products
        assert three == pytest.approx({"tiles": 1.5, "features": 3.0}[way] * alone, rel=0.05)
        reference = chosen(3000, GRID, GRID, GRID, plan=way, intervals=False, reference="a").products
        assert alone < reference <= three


def test_every_noise_level_costs_as_much():
    sides = {name: {"s": np.broadcast_to(np.zeros((1, 1, 1)), (3, 900, 20))} for name in "ab"}
    for way in ("tiles", "features"):
        one, three, nine = (
            plan_comparison(sides, sigmas=(1, 2, 3), plan=way, **options).choices[0].products
            if sigmas is None
            else chosen(900, [20], [20], plan=way).products
            for sigmas, options in ((1, {}), (None, {}), (None, {"cross_sigmas": True}))
        )
        assert three == pytest.approx(3 * one)
        assert nine == pytest.approx(9 * one)


@pytest.mark.parametrize("way", ["tiles", "features"])
def test_a_way_can_be_asked_for_and_gives_the_same(way):
    sides = dict(zip("ab", features(50), strict=True))
    choice = plan_comparison(sides, plan=way).choices[0]
    assert (choice.way, choice.why.startswith("as asked for")) == (way, True)
    auto = compare(sides, permutations=0)
    np.testing.assert_allclose(values(compare(sides, plan=way, permutations=0)), values(auto), atol=1e-12)


@pytest.mark.parametrize(
    ("measure", "way"),
    [
        ("cka(kernel=rbf)", "tiles"),
        ("distance_correlation", "tiles"),
        ("rsa(distance=euclidean,comparison=pearson)", "tiles"),
        ("rsa", "matrices"),
        ("procrustes", "states"),
    ],
)
def test_what_has_no_feature_space_is_not_streamed(measure, way):
    choice = chosen(3000, [8], [8], measure=measure)
    assert choice.way == way
    assert choice.why
    if way == "tiles":
        with pytest.raises(
            UsageError, match="cannot be streamed: its kernel has no feature space; use plan='t"
        ):
            chosen(3000, [8], [8], measure=measure, plan="features")


def test_sums_that_exceed_the_memory_are_not_streamed():
    choice = chosen(100_000, [9000], [9000], memory=500e6)
    assert (choice.way, choice.why) == ("tiles", "feature sums exceed the memory")
    with pytest.raises(UsageError, match="cannot be streamed: its sums do not fit into memory"):
        chosen(100_000, [9000], [9000], memory=500e6, plan="features")
    assert chosen(100_000, [9000], [9000], memory=8e9).way == "features"


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        ("rsa", r"rsa keeps an n x n matrix of each of 4 sites, .* for 50000 samples"),
        ("procrustes", r"procrustes keeps what it prepares of 4 sites, .* for 50000 samples"),
        ("cka(estimator=biased)", r"the null level of cka\(estimator='biased'\) takes .* for 50000 samples"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(measure, message):
    sides = [[1024, 512], [300, 900]]
    with pytest.raises(UsageError, match=message) as e:
        chosen(50_000, *sides, measure=measure, memory=100e6)
    told = str(e.value)
    assert "\n" not in told
    assert "more than 100 MB" in told
    fits = int(told.rpartition("(n=")[2].partition(")")[0])
    chosen(50_000, *sides, measure=measure, memory=100e6, n=fits)
    with pytest.raises(UsageError, match="more than 100 MB"):
        chosen(50_000, *sides, measure=measure, memory=100e6, n=fits + 2)


def test_a_null_level_that_does_not_fit_can_be_left_out():
    sides = [[1024, 512], [300, 900]]
    choice = chosen(50_000, *sides, measure="cka(estimator=biased)", memory=100e6, permutations=0)
    assert (choice.null, choice.permutations) == ("none", 0)


def test_the_explanation_says_which_and_why():
    plan = plan_comparison(
        models(3000, [8, 4], [8], [5]), ["cka", "rsa", "cka(kernel=rbf)"], reference="a", permutations=0
    )
    told = plan.explain()
    lines = told.splitlines()
    assert lines[0] == ("a (2 sites), b (1 site), c (1 site): 4 cells over 2 pairs and 1 noise level, n 3000")
    assert any(line.startswith("cka: features, float64; ") and "through tiles" in line for line in lines)
    assert any(line.startswith("rsa: matrices, float64; one n x n matrix a site") for line in lines)
    assert any("the kernel has no feature space" in line for line in lines)
    assert sum("null level: none" in line for line in lines) == 3
    assert sum("intervals: " in line for line in lines) == 3
    assert "multiplications, about" in told
    few = plan_comparison(models(3000, [8], [8]), n=30).explain()
    assert "note: a random subset of 30 of 3000 samples" in few
    assert "note: only 30 samples" in few


def test_the_explanation_counts_noise_levels_and_minutes():
    sides = {name: {"s": np.broadcast_to(np.zeros((1, 1, 1)), (2, 10**7, 2000))} for name in "ab"}
    told = plan_comparison(sides, sigmas=(1, 2), permutations=0).explain()
    assert "2 noise levels" in told
    assert " h of products here" in told or " min of products here" in told


def test_the_plan_is_strict_json():
    for sides in (models(3000, [8], [8]), models(100, GRID, GRID, GRID)):
        plan = plan_comparison(sides, ["cka", "rsa", "procrustes", "cka(kernel=rbf)"], cross_sigmas=True)
        told = plan.to_dict()
        text = json.dumps(told, allow_nan=False)
        assert json.loads(text)["choices"][0]["measure"] == "cka"
        assert told["choices"][1]["products"] is None
        assert told["cells"] == plan.cells


def test_what_is_planned_for_intervals_and_nulls():
    small, large = chosen(1000, [8], [8]), chosen(100_000, [8], [8])
    assert small.interval == "jackknife, each sample left out in turn"
    assert large.interval == f"jackknife, {ANCHORS} random samples left out in turn"
    assert small.null == "at least 1000 cyclic shifts of random orders of the samples"
    assert (small.null_rows, small.permutations) == (1000, 1000)
    assert large.null_rows == NULL_ROWS
    assert f"on a random {NULL_ROWS} of 100000 samples, scaled by 0.041" in large.null
    assert chosen(1000, [8], [8], measure="procrustes").permutations == 200
    assert chosen(1000, [8], [8], measure="rsa", permutations=7).permutations == 7
    assert chosen(5, [8], [8]).interval == "none"
    assert chosen(100, [8], [8], measure="rsa", resamples=1).interval == "none"
    assert chosen(100, [8], [8], intervals=False).interval == "none"
    assert "halves" in chosen(24, [8], [8], measure="mutual_knn").interval
    assert chosen(23, [8], [8], measure="mutual_knn").interval == "none"


def test_memory_bounds_what_is_kept_for_intervals_and_nulls():
    many = [16] * 100
    choice = chosen(20_000, many, many, measure="cka(kernel=rbf)", memory=64e6)
    left = int(choice.interval.split()[1])
    assert 256 <= left < 20_000
    assert left == 256 or 8 * left * len(many) ** 2 <= 64e6 / 8
    assert choice.null_rows == 256
    roomy = chosen(20_000, many, many, measure="cka(kernel=rbf)", memory=16e9)
    assert roomy.null_rows == NULL_ROWS


def test_precision_follows_the_cost():
    assert chosen(300, [64], [64]).precision == "float64"
    assert chosen(20_000, GRID, GRID).precision == "float32"


def held(left, right):
    return 8 * (sum(left) * sum(right) + sum(width**2 for width in (*left, *right)))


@pytest.mark.parametrize("left", [[5], [100] * 7, [1, 1, 100], [9, 1, 1, 1, 50, 3], [1000] + [1] * 20])
@pytest.mark.parametrize("right", [[5], [30] * 5, [200, 1, 1]])
def test_groups_of_sites_cover_every_pair_once_and_fit(left, right):
    least = held([max(left)], [max(right)])
    for memory in (least, 1.5 * least, 3 * least, 10 * least, held(left, right)):
        found = split_sites(left, right, memory)
        seen = np.zeros((len(left), len(right)), dtype=int)
        for rows, columns in found:
            assert held(left[rows], right[columns]) <= memory
            seen[rows, columns] += 1
        assert (seen == 1).all()
    assert len(found) == 1
    assert split_sites(left, right, 0.99 * least) is None


def test_splitting_many_sites_that_cannot_fit_is_quick():
    assert split_sites([30_000] * 200, [30_000] * 200, 1e9) is None
