"""An f of one's own, the cap on growing weights, extreme log ratios, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from featlens.errors import FeatlensError, UsageError
from featlens_trainers.directions import CLIP, DIVERGENCES, Divergence, resolve_divergence

BUILT_IN_F = {
    "reverse_kl": lambda r: -torch.log(r),
    "forward_kl": lambda r: r * torch.log(r),
    "js": lambda r: r * torch.log(2 * r / (1 + r)) + torch.log(2 / (1 + r)),
    "softened_reverse_kl": lambda r: (1 + r) * torch.log((1 + r) / (2 * r)),
    "jeffreys": lambda r: (r - 1) * torch.log(r),
    "hellinger": lambda r: (torch.sqrt(r) - 1) ** 2,
}


def slope(entry: Divergence, h: Tensor) -> Tensor:
    leaf = h.clone().requires_grad_()
    (out,) = torch.autograd.grad(entry.surrogate(leaf).sum(), leaf)
    return out


# --- an f of one's own --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_textbook_f_gives_the_built_in_surrogate(name: str) -> None:
    own, built_in = Divergence.from_f("own", BUILT_IN_F[name]), DIVERGENCES[name]
    h = torch.linspace(-6, CLIP, 40, dtype=torch.float64)
    torch.testing.assert_close(own.weight(h), built_in.weight(h))
    torch.testing.assert_close(slope(own, h), slope(built_in, h))
    # Surrogates agree up to a constant.
    difference = own.surrogate(h) - built_in.surrogate(h)
    torch.testing.assert_close(difference, difference[0].expand(40))


@pytest.mark.parametrize(
    ("f", "weight"),
    [
        (lambda r: (r - 1) ** 2, lambda r: 2 * r**2),
        (lambda r: (r - 1) ** 2 / r, lambda r: 2 / r),
        (lambda r: r**1.5, lambda r: 0.75 * r**1.5),
        (lambda r: r**2 * 0 + (1 + r) * torch.log1p(r), lambda r: r**2 / (1 + r)),
    ],
)
def test_weights_of_other_f_by_hand(f, weight) -> None:
    entry = Divergence.from_f("own", f)
    h = torch.linspace(-4, CLIP, 29, dtype=torch.float64)
    torch.testing.assert_close(entry.weight(h), weight(h.exp()))
    torch.testing.assert_close(slope(entry, h), -weight(h.exp()))


def test_the_gradient_of_an_own_f_is_that_of_its_divergence() -> None:
    """Pearson's chi-squared of two Gaussians, integrated numerically, against the expected direction."""
    sigma, mean, step = 0.5, -0.2, 1e-4
    points, weights = np.polynomial.hermite_e.hermegauss(100)
    z, weight = torch.from_numpy(points), torch.from_numpy(weights / weights.sum())
    width = math.sqrt(0.9**2 + sigma**2)

    def h(x: Tensor, m: float) -> Tensor:
        data = 0.5**2 + sigma**2
        p, q = -((x - 0.3) ** 2) / (2 * data), -((x - m) ** 2) / (2 * width**2)
        return p - q + 0.5 * math.log(width**2 / data)

    def divergence(m: float) -> float:
        return float((weight * (h(m + width * z, m).exp() - 1) ** 2).sum())

    x = (mean + width * z).requires_grad_()
    entry = Divergence.from_f("chi_squared", lambda r: (r - 1) ** 2, clip=40.0)
    (gradient,) = torch.autograd.grad(entry.surrogate(h(x, mean)).sum(), x)
    expected = (divergence(mean + step) - divergence(mean - step)) / (2 * step)
    assert float((weight * gradient).sum()) == pytest.approx(expected, rel=1e-6)


def test_an_own_f_goes_on_in_a_line_beyond_its_bounds() -> None:
    entry = Divergence.from_f("own", lambda r: (r - 1) ** 2 / r, clip=2.0, floor=-2.0)
    h = torch.tensor([-50.0, -2.0, 0.0, 2.0, 50.0], dtype=torch.float64)
    edges = [2 * math.exp(2), 2 * math.exp(2), 2.0, 2 * math.exp(-2), 2 * math.exp(-2)]
    assert entry.weight(h).tolist() == pytest.approx(edges)
    assert (-slope(entry, h)).tolist() == pytest.approx(edges)
    inside, outside = entry.surrogate(torch.tensor([-2.0, -3.0], dtype=torch.float64)).tolist()
    assert outside - inside == pytest.approx(edges[0])


def test_an_own_f_by_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "losses.py"
    file.write_text(
        "import torch\ndef kl(r):\n    return r * torch.log(r)\ndef bad(r):\n    return r.nothing\n"
    )
    h = torch.linspace(-2, 5, 9)
    found = resolve_divergence(f"python:{file}:kl", clip=4.0)
    torch.testing.assert_close(found.weight(h), resolve_divergence("forward_kl", clip=4.0).weight(h))
    assert found.surrogate(h).dtype == torch.float32
    monkeypatch.chdir(tmp_path)
    torch.testing.assert_close(
        resolve_divergence("python:losses:kl").weight(h), DIVERGENCES["forward_kl"].weight(h)
    )
    with pytest.raises(UsageError, match="has no 'fisher': choose from kl, bad"):
        resolve_divergence("python:losses:fisher")
    with pytest.raises(FeatlensError, match="AttributeError"):
        resolve_divergence("python:losses:bad")
    with pytest.raises(UsageError, match="expected python:module:function"):
        resolve_divergence("python:losses")


# --- caps and extremes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIVERGENCES)
def test_weights_are_those_of_the_clip_beyond_it(name: str) -> None:
    h = torch.tensor([-3.0, 0.0, 1.5, 2.5, 60.0], dtype=torch.float64)
    capped, free = resolve_divergence(name, clip=2.0), resolve_divergence(name, clip=80.0)
    torch.testing.assert_close(capped.weight(h)[:3], free.weight(h)[:3])
    torch.testing.assert_close(slope(capped, h), -capped.weight(h))
    if name in ("forward_kl", "jeffreys", "hellinger"):
        at_clip = free.weight(torch.tensor([2.0], dtype=torch.float64)).expand(2)
        torch.testing.assert_close(capped.weight(h)[3:], at_clip)
    else:
        torch.testing.assert_close(capped.weight(h), free.weight(h))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*DIVERGENCES, "own"])
def test_extreme_log_ratios_give_finite_numbers(name: str, dtype: torch.dtype) -> None:
    entry = Divergence.from_f("own", lambda r: (r - 1) ** 2) if name == "own" else DIVERGENCES[name]
    h = torch.tensor([-1e4, -200.0, -88.0, 0.0, 88.0, 200.0, 1e4], dtype=dtype)
    for numbers in (entry.surrogate(h), entry.weight(h), slope(entry, h)):
        assert numbers.dtype == dtype
        assert bool(torch.isfinite(numbers).all())
    assert bool((entry.weight(h) >= 0).all())
    torch.testing.assert_close(slope(entry, h), -entry.weight(h))


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda r: -(r**2), "must be convex"),
        (lambda r: torch.sin(4 * r), "must be convex and twice differentiable"),
        (lambda r: 3 * r - 1, "a linear f measures nothing"),
        (lambda r: torch.ones_like(r), "a linear f measures nothing"),
        (lambda r: r.sum(), r"must return one number for each r, a tensor \(65,\), got \(\)"),
        (lambda r: 1.0, "got a float; write it with torch"),
        (lambda r: (r.detach() - 1) ** 2, "leaves torch's graph"),
    ],
)
def test_what_is_no_divergence_is_refused(f, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Divergence.from_f("own", f)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown divergence 'reverse_lk': did you mean 'reverse_kl'"):
        resolve_divergence("reverse_lk")
    with pytest.raises(UsageError, match="floor must be below clip"):
        Divergence.from_f("own", lambda r: r**2, clip=-40.0)
