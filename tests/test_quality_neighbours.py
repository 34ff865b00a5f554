"""Precision, recall, density and coverage against double loops, closed forms and hard cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featlens.errors import UsageError
from featlens_trainers.evaluation import density_coverage, manifold, precision_recall
from featlens_trainers.evaluation.manifold import neighbour_radii, squared_distances


def radius(row: int, rows: np.ndarray, k: int) -> float:
    return sorted(math.dist(rows[row], other) for j, other in enumerate(rows) if j != row)[k - 1]


def naive(generated: np.ndarray, reference: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """Straight from the definitions: precision, recall, density, coverage."""
    real = [radius(j, reference, k) for j in range(len(reference))]
    fake = [radius(i, generated, k) for i in range(len(generated))]
    inside = [[math.dist(x, y) <= real[j] * (1 + 1e-12) for j, y in enumerate(reference)] for x in generated]
    precision = sum(any(row) for row in inside) / len(generated)
    recalled = [
        any(math.dist(y, x) <= fake[i] * (1 + 1e-12) for i, x in enumerate(generated)) for y in reference
    ]
    density = sum(sum(row) for row in inside) / (k * len(generated))
    coverage = sum(any(row[j] for row in inside) for j in range(len(reference))) / len(reference)
    return precision, sum(recalled) / len(reference), density, coverage


def all_four(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float, float, float]:
    return (*precision_recall(x, y, k), *density_coverage(x, y, k))


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("n", "m", "d"), [(20, 30, 3), (40, 12, 1), (7, 7, 50)])
def test_they_agree_with_the_definitions(rng: np.random.Generator, n: int, m: int, d: int, k: int) -> None:
    x, y = 0.8 * rng.normal(size=(n, d)) + 0.3, rng.normal(size=(m, d))
    assert all_four(x, y, k) == pytest.approx(naive(x, y, k), abs=1e-12)


def test_blocks_of_rows_change_nothing(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rng.normal(size=(31, 4)) + 0.5, rng.normal(size=(26, 4))
    whole = all_four(x, y, 3)
    monkeypatch.setattr(manifold, "block_rows", lambda columns: 5)
    assert all_four(x, y, 3) == whole


def test_radii_are_those_of_the_kth_other_row() -> None:
    rows = np.array([[0.0], [1.0], [3.0], [7.0]])
    assert neighbour_radii(rows, 1).tolist() == [1, 1, 4, 16]
    assert neighbour_radii(rows, 3).tolist() == [49, 36, 16, 49]
    with pytest.raises(UsageError, match="k from 1 to 3 for 4 images, got 4"):
        neighbour_radii(rows, 4)


@given(st.integers(0, 10_000))
def test_they_are_blind_to_rotation_shift_scale_and_order(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    x, y = numbers.normal(size=(15, 3)) + 0.5, numbers.normal(size=(18, 3))
    rotation = np.linalg.qr(numbers.normal(size=(3, 3)))[0]
    found = all_four(x, y, 2)
    moved = all_four(numbers.permutation(7 * x @ rotation + 3), 7 * y @ rotation + 3, 2)
    assert moved == pytest.approx(found)
    assert all(0 <= value <= 1 for value in (*found[:2], found[3])) and found[2] >= 0


# --- closed forms -------------------------------------------------------------------------------------------


def test_coverage_of_equal_distributions_is_what_ranks_say(rng: np.random.Generator) -> None:
    """Lemma 2 of arXiv 2002.09797: 1 - (N - 1)...(N - k) / (M + N - 1)...(M + N - k) for any density."""
    n, m, k = 40, 60, 3
    expected = 1 - math.prod((n - i) / (m + n - i) for i in range(1, k + 1))
    found = [density_coverage(rng.normal(size=(m, 5)), rng.normal(size=(n, 5)), k) for _ in range(200)]
    densities, coverages = np.array(found).T
    assert coverages.mean() == pytest.approx(expected, abs=4 * coverages.std() / math.sqrt(200))
    assert densities.mean() == pytest.approx(1, abs=4 * densities.std() / math.sqrt(200))


def test_what_lies_apart_scores_nothing_and_a_mode_that_is_missing_is_seen(rng: np.random.Generator) -> None:
    near, far = rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 100
    assert all_four(near, far, 3) == (0, 0, 0, 0)
    both = np.vstack([near, far])
    again = rng.normal(size=(100, 2))
    precision, recall, _, coverage = all_four(again, both, 3)
    assert precision > 0.9 and recall < 0.55 and coverage < 0.55
    precision, recall, _, coverage = all_four(np.vstack([again, far[:50] + 0.01]), near, 3)
    assert precision < 0.7 and recall > 0.9 and coverage > 0.7


def test_one_outlier_among_the_generated_images_makes_recall_but_not_coverage_jump(rng) -> None:
    reference = rng.normal(size=(200, 4))
    collapsed = 0.01 * rng.normal(size=(50, 4))
    lonely = np.vstack([collapsed, np.full((1, 4), 30.0)])
    assert precision_recall(collapsed, reference)[1] < 0.1
    assert precision_recall(lonely, reference)[1] > 0.3
    assert density_coverage(lonely, reference)[1] == density_coverage(collapsed, reference)[1]


# --- hard cases ---------------------------------------------------------------------------------------------


def test_copies_lie_in_balls_of_radius_zero() -> None:
    reference = np.repeat(np.random.default_rng(0).normal(size=(5, 30)) * 1e4, 4, axis=0)
    assert neighbour_radii(reference, 3).max() == 0
    assert all_four(reference[::4].repeat(4, axis=0), reference, 3) == (1, 1, 4 / 3, 1)
    moved = reference + 1e-3
    assert all_four(moved, reference, 3) == (0, 0, 0, 0)


def test_equal_sets_do_not_depend_on_rounding(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(300, 64)) + 50
    # Each ball holds its centre, k neighbours, of which the last lies on its surface.
    assert density_coverage(rows, rows[::-1].copy(), 4) == (5 / 4, 1)
    assert precision_recall(rows, rows[::-1].copy(), 4) == (1, 1)


@pytest.mark.parametrize("offset", [1e3, 1e6, 1e8])
def test_distances_keep_their_digits_far_from_the_origin(rng: np.random.Generator, offset: float) -> None:
    x, y = rng.normal(size=(6, 5)), rng.normal(size=(9, 5))
    x, y = x + offset, y + offset
    exact = ((x[:, None] - y[None]) ** 2).sum(2)
    np.testing.assert_allclose(squared_distances(x, y), exact, rtol=1e-9)


def test_two_tight_clusters_far_apart_are_told_apart_from_within(rng: np.random.Generator) -> None:
    centres = np.array([[0.0] * 4, [1e7] * 4])
    y = np.vstack([centre + rng.normal(size=(40, 4)) for centre in centres])
    x = np.vstack([centre + rng.normal(size=(40, 4)) for centre in centres])
    assert all_four(x, y, 3) == pytest.approx(naive(x, y, 3))
    assert 0 < all_four(x, y, 3)[0] < 1


def test_constant_features_and_few_images(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(10, 40)), rng.normal(size=(12, 40))
    padded = [np.pad(side, ((0, 0), (0, 3)), constant_values=7.0) for side in (x, y)]
    assert all_four(*padded, 3) == all_four(x, y, 3)
    for function in (precision_recall, density_coverage):
        with pytest.raises(UsageError, match="k from 1 to 2 for 3 images"):
            function(x, y[:3], 3)
        with pytest.raises(UsageError, match="row 2 of the first"):
            function(np.where(np.arange(10)[:, None] == 2, np.nan, x), y, 3)
