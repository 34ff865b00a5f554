"""The summary of a study: shares of the teacher's advantage, and where they have no meaning."""

from __future__ import annotations

from typing import Any

import pytest

from featlens_trainers.results import summarise


def student(
    init: str, frechet: list[float], seed: int = 0, ratio: str = "random", **more: Any
) -> dict[str, Any]:
    curve = [{"images": 100 * n, "frechet": value, "kid": value / 10} for n, value in enumerate(frechet)]
    return {
        "init": init,
        "ratio": ratio,
        "divergence": "js",
        "seed": seed,
        "status": "done",
        "curve": curve,
        **more,
    }


def shares(*students: dict[str, Any]) -> dict[str, list[float | None]]:
    return {row["init"]: row["share"] for row in summarise(students)}


def test_share_is_zero_for_random_and_one_for_the_teacher_on_a_logarithmic_scale() -> None:
    found = shares(
        student("random", [500, 100]),
        student("teacher", [50, 1]),
        student("single_sigma", [9, 10]),
        student("prior_only", [9, 1000]),
        student("features_only", [9, 0.1]),
    )
    assert found == {
        "random": [0.0],
        "teacher": [1.0],
        "single_sigma": [pytest.approx(0.5)],
        "prior_only": [pytest.approx(-0.5)],
        "features_only": [pytest.approx(1.5)],
    }


def test_share_is_left_out_where_it_has_no_meaning() -> None:
    own = student("single_sigma", [10])
    assert shares(own, student("teacher", [1]))["single_sigma"] == [None]
    assert shares(own, student("random", [100]))["single_sigma"] == [None]
    assert shares(own, student("random", [5]), student("teacher", [5]))["single_sigma"] == [None]
    assert shares(own, student("random", [5]), student("teacher", [6]))["single_sigma"] == [None]
    assert shares(own, student("random", [5]), student("teacher", [-1e-9]))["single_sigma"] == [None]
    ends = student("random", [100]), student("teacher", [1])
    assert shares(student("single_sigma", [0.0]), *ends)["single_sigma"] == [None]
    assert shares(own, ends[0], student("teacher", [1], status="running"))["single_sigma"] == [None]


def test_students_are_compared_within_seed_ratio_start_and_divergence() -> None:
    rows = summarise(
        [
            student("random", [100], seed=0),
            student("teacher", [1], seed=0),
            student("single_sigma", [10], seed=0),
            student("random", [10_000], seed=1),
            student("teacher", [1], seed=1),
            student("single_sigma", [10], seed=1),
            student("single_sigma", [10], seed=1, ratio="teacher"),
            student("map_regressed", [3], seed=1, status="running"),
            student("prior_only", [], seed=1),
        ]
    )
    found = {(row["init"], row["ratio"]): row for row in rows}
    assert set(found) == {
        *((init, "random") for init in ("random", "teacher", "single_sigma")),
        ("single_sigma", "teacher"),
    }
    assert found["single_sigma", "random"]["share"] == [pytest.approx(0.5), pytest.approx(0.75)]
    assert found["single_sigma", "random"]["seeds"] == [0, 1]
    assert found["single_sigma", "teacher"]["share"] == [None]


def test_the_mean_over_a_run_is_geometric_and_leaves_the_start_out() -> None:
    (row,) = summarise([student("random", [1e6, 100, 1])])
    assert row["geometric"] == [pytest.approx(10)]
    assert row["frechet"] == [1]
    assert row["kid"] == [0.1]
    assert summarise([]) == []
