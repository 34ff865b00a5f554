"""All distances of one feature set to another, with their errors and what to beware of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError
from featlens.seeds import derive
from featlens_trainers.evaluation.frechet import frechet_distance, frechet_infinity
from featlens_trainers.evaluation.kernel import (
    kernel_distance,
    kernel_distance_blocks,
    kernel_distance_parts,
)
from featlens_trainers.evaluation.manifold import density_coverage, precision_recall
from featlens_trainers.evaluation.sets import Features, checked
from featlens_trainers.settings import MetricConfig

__all__ = ["METRICS", "SMALLER_IS_BETTER", "Measurement", "measure"]

Array = NDArray[np.float64]

METRICS = ("frechet", "kid", "precision", "recall", "density", "coverage")
"""What is measured always."""

SMALLER_IS_BETTER = frozenset({"frechet", "frechet_infinity", "kid", "kid_blocks"})

FEW_PER_FEATURE = 10
FEW = 2048

Progress = Callable[[int, int], None]
"""Called with (draws done, draws in all)."""


@dataclass(frozen=True)
class Measurement:
    """What was measured.

    Attributes
    ----------
    values
        Numbers by metric.
    errors
        Standard errors of those that have one.
    draws
        Values (resamples,) of the metrics in the draws behind the errors: paired, by the same rows, between
        measurements of equal numbers of images and one seed.
    warnings
        What to beware of, a line each.
    """

    values: Mapping[str, float]
    errors: Mapping[str, float]
    draws: Mapping[str, tuple[float, ...]]
    warnings: tuple[str, ...] = ()


def measure(
    generated: Features,
    reference: Features,
    config: MetricConfig | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """All metrics of features of generated images against features of reference images.

    Parameters
    ----------
    generated, reference
        (n, d) and (m, d), of one extractor.
    config
        Neighbours, blocks and number of draws.
    progress
        Told how many of the draws are done.

    Returns
    -------
    Measurement
        The error of the Frechet distance is a bootstrap's: both sets are drawn again with replacement. The
        others depend on pairs or neighbours, where copies of a row count as neighbours at distance 0; theirs
        is the scatter over half-samples without replacement.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 100, 4))
    >>> found = measure(x, y, MetricConfig(resamples=20))
    >>> sorted(found.values)
    ['coverage', 'density', 'frechet', 'kid', 'kid_blocks', 'precision', 'recall']
    """
    config = config or MetricConfig()
    x, y = checked(generated, reference)
    _require_enough(x, y, config)
    values = {"frechet": frechet_distance(x, y), "kid": kernel_distance(x, y)}
    blocks = kernel_distance_blocks(x, y, config.kid_block, config.seed)
    values["kid_blocks"] = blocks.value
    values |= _neighbours(x, y, config)
    draws = _draws(x, y, config, progress)
    errors = {name: float(np.std(found, ddof=1)) for name, found in draws.items()}
    if not math.isnan(blocks.error):
        errors["kid_blocks"] = blocks.error
    if config.extrapolate:
        endless = frechet_infinity(x, y, seed=config.seed)
        values["frechet_infinity"], errors["frechet_infinity"] = endless.value, endless.error
    kept = {name: tuple(found.tolist()) for name, found in draws.items()}
    return Measurement(values, errors, kept, _warnings(x, y, config, draws))


def _neighbours(x: Array, y: Array, config: MetricConfig) -> dict[str, float]:
    precision, recall = precision_recall(x, y, config.k_precision)
    density, coverage = density_coverage(x, y, config.k_coverage)
    return {"precision": precision, "recall": recall, "density": density, "coverage": coverage}


def _require_enough(x: Array, y: Array, config: MetricConfig) -> None:
    needed = max(config.k_precision + 1, config.k_coverage + 1, config.kid_block or 2)
    if min(len(x), len(y)) < needed:
        raise UsageError(
            f"evaluate: expected at least {needed} images on either side for {config.k_coverage} neighbours, "
            f"got {len(x)} generated and {len(y)} reference images; give more images"
        )


def _draws(
    x: Array, y: Array, config: MetricConfig, progress: Progress | None
) -> dict[str, NDArray[np.float64]]:
    """Values of every metric in every draw; none without draws."""
    if not config.resamples:
        return {}
    halves = [_halves(len(side), config, name) for side, name in ((x, "generated"), (y, "reference"))]
    out = {"frechet": np.empty(config.resamples)}
    enough = min(len(x), len(y)) // 2 > max(config.k_precision, config.k_coverage)
    if enough:
        out["kid"] = kernel_distance_parts(x, y, *halves)
        out |= {name: np.empty(config.resamples) for name in METRICS[2:]}
    for draw in range(config.resamples):
        rows = [_again(len(side), config, name, draw) for side, name in ((x, "generated"), (y, "reference"))]
        out["frechet"][draw] = frechet_distance(x[rows[0]], y[rows[1]])
        if enough:
            for name, value in _neighbours(x[halves[0][draw]], y[halves[1][draw]], config).items():
                out[name][draw] = value
        if progress is not None:
            progress(draw + 1, config.resamples)
    return out


def _again(count: int, config: MetricConfig, name: str, draw: int) -> NDArray[np.int64]:
    """Rows of one bootstrap draw: a function of their number, the seed, the side and the draw alone."""
    numbers = np.random.default_rng(derive(config.seed, "bootstrap", name, draw))
    return numbers.integers(0, count, count)


def _halves(count: int, config: MetricConfig, name: str) -> NDArray[np.bool_]:
    """(resamples, count): which rows belong to each half-sample."""
    out = np.zeros((config.resamples, count), dtype=np.bool_)
    for draw in range(config.resamples):
        numbers = np.random.default_rng(derive(config.seed, "half", name, draw))
        out[draw, numbers.permutation(count)[: count // 2]] = True
    return out


def _warnings(x: Array, y: Array, config: MetricConfig, draws: Mapping[str, Array]) -> tuple[str, ...]:
    lines = []
    smaller, features = min(len(x), len(y)), x.shape[1]
    wanted = max(FEW_PER_FEATURE * features, FEW)
    if smaller < wanted:
        lines.append(
            f"the Frechet distance of {len(x):,} to {len(y):,} images in {features:,} features is biased "
            f"upwards (fewer than {wanted:,} images); compare it with values of the same numbers alone"
        )
    if config.resamples and "kid" not in draws:
        lines.append("too few images for the errors of KID and of the neighbour metrics; give more images")
    constant = int((np.ptp(y, axis=0) == 0).sum())
    if constant:
        lines.append(
            f"{constant} of {features:,} features are the same for every reference image; "
            "they say how far images are off, not how they vary"
        )
    return tuple(lines)
