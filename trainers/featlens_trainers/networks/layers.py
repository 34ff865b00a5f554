"""Layers of the U-Nets of the DDPM++ and ADM families (arXiv 2206.00364, appendix F.3).

Notation: B batch, C channels, H and W height and width in pixels, E width of the noise embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "ADM",
    "DDPMPP",
    "NEAR_ZERO",
    "Block",
    "Family",
    "attention",
    "conv",
    "group_norm",
    "linear",
    "positional_embedding",
]

NEAR_ZERO = 1e-5
"""Gain of layers that start as almost nothing: the last convolution of each block and of the network."""

SKIP_SCALE = math.sqrt(0.5)


@dataclass(frozen=True)
class Family:
    """What two families of U-Nets do differently inside a block.

    Attributes
    ----------
    xavier
        Layers start from Xavier-uniform weights and zero biases, the last of a block from almost nothing;
        else from PyTorch's own (uniform, variance 1 / (3 fan in), bias too), the last of a block from zero.
    skip_scale
        Factor after each sum with a shortcut.
    eps
        Added to the variance in a group norm.
    adaptive
        Whether the noise embedding scales and shifts after the second norm, or is added before it.
    projected
        Whether the shortcut of a block that resamples has a convolution of its own in any case.
    """

    xavier: bool
    skip_scale: float
    eps: float
    adaptive: bool
    projected: bool

    def conv(self, channels_in: int, channels_out: int, kernel: int, part: str = "plain") -> nn.Conv2d:
        """Convolution that keeps the resolution; ``part`` is "plain", "attention" or "last"."""
        if self.xavier:
            gain = {"plain": 1.0, "attention": math.sqrt(0.2), "last": NEAR_ZERO}[part]
            return conv(channels_in, channels_out, kernel, gain)
        layer = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
        if part == "last":
            _zero_(layer)
        return layer

    def linear(self, width_in: int, width_out: int) -> nn.Linear:
        """Linear layer."""
        return linear(width_in, width_out) if self.xavier else nn.Linear(width_in, width_out)


DDPMPP = Family(xavier=True, skip_scale=SKIP_SCALE, eps=1e-6, adaptive=False, projected=True)
ADM = Family(xavier=False, skip_scale=1.0, eps=1e-5, adaptive=True, projected=False)


def _xavier_(layer: nn.Conv2d | nn.Linear, gain: float) -> None:
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _zero_(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def conv(channels_in: int, channels_out: int, kernel: int, gain: float = 1.0) -> nn.Conv2d:
    """Convolution that keeps the resolution, Xavier-uniform weights times ``gain``, zero bias."""
    layer = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
    _xavier_(layer, gain)
    return layer


def linear(width_in: int, width_out: int, bias: bool = True, gain: float = 1.0) -> nn.Linear:
    """Linear layer with Xavier-uniform weights times ``gain`` and zero bias."""
    layer = nn.Linear(width_in, width_out, bias=bias)
    _xavier_(layer, gain)
    return layer


def group_norm(channels: int, eps: float = 1e-6) -> nn.GroupNorm:
    """Group normalisation with at least four channels a group and at most 32 groups, as many as divide."""
    most = max(1, min(32, channels // 4))
    groups = next(count for count in range(most, 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels, eps=eps)


def positional_embedding(
    position: Tensor, width: int, endpoint: bool = True, cosines_first: bool = False
) -> Tensor:
    """Sinusoidal embedding, (B,) -> (B, ``width``): the sines, then the cosines, frequencies 1 .. 1e-4.

    The last frequency is 1e-4 with ``endpoint``, else the next one would be.
    """
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=position.device)
    exponent = exponent / max(half - 1 if endpoint else half, 1)
    angle = position.float()[:, None] * torch.pow(1e-4, exponent)[None, :]
    parts = [angle.cos(), angle.sin()] if cosines_first else [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention over positions, each (B, heads, positions, width of a head)."""
    return functional.scaled_dot_product_attention(query, key, value)


class Block(nn.Module):
    """Residual block with noise embedding, optional resampling and optional self-attention.

    Parameters
    ----------
    channels_in, channels_out, embedding
        Widths C_in, C_out and E.
    resample
        ``"up"`` doubles and ``"down"`` halves the resolution (box filter) before the first convolution.
    attention
        Whether self-attention over the H*W positions follows.
    heads, dropout
        Number of attention heads; dropout probability before the second convolution.
    family
        :data:`DDPMPP` or :data:`ADM`.
    """

    conditioned = True
    """Called with the noise embedding."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int,
        resample: str | None = None,
        attention: bool = False,
        heads: int = 1,
        dropout: float = 0.0,
        family: Family = DDPMPP,
    ) -> None:
        super().__init__()
        self.channels_out = channels_out
        self.resample = resample
        self.heads = heads
        self.dropout = dropout
        self.family = family
        self.norm0 = group_norm(channels_in, family.eps)
        self.conv0 = family.conv(channels_in, channels_out, 3)
        self.affine = family.linear(embedding, (2 if family.adaptive else 1) * channels_out)
        self.norm1 = group_norm(channels_out, family.eps)
        self.conv1 = family.conv(channels_out, channels_out, 3, "last")
        needs_skip = channels_in != channels_out or (resample is not None and family.projected)
        self.skip = family.conv(channels_in, channels_out, 1) if needs_skip else None
        self.attention = attention
        if attention:
            self.norm2 = group_norm(channels_out, family.eps)
            self.qkv = family.conv(channels_out, 3 * channels_out, 1, "attention")
            self.proj = family.conv(channels_out, channels_out, 1, "last")

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return functional.interpolate(x, scale_factor=2, mode="nearest")
        if self.resample == "down":
            return functional.avg_pool2d(x, 2)
        return x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C_in, H, W) and (B, E) -> (B, C_out, H', W')."""
        hidden = self.conv0(self._resampled(functional.silu(self.norm0(x))))
        told = self.affine(embedding)[:, :, None, None].to(hidden.dtype)
        if self.family.adaptive:
            scale, shift = told.chunk(2, dim=1)
            hidden = functional.silu(self.norm1(hidden) * (1 + scale) + shift)
        else:
            hidden = functional.silu(self.norm1(hidden + told))
        hidden = functional.dropout(hidden, self.dropout, self.training)
        shortcut = self._resampled(x)
        if self.skip is not None:
            shortcut = self.skip(shortcut)
        x = (self.conv1(hidden) + shortcut) * self.family.skip_scale
        return (x + self._attended(x)) * self.family.skip_scale if self.attention else x

    def _attended(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # The released layout interleaves: per head, channel by channel, the query, key and value rows.
        packed = self.qkv(self.norm2(x)).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        query, key, value = (part.transpose(2, 3) for part in packed.unbind(3))
        mixed = attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(2, 3).reshape(batch, channels, height, width))
        return out
