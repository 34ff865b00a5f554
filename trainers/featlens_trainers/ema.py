"""Averages of weights along training: by half-life in images, or with a power-function profile.

Notation: t is the count of images seen, B the images of one step, beta(t) the weight that the old average
keeps in the step that brings the count to t.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from featlens.errors import UsageError

__all__ = [
    "MAX_POWER_STD",
    "Average",
    "HalfLife",
    "Power",
    "Profile",
    "ema_copy",
    "ema_decay",
    "ema_update",
    "exponent_of",
    "power_std",
    "profiles",
    "tracked",
]

M = TypeVar("M", bound=nn.Module)

MAX_POWER_STD = 1 / math.sqrt(12)
"""Relative width of the flat profile, exponent 0: the mean of all weights so far."""


def ema_copy(module: M) -> M:
    """Frozen copy in evaluation mode, the start of an average."""
    out = copy.deepcopy(module).eval()
    out.requires_grad_(False)
    return out


def ema_decay(images: int, batch: int, half_life: float, ramp: float) -> float:
    """Weight of the old average after a step that brings the count to ``images``.

    The half-life is ``min(half_life, ramp * images)`` images, so that the first, bad weights are soon
    forgotten (arXiv 2206.00364, appendix F.2).

    >>> round(ema_decay(images=1000, batch=100, half_life=100, ramp=1.0), 6)
    0.5
    """
    effective = min(half_life, ramp * images)
    return float(0.5 ** (batch / max(effective, 1e-8)))


class Follower:
    """An averaged network and the one it follows, their tensors paired once: walking modules takes time.

    As an optimiser does, it holds on to the parameters that the networks have when it is made.
    """

    def __init__(self, average: nn.Module, module: nn.Module) -> None:
        self.average, self.module = average, module
        pairs = list(zip(average.parameters(), module.parameters(), strict=True))
        self._means: list[Tensor] = [mean for mean, _ in pairs]
        self._nows: list[Tensor] = [now for _, now in pairs]
        self._buffers = list(zip(average.buffers(), module.buffers(), strict=True))

    @torch.no_grad()
    def move(self, decay: float) -> None:
        """Move the average towards its network; buffers are copied."""
        if self._means:
            # One kernel for many tensors on a GPU; elsewhere the same as tensor by tensor.
            torch._foreach_lerp_(self._means, self._nows, 1.0 - decay)
        for kept, buffer in self._buffers:
            kept.copy_(buffer)


def ema_update(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move ``average`` towards ``module``; buffers are copied."""
    Follower(average, module).move(decay)


def power_std(exponent: float) -> float:
    """Relative width sigma_rel of the profile t^exponent: its standard deviation over its length.

    By it arXiv 2312.02696 names its profiles; it is the standard deviation of a Beta(exponent + 1, 1)
    distribution.

    >>> round(power_std(0.0) * 12**0.5, 6), round(power_std(6.94), 4)
    (1.0, 0.1)
    """
    g = exponent
    return math.sqrt((g + 1) / (g + 3)) / (g + 2)


def exponent_of(std: float) -> float:
    """Exponent gamma of the power-function profile of relative width ``std``, the inverse of `power_std`.

    >>> round(exponent_of(0.1), 2), round(exponent_of(0.05), 2)
    (6.94, 16.97)
    """
    if not 0 < std <= MAX_POWER_STD:
        raise UsageError(
            f"power-function average: the relative width must be above 0 and at most {MAX_POWER_STD:.4f} "
            f"(the mean of all weights), got {std}; published values are 0.05 and 0.1"
        )
    return _exponent(std)


@functools.cache
def _exponent(std: float) -> float:
    # power_std falls from gamma = 0 on, so bisection in ln(1 + gamma) cannot miss; no root finder is needed.
    low, high = 0.0, math.log1p(2 / std)
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if power_std(math.expm1(middle)) > std else (low, middle)
    return math.expm1(0.5 * (low + high))


class Profile(Protocol):
    """How much an average keeps of itself at each step."""

    def decay(self, images: int, batch: int) -> float:
        """Weight of the old average in the step of ``batch`` images that brings the count to ``images``."""


@dataclass(frozen=True)
class HalfLife:
    """Exponential moving average of half-life ``min(half_life, ramp * images seen)`` images."""

    half_life: float
    ramp: float

    def decay(self, images: int, batch: int) -> float:
        """Weight of the old average."""
        return ema_decay(images, batch, self.half_life, self.ramp)


@dataclass(frozen=True)
class Power:
    """Average whose weights' share grows as t^gamma, gamma = ``exponent_of(std)`` (arXiv 2312.02696).

    ``beta(t) = (1 - B / t)^(gamma + 1)``. The products of beta telescope: after T images the weights of the
    step from t - B to t count ``(t^(gamma+1) - (t-B)^(gamma+1)) / T^(gamma+1)``, which is the integral of the
    continuous profile over that step. So the average is exact for weights that are constant within a step,
    whatever the batch, and the initial weights count nothing.
    """

    std: float

    def __post_init__(self) -> None:
        exponent_of(self.std)

    @property
    def exponent(self) -> float:
        """Exponent gamma of the profile."""
        return exponent_of(self.std)

    def decay(self, images: int, batch: int) -> float:
        """Weight of the old average."""
        return float(max(0.0, 1.0 - batch / images) ** (self.exponent + 1))


@dataclass(frozen=True)
class Average:
    """An averaged network: which network it follows, and with which profile."""

    of: str
    profile: Profile


def profiles(
    half_life: float, ramp: float, half_lives: Iterable[float] = (), powers: Iterable[float] = ()
) -> dict[str, Profile]:
    """Profiles by the names of their tracks: the main one ``ema``, ``ema-<half life>``, ``ema-power<std>``.

    >>> list(profiles(8000, 0.05, half_lives=[2000], powers=[0.05, 0.1]))
    ['ema', 'ema-2000', 'ema-power0.05', 'ema-power0.1']
    """
    out: dict[str, Profile] = {"ema": HalfLife(half_life, ramp)}
    more: list[HalfLife | Power] = [HalfLife(images, ramp) for images in half_lives]
    more += [Power(std) for std in powers]
    for profile in more:
        name = track_name(profile)
        if name in out:
            raise UsageError(f"averages: {name!r} is asked for twice; name each half-life and width once")
        out[name] = profile
    return out


def track_name(profile: HalfLife | Power) -> str:
    """Name of an additional track, from which files of it are named."""
    return f"ema-power{profile.std!r}" if isinstance(profile, Power) else f"ema-{profile.half_life:.0f}"


def tracked(
    network: nn.Module, profiles: Mapping[str, Profile], of: str = "net"
) -> tuple[dict[str, nn.Module], dict[str, Average]]:
    """Copies of ``network`` and the averages they are, both by the names of ``profiles``.

    ``of`` is the name under which a :class:`~featlens_trainers.Training` holds the network that they follow.

    >>> networks, averages = tracked(nn.Linear(2, 2), profiles(8000, 0.05, powers=[0.1]))
    >>> list(networks), averages["ema-power0.1"].profile
    (['ema', 'ema-power0.1'], Power(std=0.1))
    """
    networks: dict[str, nn.Module] = {name: ema_copy(network) for name in profiles}
    return networks, {name: Average(of, profile) for name, profile in profiles.items()}
