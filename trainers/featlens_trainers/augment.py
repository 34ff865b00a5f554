"""Augmentation that tells the network what it did (arXiv 2206.00364, appendix F.2, table 6).

Each image goes through one affine map, composed in this order, each part drawn with its own probability:

| transformation | parameters | labels |
|---|---|---|
| mirror left to right | a0 in {0, 1} | a0 |
| mirror top to bottom | a1 in {0, 1} | a1 |
| scaling by A^a2 | a2 ~ N(0, 1) | a2 |
| rotation by -a3 | a3 uniform in (-pi, pi) | cos a3 - 1, sin a3 |
| stretch by A^a5 along a4, by A^-a5 across | a4 uniform like a3, a5 ~ N(0, 1) | a5 cos a4, a5 sin a4 |
| shift by a6 / 8 of the width, a7 / 8 of the height | a6, a7 ~ N(0, 1) | a6, a7 |

with A = 2^0.2. A transformation that is left out has parameters 0 and labels 0, so zero labels, which is what
sampling passes, ask for images as they are. Coordinates: x to the right and y down, both from the centre; the
matrix of a rotation by b is ((cos b, -sin b), (sin b, cos b)) in them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from featlens.errors import UsageError

__all__ = ["AUGMENT_LABELS", "augment", "augmentation_labels", "draw_augmentation", "warp"]

AUGMENT_LABELS = 9
"""Numbers by which a network is told of the augmentation."""

PARAMETERS = 8
STEP = 2**0.2
SHIFT = 1 / 8
MARGIN = 2
"""Pixels beyond the border that the resampling filters reach."""


def augment(
    images: Tensor, probability: float, numbers: torch.Generator, flip: float | None = None
) -> tuple[Tensor, Tensor]:
    """Augmented images (B, C, H, W) and their labels (B, 9).

    Parameters
    ----------
    images
        (B, C, H, W), square or not.
    probability
        Of each of the six transformations.
    numbers
        Generator on the CPU.
    flip
        Probability of the first transformation alone, where it differs.

    Examples
    --------
    >>> images = torch.rand(4, 3, 8, 8)
    >>> same, labels = augment(images, 0.0, torch.Generator().manual_seed(0))
    >>> torch.equal(same, images), labels.shape, bool(labels.any())
    (True, torch.Size([4, 9]), False)
    """
    parameters = draw_augmentation(len(images), probability, numbers, flip)
    return warp(images, parameters), augmentation_labels(parameters).to(images.device)


def draw_augmentation(
    batch: int, probability: float, numbers: torch.Generator, flip: float | None = None
) -> Tensor:
    """Parameters a0 .. a7 of each image, (B, 8) float32 on the CPU; 0 where a transformation is left out."""
    for name, chance in (("probability", probability), ("flip", flip)):
        if chance is not None and not 0 <= chance <= 1:
            raise UsageError(f"augmentation: {name} must be from 0 to 1, got {chance}")
    chances = torch.full((6,), float(probability))
    chances[0] = probability if flip is None else flip
    enabled = torch.rand(batch, 6, generator=numbers) < chances
    mirrored = torch.randint(2, (batch, 2), generator=numbers).float()
    angles = (2 * torch.rand(batch, 2, generator=numbers) - 1) * math.pi
    normal = torch.randn(batch, 4, generator=numbers)
    out = torch.empty(batch, PARAMETERS)
    out[:, :2] = mirrored * enabled[:, :2]
    out[:, 2] = normal[:, 0] * enabled[:, 2]
    out[:, 3] = angles[:, 0] * enabled[:, 3]
    out[:, 4] = angles[:, 1] * enabled[:, 4]
    out[:, 5] = normal[:, 1] * enabled[:, 4]
    out[:, 6:] = normal[:, 2:] * enabled[:, 5:]
    return out


def augmentation_labels(parameters: Tensor) -> Tensor:
    """What the network is told of :func:`draw_augmentation`'s parameters, (B, 8) -> (B, 9)."""
    a = parameters.unbind(1)
    return torch.stack(
        [a[0], a[1], a[2], a[3].cos() - 1, a[3].sin(), a[5] * a[4].cos(), a[5] * a[4].sin(), a[6], a[7]], 1
    )


def warp(images: Tensor, parameters: Tensor) -> Tensor:
    """Images (B, C, H, W) under the affine maps of ``parameters`` (B, 8), in one resampling.

    The plane around an image is its mirror image. Images are sampled from a grid twice as fine as their own
    onto one twice as fine as the result's, with cubic filters between them, so that shrinking to half does
    not alias. Images that are only mirrored, or nothing at all, are not resampled.
    """
    parameters = parameters.to(torch.float32).cpu()
    out = images
    for parameter, dimension in ((0, -1), (1, -2)):
        mirrored = _column(parameters[:, parameter] != 0, images)
        out = torch.where(mirrored, out.flip(dimension), out)
    moved = parameters[:, 2:].ne(0).any(1)
    if bool(moved.any()):
        out = out.clone()
        rows = moved.nonzero()[:, 0].to(images.device)
        out[rows] = _resampled(out[rows], _inverse(parameters[moved], images.shape[-2:]).to(images))
    return out


def _column(mask: Tensor, images: Tensor) -> Tensor:
    return mask.to(images.device)[:, None, None, None]


def _inverse(parameters: Tensor, size: torch.Size) -> Tensor:
    """(B, 2, 3) matrices from places in the result to places in the image, in pixels from the centre."""
    a = parameters.double()
    height, width = size
    turn, along = _rotation(-a[:, 3]), _rotation(a[:, 4])
    stretch = torch.diag_embed(torch.stack([STEP ** a[:, 5], STEP ** -a[:, 5]], 1))
    linear = along @ stretch @ along.mT @ turn * (STEP ** a[:, 2])[:, None, None]
    shift = SHIFT * torch.stack([a[:, 6] * width, a[:, 7] * height], 1)
    back = torch.linalg.inv(linear)
    return torch.cat([back, -back @ shift[:, :, None]], 2)


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], 1).reshape(-1, 2, 2)


def _resampled(images: Tensor, inverse: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    fine = _zoomed(_mirrored_border(images), 2.0)[:, :, 2 * MARGIN : -2 * MARGIN, 2 * MARGIN : -2 * MARGIN]
    # Places of the finer grid, a margin included, in pixels of the image from its centre.
    x, y = (
        (torch.arange(2 * (side + 2 * MARGIN), device=images.device, dtype=images.dtype) + 0.5) / 2
        - MARGIN
        - side / 2
        for side in (width, height)
    )
    # Term by term and not as a matrix product, whose rounding may depend on the batch.
    to_x, to_y = inverse[:, :, :, None, None].unbind(1)
    found = [m[:, 0] * x + m[:, 1] * y[:, None] + m[:, 2] for m in (to_x, to_y)]
    found = [at / (side / 2) for at, side in zip(found, (width, height), strict=True)]
    warped = functional.grid_sample(
        fine, torch.stack(found, 3), mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return _zoomed(warped, 0.5)[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]


def _zoomed(images: Tensor, factor: float) -> Tensor:
    """Images on a grid finer by ``factor``, through Keys' cubic filter (a = -1/2), widened if below 1."""
    return functional.interpolate(
        images, scale_factor=factor, mode="bicubic", align_corners=False, antialias=True
    )


def _mirrored_border(images: Tensor) -> Tensor:
    """Images with MARGIN more pixels on each side, mirrored about the border itself."""
    for dimension in (2, 3):
        before = images.narrow(dimension, 0, MARGIN).flip(dimension)
        after = images.narrow(dimension, images.shape[dimension] - MARGIN, MARGIN).flip(dimension)
        images = torch.cat([before, images, after], dimension)
    return images
