"""A linear probe as a scikit-learn classifier: ridge on one-hot labels, penalty chosen on rows left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featlens_probes.ridge import fit_path, one_hot

__all__ = ["LinearProbe"]

PENALTIES = tuple(10.0**power for power in range(-5, 4))


class LinearProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Linear classifier whose penalty is chosen on a validation part of the rows given to ``fit``.

    Parameters
    ----------
    penalties
        Ridge penalties to choose from, for standardised features, per row.
    validation
        Share of the rows on which the penalty is chosen; the final fit uses all rows.
    seed
        Seed of the split.

    Attributes
    ----------
    classes_
        (k,) labels.
    penalty_
        The chosen penalty.
    validation_score_
        Accuracy on the validation rows at that penalty; NaN where there were too few rows to hold any out.
    coef_, intercept_
        (k, d) and (k,).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> x, y = load_digits(return_X_y=True)
    >>> bool(LinearProbe().fit(x[:900], y[:900]).score(x[900:], y[900:]) > 0.85)
    True
    """

    def __init__(
        self, penalties: Sequence[float] = PENALTIES, validation: float = 0.25, seed: int = 0
    ) -> None:
        self.penalties = penalties
        self.validation = validation
        self.seed = seed

    def fit(self, X: Any, y: Any) -> LinearProbe:
        """Fit on features (n, d) and labels (n,)."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        targets = one_hot(codes, len(self.classes_))
        self.penalty_, self.validation_score_ = self._choose(X, codes, targets)
        weights, self.intercept_ = fit_path(X).coefficients(targets, self.penalty_)
        self.coef_ = weights.T
        return self

    def _choose(self, x: NDArray[Any], codes: NDArray[Any], targets: NDArray[Any]) -> tuple[float, float]:
        penalties = sorted(float(penalty) for penalty in self.penalties)
        counts = np.bincount(codes)
        held = int(np.ceil(self.validation * len(codes)))
        if counts.min() < 2 or held < len(counts) or len(codes) - held < len(counts):
            return penalties[len(penalties) // 2], float("nan")
        split = StratifiedShuffleSplit(1, test_size=self.validation, random_state=self.seed)
        fit_rows, check_rows = next(split.split(x, codes))
        path = fit_path(x[fit_rows])
        scores = []
        for penalty in penalties:
            weights, intercept = path.coefficients(targets[fit_rows], penalty)
            guess = (x[check_rows] @ weights + intercept).argmax(axis=1)
            scores.append(float((guess == codes[check_rows]).mean()))
        # Among equals the strongest penalty: the simplest probe.
        best = max(range(len(penalties)), key=lambda index: (scores[index], index))
        return penalties[best], scores[best]

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Scores (n, k); for two classes (n,), positive for the second."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores = X @ self.coef_.T + self.intercept_
        return np.asarray(scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores)

    def predict(self, X: Any) -> NDArray[Any]:
        """Labels (n,)."""
        scores = self.decision_function(X)
        codes = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return np.asarray(self.classes_[codes])
