"""Settings of a distribution of noise levels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from featlens.errors import UsageError, choices_hint

__all__ = ["NOISE_KINDS", "NoiseConfig"]

NOISE_KINDS = ("lognormal", "rho", "levels", "loguniform", "fixed")

_LOW, _HIGH = 0.002, 80.0
_LEAST_SHARE = 1e-6


@dataclass(frozen=True)
class NoiseConfig:
    """From which noise levels sigma are drawn.

    Attributes
    ----------
    kind
        ``"lognormal"``: ln sigma ~ N(mean, std^2), cut to [low, high] where those are given.
        ``"rho"``: a uniform draw along the curve of arXiv 2206.00364, equation 5, between low and high; only
        the part from ``first`` to ``last`` of it, counted from low (SiD uses the lower 80 %).
        ``"levels"``: one of ``count`` such levels.
        ``"loguniform"``: ln sigma uniform between low and high.
        ``"fixed"``: always ``sigma``.
    mean, std
        Of ln sigma, for lognormal.
    low, high
        Bounds; for lognormal none by default, for the others 0.002 and 80.
    rho, first, last, count
        Bend of the curve, the part of it that is used, and the number of levels on all of it.
    sigma
        The level of ``"fixed"``.
    """

    kind: str = "lognormal"
    mean: float = -1.2
    std: float = 1.2
    low: float | None = None
    high: float | None = None
    rho: float = 7.0
    first: float = 0.0
    last: float = 1.0
    count: int = 1000
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in NOISE_KINDS:
            raise UsageError(f"unknown noise {self.kind!r}: {choices_hint(self.kind, NOISE_KINDS)}")
        for name in ("std", "rho", "count", "sigma", "low", "high"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"noise: {name} must be above 0, got {value}")
        if not math.isfinite(self.mean):
            raise UsageError(f"noise: mean is that of ln sigma, a finite number; got {self.mean}")
        low, high = (self.low or 0.0, self.high or math.inf) if self.kind == "lognormal" else self.bounds
        if low >= high:
            raise UsageError(f"noise: low must be below high, got {low} and {high}")
        if not 0 <= self.first < self.last <= 1:
            raise UsageError(
                f"noise: expected 0 <= first < last <= 1, got {self.first} and {self.last}; "
                "they are fractions of the curve"
            )
        if self.kind == "levels":
            self._require_a_level()
        if self.kind == "lognormal":
            self._require_a_share()

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest level of a curve or of a log-uniform draw."""
        return self.low or _LOW, self.high or _HIGH

    @property
    def allowed_levels(self) -> range:
        """Numbers of the levels between ``first`` and ``last`` of the curve, counted from low."""
        most = max(self.count - 1, 1)
        # A hair of rounding must not lose the level that stands exactly on a bound.
        return range(
            math.ceil(self.first * most - 1e-9), min(math.floor(self.last * most + 1e-9), self.count - 1) + 1
        )

    @property
    def quantiles(self) -> tuple[float, float]:
        """Shares of the uncut lognormal distribution that lie below low and below high."""
        return tuple(
            outside if bound is None else 0.5 * math.erfc((self.mean - math.log(bound)) / self.std / 2**0.5)
            for bound, outside in ((self.low, 0.0), (self.high, 1.0))
        )  # type: ignore[return-value]

    def _require_a_level(self) -> None:
        if not self.allowed_levels:
            raise UsageError(
                f"noise: none of {self.count} levels lies between {self.first} and {self.last} of the curve; "
                "raise count or widen first and last"
            )

    def _require_a_share(self) -> None:
        below_low, below_high = self.quantiles
        if below_high - below_low < _LEAST_SHARE:
            raise UsageError(
                f"noise: less than a millionth of ln sigma ~ N({self.mean}, {self.std}^2) lies between low "
                f"{self.low} and high {self.high}; widen them, or use kind 'loguniform'"
            )
