"""Linear probes: scikit-learn's contract, honest splits, chance where nothing is to be found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.utils.estimator_checks import parametrize_with_checks

from featlens import FeatureStore
from featlens.errors import StoreError, UsageError
from featlens.store import FeatureWriter, SiteInfo
from featlens_probes import LinearProbe, ProbeResult, probe
from featlens_probes.result import COLUMNS
from featlens_probes.sweep import _splits

N, CLASSES = 200, 4


# --- the estimator ------------------------------------------------------------------------------------------


@parametrize_with_checks([LinearProbe(), LinearProbe(penalties=(0.1,), validation=0.5, seed=3)])
def test_scikit_learn_contract(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


def planted(
    n: int = N, d: int = 12, strength: float = 3.0, seed: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Features (n, d) in which the class shifts the mean by ``strength`` standard deviations, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % CLASSES)
    centres = rng.normal(size=(CLASSES, d))
    centres *= strength / np.linalg.norm(centres, axis=1, keepdims=True)
    return rng.normal(size=(n, d)) + centres[labels], labels


def test_the_score_is_that_of_the_chosen_penalty() -> None:
    x, y = planted()
    fitted = LinearProbe().fit(x, y)
    scores = {p: LinearProbe(penalties=(p,)).fit(x, y).validation_score_ for p in LinearProbe().penalties}
    assert fitted.validation_score_ == max(scores.values())
    assert fitted.penalty_ == max(p for p, score in scores.items() if score == fitted.validation_score_)


@pytest.mark.parametrize("labels", [["no", "yes"], [7, -3], [False, True]])
def test_two_classes_of_any_kind(labels: list[Any]) -> None:
    x, codes = planted()
    y = np.array(labels)[codes % 2]
    fitted = LinearProbe().fit(x, y)
    assert fitted.decision_function(x).shape == (N,)
    guess = np.where(fitted.decision_function(x) > 0, fitted.classes_[1], fitted.classes_[0])
    assert np.array_equal(fitted.predict(x), guess)
    assert set(fitted.predict(x)) <= set(labels)


def test_too_few_rows_for_a_validation_part_take_the_middle_penalty() -> None:
    fitted = LinearProbe().fit([[0.0], [1.0], [2.0]], [0, 1, 2])
    assert fitted.penalty_ == sorted(LinearProbe().penalties)[4] and np.isnan(fitted.validation_score_)


# --- the sweep ----------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of features by site, at one sigma or more."""

    def make(
        sites: dict[str, Any], labels: Any, sigmas: tuple[float, ...] = (0.5,), name: str = "a.h5"
    ) -> Path:
        path = tmp_path / name
        infos = [SiteInfo(site, order, x.shape[-1]) for order, (site, x) in enumerate(sites.items())]
        kept = None if labels is None else np.asarray(labels, dtype=np.int64)
        n = next(iter(sites.values())).shape[-2]
        with FeatureWriter.create(path, infos, sigmas, np.arange(n), {"model": "m"}, kept) as writer:
            for index in range(len(sigmas)):
                blocks = {site: x if x.ndim == 2 else x[index] for site, x in sites.items()}
                writer.append(index, {site: x.astype(np.float32) for site, x in blocks.items()})
        return path

    return make


def test_planted_signal_is_found_and_noise_is_at_chance(write: Callable[..., Path]) -> None:
    x, y = planted()
    noise = np.random.default_rng(1).normal(size=x.shape)
    found = probe(write({"signal": x, "noise": noise}, y), permutations=20)
    signal, nothing = found.cells()
    assert signal["accuracy"] > 0.85 and signal["ci_low"] > signal["chance_high"]
    assert abs(nothing["accuracy"] - 1 / CLASSES) < 0.08
    assert nothing["accuracy"] <= nothing["chance_high"]
    for cell in (signal, nothing):
        assert abs(cell["chance"] - 1 / CLASSES) < 0.05
        assert cell["ci_low"] <= cell["accuracy"] <= cell["ci_high"]
        assert cell["chance"] <= cell["chance_high"] < 0.45


def test_noise_in_many_dimensions_is_at_chance(write: Callable[..., Path]) -> None:
    _, y = planted(n=120)
    x = np.random.default_rng(2).normal(size=(120, 600))
    (cell,) = probe(write({"wide": x}, y), splits=3).cells()
    assert abs(cell["accuracy"] - 1 / CLASSES) < 0.12


def test_more_of_the_signal_gives_more_accuracy(write: Callable[..., Path]) -> None:
    sigmas = (0.1, 1.0, 10.0)
    x = np.stack([planted(strength=strength)[0] for strength in (4.0, 1.5, 0.0)])
    found = probe(write({"a": x}, planted()[1], sigmas), splits=3, permutations=0)
    accuracy = found.data["accuracy"].values[:, 0]
    assert accuracy[0] > accuracy[1] > accuracy[2]
    assert np.isnan(found.data["chance"].values).all()


def test_units_of_a_feature_change_nothing(write: Callable[..., Path]) -> None:
    x, y = planted()
    x = x.astype(np.float32).astype(np.float64)
    shifted = probe(write({"a": 100 * x.std(axis=0) + x}, y), permutations=0).cells()[0]
    plain = probe(write({"a": x}, y, name="b.h5"), permutations=0).cells()[0]
    assert shifted["accuracy"] == pytest.approx(plain["accuracy"], abs=0.01)


def test_a_constant_site_is_at_the_majority_class(write: Callable[..., Path]) -> None:
    y = np.r_[np.zeros(150), np.ones(50)]
    (cell,) = probe(write({"a": np.ones((200, 3))}, y), permutations=5).cells()
    assert cell["accuracy"] == cell["chance"] == 0.75


def test_every_split_keeps_the_share_of_each_class() -> None:
    codes = np.repeat([0, 1, 2], [100, 60, 40])
    for fit_rows, test_rows in _splits(codes, 5, 0.4, seed=0):
        assert len(set(fit_rows) & set(test_rows)) == 0 and len(fit_rows) + len(test_rows) == 200
        assert np.bincount(codes[test_rows]).tolist() == [40, 24, 16]


def test_the_labels_of_test_rows_do_not_reach_the_fit(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = planted()
    seen: list[tuple[NDArray[Any], NDArray[Any], float]] = []
    predict = LinearProbe.predict

    def spy(self: LinearProbe, features: Any) -> Any:
        guess = predict(self, features)
        seen.append((guess, self.coef_, self.penalty_))
        return guess

    monkeypatch.setattr(LinearProbe, "predict", spy)
    probe(write({"a": x}, y), splits=1, permutations=0)
    (_, test_rows), *_ = _splits(np.unique(y, return_inverse=True)[1], 1, 0.4, seed=0)
    other = y.copy()
    # Each class' test rows get the next class' labels: the split, which sees class counts only, stays.
    other[test_rows] = (other[test_rows] + 1) % CLASSES
    monkeypatch.setattr(
        "featlens_probes.sweep._splits", lambda *_: [(np.setdiff1d(np.arange(N), test_rows), test_rows)]
    )
    probe(write({"a": x}, y, name="b.h5"), splits=1, permutations=0)
    probe(write({"a": x}, other, name="c.h5"), splits=1, permutations=0)
    (guess, weights, penalty), (same, same_weights, same_penalty) = seen[1:]
    assert np.array_equal(guess, same) and np.array_equal(weights, same_weights) and penalty == same_penalty


def test_the_result_depends_on_the_seed_only(write: Callable[..., Path]) -> None:
    x, y = planted(strength=1.0)
    path = write({"a": x, "b": x[:, :3]}, y)
    once, again, other = (probe(path, splits=2, seed=seed).to_json() for seed in (0, 0, 1))
    assert once == again != other
    alone = probe(path, sites="b", splits=2).cells()
    assert alone == [cell for cell in probe(path, splits=2).cells() if cell["site"] == "b"]


def test_an_open_file_and_its_path_are_the_same(write: Callable[..., Path]) -> None:
    path = write({"a": planted()[0]}, planted()[1])
    calls: list[tuple[int, int]] = []
    with FeatureStore(path) as store:
        found = probe(store, splits=1, permutations=1, progress=lambda *counts: calls.append(counts))
        assert found.to_json() == probe(path, splits=1, permutations=1).to_json()
        store.read("a", 0.5)  # It is still open.
    assert calls == [(1, 1)]


def test_the_bootstrap_interval_shrinks_with_the_samples(write: Callable[..., Path]) -> None:
    widths = []
    for n in (80, 800):
        x, y = planted(n=n, strength=1.0)
        (cell,) = probe(write({"a": x}, y, name=f"{n}.h5"), splits=3, permutations=0).cells()
        assert cell["ci_low"] < cell["accuracy"] < cell["ci_high"]
        widths.append(cell["ci_high"] - cell["ci_low"])
    assert widths[1] < widths[0] / 2


def test_the_interval_covers_the_true_accuracy(write: Callable[..., Path]) -> None:
    """Fresh data from the same source: 95 % intervals hold the long-run accuracy most of the time."""
    x, y = planted(n=6000, d=4, strength=1.5)
    truth = LinearProbe().fit(x[:3000], y[:3000]).score(x[3000:], y[3000:])
    held = 0
    for draw in range(20):
        rows = np.random.default_rng(draw).choice(6000, 300, replace=False)
        (cell,) = probe(write({"a": x[rows]}, y[rows], name=f"{draw}.h5"), splits=2, permutations=0).cells()
        held += cell["ci_low"] <= truth <= cell["ci_high"]
    assert held >= 15


# --- refusals -----------------------------------------------------------------------------------------------


def test_refusals(write: Callable[..., Path], make_store: Callable[..., Any], tmp_path: Path) -> None:
    x, y = planted()
    path = write({"a": x}, y)
    for options, said in (
        ({"test": 0.0}, "test must be a share between 0 and 1"),
        ({"test": 1.0}, "test must be a share between 0 and 1"),
        ({"splits": 0}, "splits must be at least 1"),
        ({"sigmas": []}, "no sigma was asked for"),
        ({"sigmas": [0.7]}, "has no sigma 0.7; it has 0.5"),
        ({"sites": "b"}, "no site 'b' in .*: choose from a"),
        ({"test": 0.01}, "200 samples are too few for 4 classes"),
    ):
        with pytest.raises(UsageError, match=said):
            probe(path, **options)
    make_store(tmp_path / "part.h5", rows=0, labels=np.arange(60) % 2)
    with pytest.raises(StoreError, match="is incomplete: 0 of 60 rows"):
        probe(tmp_path / "part.h5")


# --- results ------------------------------------------------------------------------------------------------


@pytest.fixture
def result(write: Callable[..., Path]) -> ProbeResult:
    """Made cells: the best by validation is not the best by test accuracy."""
    cells = np.zeros((2, 2, 6))
    cells[:, :, COLUMNS.index("accuracy")] = [[0.9, 0.5], [0.6, 0.7]]
    cells[:, :, COLUMNS.index("validation")] = [[0.5, np.nan], [0.8, 0.7]]
    cells[:, :, COLUMNS.index("ci_low")] = 0.4
    cells[:, :, COLUMNS.index("ci_high")] = 0.95
    cells[:, :, COLUMNS.index("chance_high")] = 0.3
    cells[0, 0, COLUMNS.index("chance")] = np.nan
    with FeatureStore(write({"a": np.ones((8, 2))}, np.arange(8) % 2)) as store:
        return ProbeResult.from_arrays(
            cells, [0.5, 2.5], ["a", "b"], n=(5, 3), classes=2, splits=4, seed=7, source=store
        )


def test_the_best_cell_is_chosen_by_validation(result: ProbeResult) -> None:
    best = result.best()
    assert (best["sigma"], best["site"], best["accuracy"], best["validation"]) == (2.5, "a", 0.6, 0.8)


def test_the_frame_has_a_row_a_cell(result: ProbeResult) -> None:
    frame = result.to_frame()
    assert list(frame.columns) == ["sigma", "site", *COLUMNS] and len(frame) == 4
    assert frame.set_index(["sigma", "site"]).loc[(2.5, "b"), "accuracy"] == 0.7


def test_round_trip_through_files(result: ProbeResult, tmp_path: Path) -> None:
    import pandas as pd
    import xarray as xr

    for suffix in ("json", "nc", "csv"):
        result.save(tmp_path / f"probe.{suffix}")
    found = json.loads((tmp_path / "probe.json").read_text())
    assert found["cells"] == result.cells() and found["cells"][0]["chance"] is None
    assert found["best"] == result.best()
    assert {key: found[key] for key in ("n_fit", "n_test", "classes", "splits", "seed")} == {
        "n_fit": 5, "n_test": 3, "classes": 2, "splits": 4, "seed": 7,
    }  # fmt: skip
    assert found["provenance"]["model"] == "m"
    with xr.open_dataset(tmp_path / "probe.nc", engine="h5netcdf") as data:
        assert ProbeResult(data.load()).to_json() == result.to_json()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "probe.csv"), result.to_frame(), check_dtype=False)
    with pytest.raises(UsageError, match=r"ends in .json, .nc or .csv"):
        result.save(tmp_path / "probe.txt")


def test_a_copy_is_a_copy(result: ProbeResult) -> None:
    result.to_xarray()["accuracy"][:] = 0
    assert result.data["accuracy"].values.max() == 0.9


def test_the_figure_shows_interval_and_chance(result: ProbeResult) -> None:
    (trace,) = result.figure().data
    assert trace.y == ("a", "b") and trace.x == ("0.5", "2.5")
    assert np.asarray(trace.z).tolist() == [[0.9, 0.6], [0.5, 0.7]]
    assert "interval" in trace.hovertemplate and np.asarray(trace.customdata).shape == (2, 2, 4)
    assert repr(result) == "ProbeResult(2 sites x 2 sigmas, best a at 2.5: 0.600)"
    assert "plotly" in result._repr_html_()
