"""Recipes: tensors that keep one property of a given tensor and are random otherwise; all pure functions.

Every draw is made on the CPU by the generator that is given, so that a recipe gives the same values for
tensors on any device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from featlens.seeds import derive

__all__ = ["interpolated", "moments", "near_zero", "permuted", "spectrum", "stream", "xavier"]

NEAR_ZERO = 0.01
"""A weight is near zero if its root mean square is below this share of Xavier's."""


def stream(seed: int, recipe: str, name: str) -> torch.Generator:
    """CPU generator of one recipe on one tensor: rules on one tensor never change the draws of another."""
    return torch.Generator().manual_seed(derive(seed, recipe, name))


def permuted(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """The values of ``tensor`` in random order, of its shape: keeps every value, loses its place.

    >>> permuted(torch.tensor([1.0, 2.0, 3.0]), torch.Generator().manual_seed(0)).sort().values
    tensor([1., 2., 3.])
    """
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    return tensor.flatten()[order].reshape(tensor.shape)


def moments(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Normal draws with the mean and standard deviation of ``tensor``, both met exactly but for rounding.

    The draws are standardised: a plain draw would miss the moments of small tensors. The standard deviation
    is that of the values themselves (divided by their number). What is not floating point is returned as is.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor.clone()
    values = tensor.double().cpu()
    draw = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    spread = draw.std(correction=0)
    draw = (draw - draw.mean()) / spread if tensor.numel() > 1 else torch.zeros_like(draw)
    return (values.mean() + values.std(correction=0) * draw).to(tensor)


def spectrum(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A matrix with the singular values of ``tensor`` and random orthogonal factors (Haar measure).

    A convolution's kernel counts as out x (in * k * k). A tensor with fewer than two axes has its norm as the
    only singular value; it is permuted, which keeps that and keeps gains of norms near their mean. What is
    not floating point is returned as is.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor.clone()
    if tensor.ndim < 2:
        return permuted(tensor, generator)
    matrix = tensor.double().cpu().flatten(1)
    values = torch.linalg.svdvals(matrix)
    left, right = (_orthonormal(side, len(values), generator) for side in matrix.shape)
    out: Tensor = ((left * values) @ right.T).reshape(tensor.shape).to(tensor)
    return out


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """(rows, columns) float64 with orthonormal columns, of Haar measure."""
    basis, triangle = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))
    # Without the signs the factor of a QR decomposition is not of Haar measure (arXiv math-ph/0609050).
    out: Tensor = basis * triangle.diagonal().sign()
    return out


def interpolated(random: Tensor, tensor: Tensor, amount: float) -> Tensor:
    """``(1 - amount) * random + amount * tensor``; exactly one of them at 0 and 1.

    What is not floating point is taken from ``tensor``.
    """
    if not random.is_floating_point():
        return tensor.clone()
    out: Tensor = torch.lerp(random, tensor.to(random), amount)
    return out


def near_zero(tensor: Tensor) -> bool:
    """Whether a weight of two or more axes starts as almost nothing, as last layers of blocks often do."""
    if tensor.ndim < 2 or not tensor.is_floating_point() or not tensor.numel():
        return False
    return float(tensor.double().square().mean().sqrt()) < NEAR_ZERO * _xavier_std(tensor)


def xavier(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Xavier-uniform draws of the shape of ``tensor``, (out, in, ...): variance 2 / (fan in + fan out)."""
    bound = math.sqrt(3.0) * _xavier_std(tensor)
    draw = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    return ((2 * draw - 1) * bound).to(tensor)


def _xavier_std(tensor: Tensor) -> float:
    kernel = math.prod(tensor.shape[2:])
    return math.sqrt(2.0 / (kernel * (tensor.shape[0] + tensor.shape[1])))
