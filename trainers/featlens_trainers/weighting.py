"""w(sigma): how much each noise level counts in the sum over sigma of w(sigma) D_f(p_sigma || q_sigma).

``sigma^2 grad_x h = D_data - D_student``, so with ``w = sigma^2`` the reverse KL's gradient in image space is
a plain difference of denoisers: image-space weight 1. Therefore all weightings are computed as the
image-space weight ``w / sigma^2``. Notation: s = sigma_data; x0 a generated image, D the teacher's estimate
of it from the noised image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from featlens.errors import UsageError, choices_hint

__all__ = ["WEIGHTINGS", "Weighting", "image_distance", "own_function", "resolve_weighting"]

ImageWeight = Callable[[Tensor, float, Tensor | None], Tensor]


@dataclass(frozen=True)
class Weighting:
    """One choice of w(sigma).

    Attributes
    ----------
    name, formula
        What the settings call it, and w(sigma).
    image_weight
        (B,) sigma, sigma_data and (B,) distance -> (B,) w / sigma^2. The distance is None for directions
        without a teacher, see :func:`image_distance`.
    """

    name: str
    formula: str
    image_weight: ImageWeight


def image_distance(x0: Tensor, estimate: Tensor) -> Tensor:
    """(B, ...), (B, ...) -> (B,) mean over pixels of |x0 - D|, kept away from 0."""
    return (x0 - estimate).abs().flatten(1).mean(1).clamp(min=1e-5)


def _normalised(sigma: Tensor, sigma_data: float, distance: Tensor | None) -> Tensor:
    if distance is None:
        raise UsageError(
            "the weighting 'normalised' divides by the distance to the teacher's estimate, and this "
            "direction has no teacher; choose another weighting, such as 'sigma_squared'"
        )
    return 1 / distance


WEIGHTINGS: dict[str, Weighting] = {
    entry.name: entry
    for entry in (
        Weighting("sigma_squared", "sigma^2", lambda sigma, s, _: torch.ones_like(sigma)),
        Weighting("sigma", "sigma", lambda sigma, s, _: 1 / sigma),
        Weighting("one", "1", lambda sigma, s, _: sigma**-2),
        Weighting("snr", "s^2 / sigma^2", lambda sigma, s, _: s**2 * sigma**-4),
        Weighting("signal", "sigma^2 s^2 / (sigma^2 + s^2)", lambda sigma, s, _: s**2 / (sigma**2 + s**2)),
        Weighting("edm", "(sigma^2 + s^2) / s^2", lambda sigma, s, _: (sigma**2 + s**2) / (sigma * s) ** 2),
        Weighting("normalised", "sigma^2 / mean|x0 - D|", _normalised),
    )
}


def resolve_weighting(name: str) -> Weighting:
    """Weighting by its name, or by ``python:module:function`` of a function (B,) sigma -> (B,) w(sigma).

    >>> resolve_weighting("edm").formula
    '(sigma^2 + s^2) / s^2'
    """
    if name.startswith("python:"):
        function = own_function(name, "a function of sigma")
        return Weighting(name, name, lambda sigma, s, _: _checked(function(sigma), sigma, name) * sigma**-2)
    if name not in WEIGHTINGS:
        raise UsageError(f"unknown weighting {name!r}: {choices_hint(name, WEIGHTINGS)}")
    return WEIGHTINGS[name]


def own_function(name: str, expected: str) -> Callable[..., object]:
    """The user's function at ``python:module:function`` or ``python:./file.py:function``."""
    from featlens.python_models import python_function

    found = python_function(name.removeprefix("python:"), expected)
    if found is None:
        raise UsageError(f"{name}: expected python:module:function or python:./file.py:function")
    return found


def _checked(weight: object, sigma: Tensor, name: str) -> Tensor:
    if not isinstance(weight, Tensor) or weight.shape != sigma.shape:
        got = str(tuple(weight.shape)) if isinstance(weight, Tensor) else f"a {type(weight).__name__}"
        raise UsageError(
            f"the weighting {name}: expected a tensor {tuple(sigma.shape)}, one weight for each sigma, "
            f"got {got}; write it with torch's functions"
        )
    return weight
