"""What intervals and p-values promise, in small simulations with fixed seeds; the large ones apart."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from featlens import compare
from featlens.comparison import engine
from featlens.comparison.statistics import error_of_halves
from featlens.measures import cka
from featlens.seeds import derive
from tests.simulations import coverage, error_rates


@pytest.mark.parametrize(
    ("run", "count"),
    [
        (coverage.Run("cka", 100, plan="tiles", data=("middle", "high")), 300),
        (coverage.Run("cka", 200, plan="features", data=("middle", "high")), 200),
        (coverage.Run("distance_correlation", 100, data=("middle", "high")), 200),
    ],
    ids=lambda run: f"{run.measure}-{run.plan}" if isinstance(run, coverage.Run) else None,
)
def test_jackknife_intervals_cover_and_their_standard_errors_are_the_spread(
    run: coverage.Run, count: int
) -> None:
    for line in coverage.cover(run, count, 300):
        # The spread is known to 3 to 5 %; a standard error that is wrong by a quarter is outside.
        assert 0.86 < line.error / line.spread < 1.19, line
        assert 0.91 <= line.covered <= 0.985, line


def test_intervals_from_some_anchors_cover_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ANCHORS", 100)
    run = coverage.Run("cka", 400, plan="features", data=("middle",))
    value, low, high = coverage.sample(run, run.data, 200, 1)
    inside = np.mean((low <= coverage.population("middle")) & (coverage.population("middle") <= high))
    error = np.sqrt(np.mean((high - low) ** 2)) / 2 / 1.984
    assert 0.82 < error / value.std(ddof=1) < 1.2
    assert 0.9 <= inside <= 0.99


def test_intervals_from_halves_cover() -> None:
    run = coverage.Run("procrustes", 100, jackknife=False, data=("high",))
    for line in coverage.cover(run, 50, 300):
        assert 0.85 < line.error / line.spread < 1.2, line
        assert line.covered >= 0.87, line


def test_intervals_of_neighbour_measures_are_not_far_too_wide() -> None:
    run = coverage.Run("mutual_knn", 60, jackknife=False, data=("high",))
    (line,) = coverage.cover(run, 24, 300)
    assert 0.87 < line.error / line.spread < 1.25, line


def test_near_zero_the_interval_is_wide_rather_than_narrow() -> None:
    (line,) = coverage.cover(coverage.Run("cka", 60, plan="tiles", data=("none",)), 200, 1)
    assert line.target == 0
    assert 1.2 < line.error / line.spread < 1.8
    assert line.covered >= 0.96


def test_the_population_value_is_that_of_many_samples() -> None:
    for names in (("low", "high"), ("heavy",)):
        models = coverage.draw(np.random.default_rng(0), (1, 40_000), names)
        for name in names:
            found = cka(models["a"]["x"][0], models["b"][name][0])
            assert found == pytest.approx(coverage.population(name), abs=0.01)


def test_halves_of_a_mean_give_its_standard_error(rng: np.random.Generator) -> None:
    x = rng.normal(size=(101, 3))
    splits = [rng.permutation(101) for _ in range(2000)]
    means = np.array([x[half].mean(axis=0) for order in splits for half in (order[:50], order[50:100])])
    np.testing.assert_allclose(error_of_halves(means, 101), x.std(axis=0, ddof=1) / 101**0.5, rtol=0.06)
    assert error_of_halves(means[:2], 101) == pytest.approx(abs(means[0] - means[1]) * (50 / 202) ** 0.5)


def test_with_replacement_copies_are_neighbours_of_themselves() -> None:
    told = coverage.bootstrap(6, n=60, resamples=10)
    assert told["bootstrap"] > told["value"] + 0.025


def test_shifts_of_one_order_give_every_rank_exactly_once() -> None:
    n, seed = 21, 3
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, 4)), rng.normal(size=(n, 3))
    order = np.random.default_rng(derive(seed, "permutations")).permutation(n)
    for measure in ("cka", "rsa", "distance_correlation"):
        shifted = np.empty((n, *y.shape))
        for step in range(n):
            shifted[step][order] = y[np.roll(order, -step)]
        models: dict[str, Any] = {"a": {"s": x}, "b": {f"s{step}": z for step, z in enumerate(shifted)}}
        p = compare(models, measure, permutations=n - 1, intervals=False, seed=seed).panel().arrays["p"]
        np.testing.assert_allclose(np.sort(p.ravel()), np.arange(1, n + 1) / n, atol=1e-12)


@pytest.mark.parametrize("measure", error_rates.MEASURES)
def test_all_cells_share_the_permutations(measure: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 5))
    models = {"a": {"s": x, "again": 2 * x}, "b": {"s": y, "again": y[:, ::-1], "once more": 0.5 * y}}
    panel = compare(models, measure, permutations=60, intervals=False).panel()
    # A search over copies of one cell finds nothing by chance that the cell alone would not.
    np.testing.assert_allclose(panel.arrays["p_family"], panel.arrays["p"], atol=1e-12)
    np.testing.assert_allclose(panel.arrays["q"], panel.arrays["p"], atol=1e-12)
    assert np.ptp(panel.arrays["p"]) < 1e-12


@pytest.mark.parametrize(
    ("measure", "count"), [("cka", 200), ("rsa", 100), ("mutual_knn", 100), ("procrustes", 100)]
)
def test_p_is_uniform_for_unrelated_features(measure: str, count: int) -> None:
    p = error_rates.shifted(measure, 30, count, 58, sites=1)["p"][:, 0, 0]
    # One cell a data set, so these are independent; four standard errors.
    for level in (0.1, 0.3, 0.5):
        assert abs(np.mean(p <= level) - level) < 4 * (level * (1 - level) / count) ** 0.5, level
    assert abs(p.mean() - 0.5) < 4 * (1 / 12 / count) ** 0.5


def test_family_wise_p_holds_for_a_search_over_the_grid() -> None:
    columns = error_rates.shifted("cka", 30, 150, 58)
    some = np.mean(columns["p_family"].min(axis=(1, 2)) <= 0.1)
    assert 0.1 - 0.075 < some < 0.1 + 0.085
    # What a search without it would claim.
    assert np.mean(columns["p"].min(axis=(1, 2)) <= 0.1) > 0.35


def test_ordinary_permutations_give_the_same_p() -> None:
    options: dict[str, Any] = {"n": 30, "count": 2}
    shifts = error_rates.shifted("cka", permutations=580, **options)
    every = error_rates.ordinary("cka", permutations=300, **options)
    np.testing.assert_allclose(shifts["p"], every["p"], atol=0.11)
    np.testing.assert_allclose(shifts["null_high"], every["null_high"], atol=0.03)
    np.testing.assert_allclose(shifts["p_family"], every["p_family"], atol=0.13)


def test_false_discoveries_are_rare_and_related_cells_are_found() -> None:
    false, power = error_rates.discoveries("cka", 60, 20, 3, permutations=590)
    assert false < 0.08
    assert power > 0.6


def test_the_null_level_of_some_samples_is_that_of_all_when_scaled() -> None:
    found = error_rates.on_some_rows(400, 128, 15)
    ratio = found["some"]["null_high"] / found["all"]["null_high"]
    assert 0.85 < ratio.mean() < 1.15
    assert np.abs(found["some"]["p"] - found["all"]["p"]).mean() < 0.06


@pytest.mark.parametrize("module", [coverage, error_rates])
def test_the_simulations_run(
    module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coverage, "RUNS", coverage.RUNS[:1])
    monkeypatch.setattr(coverage, "bootstrap", lambda count: {"value": 0.2, "bootstrap": 0.5, "covered": 0.0})
    monkeypatch.setattr(error_rates, "shifted", small(error_rates.shifted))
    monkeypatch.setattr(error_rates, "ordinary", small(error_rates.ordinary))
    monkeypatch.setattr(sys, "argv", ["simulation", "--replications", "8"])
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    assert lines[-1].endswith("s of processor time")


def small(function: Any) -> Any:
    """The same with few samples and permutations."""
    return lambda measure, n, count, permutations, *rest, **options: function(
        measure, min(n, 30), 2, 5, *rest, **options
    )
