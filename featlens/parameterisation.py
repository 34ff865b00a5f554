"""What networks trained in other coordinates are given and give, in terms of ``x = x0 + sigma * eps``.

Each parameterisation turns (x, sigma) into the network's own input and time, and the network's output into
an estimate of x0. With ``a = 1 / sqrt(1 + sigma^2)`` and ``s = sigma a``:

==========  ===================  =========================  ===================================
class       input                time                       output
==========  ===================  =========================  ===================================
Betas       a x = a x0 + s eps   step of that sigma         eps, x0 or, as v, a eps - s x0
ScoreSdeVe  x                    sigma                      score, -eps / sigma
EDM         c_in x               log(sigma) / 4             (x0 - c_skip x) / c_out
FlowMatch   x / (1 + sigma)      steps sigma / (1 + sigma)  velocity, eps - x0
==========  ===================  =========================  ===================================

References
----------
arXiv 2006.11239 (betas, epsilon), 2202.00512 (v), 2011.13456 (score), 2206.00364 (EDM), 2210.02747 (flows).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featlens.denoiser import Preconditioning, column
from featlens.errors import UsageError, choices_hint

__all__ = ["EDM", "Betas", "FlowMatch", "Parameterisation", "ScoreSdeVe", "make_betas"]

PREDICTIONS = ("epsilon", "sample", "v_prediction")
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")


class Parameterisation(Protocol):
    """How a network sees noise."""

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Least and greatest sigma that the network was trained for."""

    def given(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(B, ...) noised image, (B,) -> (B, ...) input of the network."""

    def time(self, sigma: Tensor) -> Tensor:
        """(B,) -> (B,) what the network is told."""

    def x0(self, x: Tensor, sigma: Tensor, out: Tensor) -> Tensor:
        """(B, ...) noised image, (B,), (B, ...) output of the network -> (B, ...) estimate of x0."""


def make_betas(
    schedule: str = "linear", start: float = 1e-4, end: float = 0.02, steps: int = 1000
) -> NDArray[np.float64]:
    """Variances (steps,) of the noise added at each step, under diffusers' name of the schedule.

    >>> make_betas("linear", 0.1, 0.3, 3).round(2).tolist()
    [0.1, 0.2, 0.3]
    """
    if schedule == "linear":
        return np.linspace(start, end, steps)
    if schedule == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, steps) ** 2
    if schedule == "sigmoid":
        return 1 / (1 + np.exp(-np.linspace(-6, 6, steps))) * (end - start) + start
    curves = {"squaredcos_cap_v2": _cosine, "laplace": _laplace, "exp": _decay}
    if schedule not in curves:
        raise UsageError(f"unknown beta_schedule {schedule!r}: {choices_hint(schedule, SCHEDULES)}")
    left = [curves[schedule](step / steps) for step in range(steps + 1)]
    return np.array([min(1 - after / before, 0.999) for before, after in itertools.pairwise(left)])


def _decay(t: float) -> float:
    return math.exp(-12 * t)


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    decay = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    return math.sqrt(math.exp(decay) / (1 + math.exp(decay)))


class Betas:
    """Discrete steps with given variances, as of DDPM; between two steps log sigma is interpolated.

    Parameters
    ----------
    betas
        (steps,) variances.
    prediction
        ``epsilon``, ``sample`` or ``v_prediction``.
    whole
        Whether the network knows whole steps only; it is told the nearest then.
    zero_snr
        Whether the betas are rescaled so that the last step is noise only (arXiv 2305.08891, algorithm 1).
        That step has no sigma and is left out.

    Examples
    --------
    >>> noise = Betas(make_betas())
    >>> [round(sigma, 3) for sigma in noise.sigma_range]
    [0.01, 157.407]
    >>> noise.time(torch.tensor([0.010, 1.0, 157.4])).round().tolist()
    [0.0, 258.0, 999.0]
    """

    def __init__(
        self, betas: Any, prediction: str = "epsilon", whole: bool = False, zero_snr: bool = False
    ) -> None:
        if prediction not in PREDICTIONS:
            raise UsageError(
                f"unknown prediction_type {prediction!r}: {choices_hint(prediction, PREDICTIONS)}"
            )
        values = np.asarray(betas, dtype=np.float64)
        if values.ndim != 1 or not len(values) or not ((values > 0) & (values <= 1)).all():
            raise UsageError(
                "betas: expected one or more numbers above 0 and below 1; check the scheduler's file"
            )
        signal = np.sqrt(np.cumprod(1 - values))
        if zero_snr:
            signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
        bar = signal[signal > 1e-12] ** 2
        if not len(bar):
            raise UsageError("betas: no step keeps any of the image; check the scheduler's file")
        self.prediction, self.whole = prediction, whole
        self.log_sigmas: NDArray[np.float64] = np.log((1 - bar) / bar) / 2
        self._tables: dict[torch.device, Tensor] = {}

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Sigma of the first and of the last step."""
        return float(np.exp(self.log_sigmas[0])), float(np.exp(self.log_sigmas[-1]))

    def given(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``x / sqrt(1 + sigma^2)``."""
        return x / column((1 + sigma**2).sqrt(), x)

    def time(self, sigma: Tensor) -> Tensor:
        """Step, fractional (sigma's dtype) or the nearest (int64)."""
        if sigma.device not in self._tables:
            # float64 is not to be had on every device.
            dtype = torch.float32 if sigma.device.type == "mps" else torch.float64
            self._tables[sigma.device] = torch.as_tensor(self.log_sigmas, dtype=dtype, device=sigma.device)
        table = self._tables[sigma.device]
        level = sigma.to(table.dtype).log().clamp(table[0], table[-1])
        after = torch.searchsorted(table, level).clamp(1, max(1, len(table) - 1))
        before, after = after - 1, after.clamp(max=len(table) - 1)
        gap = (table[after] - table[before]).clamp(min=torch.finfo(table.dtype).tiny)
        steps = before + ((level - table[before]) / gap).clamp(0, 1)
        return steps.round().long() if self.whole else steps.to(sigma.dtype)

    def x0(self, x: Tensor, sigma: Tensor, out: Tensor) -> Tensor:
        """Estimate of x0 from the predicted noise, image or velocity."""
        if self.prediction == "sample":
            return out
        if self.prediction == "epsilon":
            return x - column(sigma, x) * out
        square = 1 + sigma**2
        return x / column(square, x) - column(sigma / square.sqrt(), x) * out


@dataclass(frozen=True)
class ScoreSdeVe:
    """Network that is given the noised image itself and sigma, and gives the score."""

    sigma_range: tuple[float, float] = (0.0, math.inf)

    def given(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``x``."""
        return x

    def time(self, sigma: Tensor) -> Tensor:
        """``sigma``."""
        return sigma

    def x0(self, x: Tensor, sigma: Tensor, out: Tensor) -> Tensor:
        """``x + sigma^2 score`` (Tweedie)."""
        return x + column(sigma**2, x) * out


@dataclass(frozen=True)
class EDM:
    """EDM's preconditioning; ``v_prediction`` is diffusers' name for an output of the opposite sign."""

    sigma_data: float = 0.5
    sigma_range: tuple[float, float] = (0.002, 80.0)
    prediction: str = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction not in ("epsilon", "v_prediction"):
            raise UsageError(
                f"prediction_type {self.prediction!r} does not go with EDM; choose epsilon or v_prediction"
            )

    def given(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``c_in x``."""
        return column(Preconditioning(self.sigma_data).c_in(sigma), x) * x

    def time(self, sigma: Tensor) -> Tensor:
        """``log(sigma) / 4``."""
        return Preconditioning(self.sigma_data).c_noise(sigma)

    def x0(self, x: Tensor, sigma: Tensor, out: Tensor) -> Tensor:
        """``c_skip x + c_out out``, or minus c_out."""
        scaling = Preconditioning(self.sigma_data)
        sign = 1 if self.prediction == "epsilon" else -1
        return column(scaling.c_skip(sigma), x) * x + sign * column(scaling.c_out(sigma), x) * out


@dataclass(frozen=True)
class FlowMatch:
    """Straight paths ``(1 - t) x0 + t eps`` with ``t = sigma / (1 + sigma)``; the network gives eps - x0."""

    steps: int = 1000
    sigma_range: tuple[float, float] = (0.0, math.inf)

    def given(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``x / (1 + sigma)``."""
        return x / column(1 + sigma, x)

    def time(self, sigma: Tensor) -> Tensor:
        """``steps sigma / (1 + sigma)``."""
        return self.steps * sigma / (1 + sigma)

    def x0(self, x: Tensor, sigma: Tensor, out: Tensor) -> Tensor:
        """``(x - sigma velocity) / (1 + sigma)``."""
        return (x - column(sigma, x) * out) / column(1 + sigma, x)
