"""Linear probes over site x sigma with honest splits, intervals and chance levels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens import FeatureStore
from featlens.errors import UsageError
from featlens.seeds import derive
from featlens_probes.linear import LinearProbe
from featlens_probes.result import ProbeResult
from featlens_probes.ridge import fit_path, one_hot

__all__ = ["probe"]

BOOTSTRAPS = 500


def probe(
    store: FeatureStore | os.PathLike[str] | str,
    sites: str | Sequence[str] | None = None,
    sigmas: Sequence[float] | None = None,
    splits: int = 5,
    test: float = 0.4,
    permutations: int = 20,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeResult:
    """Accuracy of a linear probe for the labels, at every site and noise level of a feature file.

    Each of ``splits`` random stratified splits sets ``test`` of the samples aside; the probe fits on the
    rest, where it also chooses its penalty on validation rows. Accuracies are of test rows only, averaged
    over the splits.

    Parameters
    ----------
    store
        Complete feature file with labels.
    sites, sigmas
        Which cells; all if None.
    splits, test
        Number of splits and share of the samples set aside in each.
    permutations
        Label permutations a split for the chance level.
    seed
        Seed of splits, permutations and bootstrap.
    progress
        Called with (cells done, cells in all).

    Returns
    -------
    ProbeResult
        Over (sigma, site): accuracy, its 95 % bootstrap interval over samples, the validation accuracy (to
        choose the best cell by), and chance level.
    """
    if not isinstance(store, FeatureStore):
        with FeatureStore(store) as opened:
            return probe(opened, sites, sigmas, splits, test, permutations, seed, progress)
    store.require_complete()
    codes, classes = _codes(store, test)
    names = store.select([sites] if isinstance(sites, str) else sites)
    levels = [float(s) for s in (store.sigmas if sigmas is None else sigmas)]
    if splits < 1 or permutations < 0:
        raise UsageError(
            f"probe: splits must be at least 1 and permutations at least 0, got {splits} and {permutations}"
        )
    if not levels:
        raise UsageError("probe: no sigma was asked for; leave sigmas out for all that the file has")
    rows = _splits(codes, splits, test, seed)
    resamples = _resamples(len(codes), np.random.default_rng(derive(seed, "bootstrap")))
    cells = np.empty((len(levels), len(names), 6))
    for i, sigma in enumerate(levels):
        for j, site in enumerate(names):
            cells[i, j] = _cell(store.read(site, sigma), codes, classes, rows, resamples, permutations, seed)
            if progress is not None:
                progress(i * len(names) + j + 1, len(levels) * len(names))
    n_test = len(rows[0][1])
    return ProbeResult.from_arrays(
        cells,
        levels,
        names,
        n=(len(codes) - n_test, n_test),
        classes=classes,
        splits=splits,
        seed=seed,
        source=store,
    )


def _codes(store: FeatureStore, test: float) -> tuple[NDArray[np.int64], int]:
    if store.labels is None:
        raise UsageError(f"probe: {store.path} has no labels; extract from samples that have them")
    if not 0 < test < 1:
        raise UsageError(f"probe: test must be a share between 0 and 1, got {test}")
    labels, codes = np.unique(store.labels, return_inverse=True)
    if len(labels) < 2:
        raise UsageError(
            f"probe: all {len(codes)} samples of {store.path} have the label {labels[0]}; two classes "
            "are needed"
        )
    counts = np.bincount(codes)
    fewest = min(round(test * len(codes)), len(codes) - round(test * len(codes)))
    if counts.min() < 4 or fewest < len(labels):
        raise UsageError(
            f"probe: {len(codes)} samples are too few for {len(labels)} classes (the rarest has "
            f"{counts.min()}); at least 4 samples a class are needed; extract more"
        )
    return codes, len(labels)


def _splits(codes: NDArray[np.int64], count: int, test: float, seed: int) -> list[tuple[Any, Any]]:
    from sklearn.model_selection import StratifiedShuffleSplit

    splitter = StratifiedShuffleSplit(count, test_size=test, random_state=derive(seed, "probe") % 2**32)
    return list(splitter.split(np.zeros((len(codes), 1)), codes))


def _cell(
    features: NDArray[Any],
    codes: NDArray[np.int64],
    classes: int,
    rows: list[tuple[Any, Any]],
    resamples: NDArray[np.float64],
    permutations: int,
    seed: int,
) -> tuple[float, ...]:
    """Accuracy, interval low and high, validation accuracy, chance mean and its 95 % quantile."""
    tested, right = np.zeros(len(codes)), np.zeros(len(codes))
    validation, chance = [], []
    for index, (fit_rows, test_rows) in enumerate(rows):
        estimator = LinearProbe(seed=index).fit(features[fit_rows], codes[fit_rows])
        right[test_rows] += estimator.predict(features[test_rows]) == codes[test_rows]
        tested[test_rows] += 1
        validation.append(estimator.validation_score_)
        rng = np.random.default_rng(derive(seed, "chance", index))
        chance += _chance(
            features, codes, classes, (fit_rows, test_rows), estimator.penalty_, permutations, rng
        )
    low, high = _interval(right, tested, resamples)
    levels = (float(np.mean(chance)), float(np.quantile(chance, 0.95))) if chance else (np.nan, np.nan)
    return float(right.sum() / tested.sum()), low, high, float(np.mean(validation)), *levels


def _chance(
    features: NDArray[Any],
    codes: NDArray[np.int64],
    classes: int,
    rows: tuple[Any, Any],
    penalty: float,
    permutations: int,
    rng: np.random.Generator,
) -> list[float]:
    """Test accuracies of probes that were fitted on permuted labels."""
    if not permutations:
        return []
    fit_rows, test_rows = rows
    targets = [one_hot(rng.permutation(codes[fit_rows]), classes) for _ in range(permutations)]
    weights, intercept = fit_path(features[fit_rows]).coefficients(np.concatenate(targets, axis=1), penalty)
    scores = (features[test_rows] @ weights + intercept).reshape(len(test_rows), permutations, classes)
    hits = scores.argmax(axis=2) == codes[test_rows][:, None]
    return [float(share) for share in hits.mean(axis=0)]


def _resamples(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How often each sample is drawn in each bootstrap sample, (BOOTSTRAPS, count); shared by all cells."""
    return rng.multinomial(count, np.full(count, 1 / count), size=BOOTSTRAPS).astype(np.float64)


def _interval(
    right: NDArray[Any], tested: NDArray[Any], resamples: NDArray[np.float64]
) -> tuple[float, float]:
    """95 % interval of the accuracy over resampled samples; a sample's tests in all splits stay together."""
    low, high = np.quantile((resamples @ right) / np.maximum(resamples @ tested, 1), [0.025, 0.975])
    return float(low), float(high)
