"""Settings of a distribution of noise levels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from featlens.errors import UsageError, choices_hint

__all__ = ["NOISE_KINDS", "NoiseConfig"]

NOISE_KINDS = ("lognormal", "rho", "levels", "loguniform", "fixed")


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
        low, high = self.low or 0.0, self.high or math.inf
        if low >= high:
            raise UsageError(f"noise: low must be below high, got {low} and {high}")
        if not 0 <= self.first < self.last <= 1:
            raise UsageError(
                f"noise: expected 0 <= first < last <= 1, got {self.first} and {self.last}; "
                "they are fractions of the curve"
            )
