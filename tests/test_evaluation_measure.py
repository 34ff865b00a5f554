"""All metrics at once: errors against repetition, pairing, warnings, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from featlens.errors import UsageError
from featlens_trainers.evaluation import (
    Measurement,
    density_coverage,
    frechet_distance,
    frechet_infinity,
    kernel_distance,
    kernel_distance_blocks,
    measure,
    measurement,
    precision_recall,
)
from featlens_trainers.evaluation.measurement import METRICS
from featlens_trainers.settings import MetricConfig

FEW = MetricConfig(resamples=6)


def pair(
    seed: int, n: int = 120, m: int = 90, d: int = 4, shift: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(seed)
    return numbers.normal(size=(n, d)) + shift, numbers.normal(size=(m, d))


def test_values_are_those_of_the_functions() -> None:
    x, y = pair(0)
    found = measure(x, y, MetricConfig(resamples=0, extrapolate=True, kid_block=20))
    assert found.values == {
        "frechet": frechet_distance(x, y),
        "kid": kernel_distance(x, y),
        "kid_blocks": kernel_distance_blocks(x, y, 20).value,
        "precision": precision_recall(x, y, 3)[0],
        "recall": precision_recall(x, y, 3)[1],
        "density": density_coverage(x, y, 5)[0],
        "coverage": density_coverage(x, y, 5)[1],
        "frechet_infinity": frechet_infinity(x, y).value,
    }
    assert set(found.errors) == {"kid_blocks", "frechet_infinity"} and not found.draws


def test_draws_are_repeatable_and_errors_are_their_scatter() -> None:
    found, again = measure(*pair(0), FEW), measure(*pair(0), FEW)
    assert found == again
    assert set(found.draws) == set(METRICS)
    for name, values in found.draws.items():
        assert len(values) == 6
        assert found.errors[name] == pytest.approx(np.std(values, ddof=1))
    other = measure(*pair(0), MetricConfig(resamples=6, seed=1))
    assert other.draws != found.draws
    assert {name: other.values[name] for name in METRICS} == {name: found.values[name] for name in METRICS}


def test_the_first_draws_do_not_depend_on_how_many_there_are() -> None:
    few, many = (measure(*pair(0), MetricConfig(resamples=count)) for count in (3, 5))
    for name in METRICS:
        assert few.draws[name] == pytest.approx(many.draws[name][:3])


def test_errors_are_about_the_scatter_of_repeated_experiments() -> None:
    repeated = [measure(*pair(seed), MetricConfig(resamples=0)).values for seed in range(100)]
    estimated = [measure(*pair(seed), MetricConfig(resamples=30)).errors for seed in range(12)]
    for name in METRICS:
        truth = np.std([values[name] for values in repeated])
        mean = math.sqrt(np.mean([errors[name] ** 2 for errors in estimated]))
        assert 0.75 < mean / truth < 1.5, name


def test_a_bootstrap_would_move_what_depends_on_neighbours() -> None:
    """Why the neighbour metrics are not resampled with replacement."""
    x, y = pair(0, 200, 200, shift=0.0)
    numbers = np.random.default_rng(0)
    draws = [
        density_coverage(x[numbers.integers(0, 200, 200)], y[numbers.integers(0, 200, 200)])[1]
        for _ in range(30)
    ]
    value, error = density_coverage(x, y)[1], np.std(draws)
    assert abs(np.mean(draws) - value) > 3 * error
    halves = measure(x, y, MetricConfig(resamples=30)).draws["coverage"]
    assert abs(np.mean(halves) - value) < 3 * error


def test_progress_counts_the_draws() -> None:
    told: list[tuple[int, int]] = []
    measure(*pair(0), FEW, lambda done, total: told.append((done, total)))
    assert told == [(count, 6) for count in range(1, 7)]


# --- warnings and refusals ----------------------------------------------------------------------------------


def warned(*arguments: object) -> str:
    found = measure(*arguments)  # type: ignore[arg-type]
    assert isinstance(found, Measurement)
    return "\n".join(found.warnings)


def test_few_images_are_warned_of() -> None:
    assert "120 to 90 images in 4 features is biased upwards (fewer than 2,048 images)" in warned(
        *pair(0), FEW
    )
    # Only the warnings of large sets: their distances take seconds.
    assert measurement._warnings(*pair(0, 2048, 2048), FEW, {"kid": np.zeros(6)}) == ()
    (line,) = measurement._warnings(*pair(0, 2100, 2100, d=300), FEW, {"kid": np.zeros(6)})
    assert "fewer than 3,000 images" in line


def test_constant_features_are_warned_of() -> None:
    x, y = (np.pad(side, ((0, 0), (0, 2))) for side in pair(0))
    assert "2 of 6 features are the same for every reference image" in warned(x, y, FEW)
    x[:, 5] = 1.0
    assert measure(x, y, FEW).values["frechet"] == pytest.approx(measure(*pair(0), FEW).values["frechet"] + 1)


def test_halves_that_are_too_small_give_no_errors() -> None:
    x, y = pair(0, 11, 30)
    found = measure(x, y, FEW)
    assert set(found.draws) == {"frechet"} and "too few images for the errors" in "\n".join(found.warnings)


@pytest.mark.parametrize(("n", "m"), [(1, 30), (30, 5), (5, 5)])
def test_too_few_images_are_refused(n: int, m: int) -> None:
    with pytest.raises(UsageError, match="expected"):
        measure(*pair(0, n, m), FEW)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resamples": 1}, "resamples must be 0"),
        ({"resamples": -1}, "resamples must be 0"),
        ({"kid_block": 1}, "kid_block must be at least 2"),
        ({"k_precision": 0}, "k_precision must be above 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        MetricConfig(**settings)
