"""Divergences D_f(p || q) = E_q f(p / q), as the surrogates that a generator minimises.

Let ``h(x, sigma) = log p_sigma(x) - log q_sigma(x)`` be the log density ratio of data p to student q, both
convolved with N(0, sigma^2), and ``r = e^h``. With h frozen the gradient of D_f through a student sample is
that of a per-sample surrogate ``phi(h)``, ``-r^2 f''(r) grad h`` (arXiv 2502.08005; the algebra is checked on
Gaussians in tests/test_directions.py). Adding ``c (r - 1)`` to f changes neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from featlens.errors import UsageError, choices_hint
from featlens_trainers.weighting import own_function

__all__ = ["CLIP", "DIVERGENCES", "Divergence", "resolve_divergence"]

CLIP = 3.0
"""Log ratios above it do not raise a weight that grows with r any more (r = 20)."""

_FLOOR = -30.0


@dataclass(frozen=True)
class Divergence:
    """One member of the family: the surrogate the generator minimises, as a function of the log ratio h.

    Attributes
    ----------
    name, formula
        What the settings call it, and its definition for data p and student q.
    surrogate
        (B,) h -> (B,) phi(h), whose slope is minus ``weight``.
    weight
        (B,) h -> (B,) ``r^2 f''(r)``.
    """

    name: str
    formula: str
    surrogate: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]

    @classmethod
    def from_f(
        cls, name: str, f: Callable[[Tensor], Tensor], clip: float = CLIP, floor: float = _FLOOR
    ) -> Divergence:
        """Divergence of any convex f, twice differentiable on r > 0 and written with torch.

        ``f'`` and ``f''`` come from autograd, in float64. Below ``floor`` and above ``clip`` the weight of a
        log ratio is that of the bound, so that it stays finite whatever f does at 0 and at infinity.

        Raises
        ------
        UsageError
            f returns something else than one number for each r, is linear, or is not convex.

        Examples
        --------
        >>> chi_squared = Divergence.from_f("chi_squared", lambda r: (r - 1) ** 2)
        >>> [round(float(w), 3) for w in chi_squared.weight(torch.tensor([0.0, 1.0]))]
        [2.0, 14.778]
        """
        if not floor < clip:
            raise UsageError(f"divergence {name!r}: floor must be below clip, got {floor} and {clip}")

        def at(h: Tensor) -> tuple[Tensor, Tensor]:
            phi, weight = _derived(name, f, h.detach().double().clamp(floor, clip).exp())
            return phi.to(h.dtype), weight.to(h.dtype)

        def surrogate(h: Tensor) -> Tensor:
            phi, weight = at(h)
            # phi(h) = f(r) - r f'(r) has the slope -r^2 f''(r); beyond the bounds it goes on in a line.
            return phi - weight * (h - h.detach().clamp(floor, clip))

        _require_convex(name, f, floor, clip)
        return cls(name, "E_q f(p / q) with an f of your own", surrogate, lambda h: at(h)[1])


def _derived(name: str, f: Callable[[Tensor], Tensor], r: Tensor) -> tuple[Tensor, Tensor]:
    """``f(r) - r f'(r)`` and ``r^2 f''(r)``, each (B,) float64."""
    with torch.enable_grad():
        r = r.detach().requires_grad_(True)
        value: object = f(r)
        if not isinstance(value, Tensor) or value.shape != r.shape:
            got = str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise UsageError(
                f"divergence {name!r}: f must return one number for each r, a tensor {tuple(r.shape)}, "
                f"got {got}; write it with torch's functions"
            )
        first = _slope(value, r, create_graph=True)
        second = _slope(first, r, create_graph=False)
    r = r.detach()
    return (value - r * first).detach(), r**2 * second.detach()


def _slope(value: Tensor, r: Tensor, create_graph: bool) -> Tensor:
    """Derivative (B,) of (B,) values, each of its own r; 0 where r does not enter."""
    if not value.requires_grad:
        return torch.zeros_like(r)
    (slope,) = torch.autograd.grad(
        value.sum(), r, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return slope


def _require_convex(name: str, f: Callable[[Tensor], Tensor], floor: float, clip: float) -> None:
    """Refuse what is no divergence, at a place that can be named."""
    h = torch.linspace(max(floor, -8.0), min(clip, 8.0), 65, dtype=torch.float64)
    _, weight = _derived(name, f, h.exp())
    bad = (~torch.isfinite(weight) | (weight < -1e-9 * weight.abs().max())).nonzero()
    if len(bad):
        index = int(bad[0])
        raise UsageError(
            f"divergence {name!r}: f must be convex and twice differentiable for r > 0, but r^2 f''(r) is "
            f"{float(weight[index]):.3g} at r = {float(h[index].exp()):.3g}"
        )
    if not bool((weight > 0).any()):
        raise UsageError(
            f"divergence {name!r}: f must be curved, but f''(r) is 0 everywhere; a linear f measures nothing, "  # noqa: E501
            "and one that leaves torch's graph has no slope"
        )


def _capped_exp(h: Tensor, clip: float, rate: float = 1.0) -> Tensor:
    """``e^(rate h)``, going on in a line above ``clip``: the slope never exceeds that at ``clip``."""
    below = torch.exp(rate * h.clamp(max=clip))
    highest: Tensor = torch.exp(torch.as_tensor(rate * clip, dtype=h.dtype, device=h.device))
    return below + rate * highest * functional.relu(h - clip)


def _family(clip: float) -> dict[str, Divergence]:
    """The built-in divergences, weights capped where the log ratio exceeds ``clip``."""

    def grown(h: Tensor, rate: float = 1.0) -> Tensor:
        return torch.exp(rate * h.clamp(max=clip))

    entries = (
        Divergence("reverse_kl", "KL(q || p)", lambda h: -h, torch.ones_like),
        Divergence("forward_kl", "KL(p || q)", lambda h: -_capped_exp(h, clip), grown),
        Divergence(
            "js",
            "KL(p || m) + KL(q || m), m = (p + q) / 2",
            lambda h: -functional.softplus(h),
            torch.sigmoid,
        ),
        Divergence(
            "softened_reverse_kl",
            "2 KL(m || p), m = (p + q) / 2",
            lambda h: functional.softplus(-h),
            lambda h: torch.sigmoid(-h),
        ),
        Divergence(
            "jeffreys",
            "KL(p || q) + KL(q || p)",
            lambda h: -h - _capped_exp(h, clip),
            lambda h: 1 + grown(h),
        ),
        Divergence(
            "hellinger",
            "integral of (sqrt p - sqrt q)^2",
            lambda h: -_capped_exp(h, clip, 0.5),
            lambda h: 0.5 * grown(h, 0.5),
        ),
    )
    return {entry.name: entry for entry in entries}


DIVERGENCES: dict[str, Divergence] = _family(CLIP)


def resolve_divergence(name: str, clip: float = CLIP) -> Divergence:
    """Divergence by its name, or by ``python:module:function`` of a function f(r).

    >>> resolve_divergence("js").formula
    'KL(p || m) + KL(q || m), m = (p + q) / 2'
    """
    if name.startswith("python:"):
        function = own_function(name, "a function f(r)")
        return Divergence.from_f(name, function, clip)  # type: ignore[arg-type]
    if name not in DIVERGENCES:
        raise UsageError(f"unknown divergence {name!r}: {choices_hint(name, DIVERGENCES)}")
    return _family(clip)[name]
