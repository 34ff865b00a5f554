"""Layers of the EDM U-Net of the DDPM++ family (arXiv 2206.00364, appendix F.3).

Notation: B batch, C channels, H and W height and width in pixels, E width of the noise embedding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["NEAR_ZERO", "Block", "conv", "group_norm", "linear", "positional_embedding"]

NEAR_ZERO = 1e-5
"""Gain of layers that start as almost nothing: the last convolution of each block and of the network."""

SKIP_SCALE = math.sqrt(0.5)


def _xavier_(layer: nn.Conv2d | nn.Linear, gain: float) -> None:
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def conv(channels_in: int, channels_out: int, kernel: int, gain: float = 1.0) -> nn.Conv2d:
    """Convolution that keeps the resolution, Xavier-uniform weights times ``gain``, zero bias."""
    layer = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
    _xavier_(layer, gain)
    return layer


def linear(width_in: int, width_out: int, bias: bool = True) -> nn.Linear:
    """Linear layer with Xavier-uniform weights and zero bias."""
    layer = nn.Linear(width_in, width_out, bias=bias)
    _xavier_(layer, 1.0)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with at least four channels a group and at most 32 groups, as many as divide."""
    most = max(1, min(32, channels // 4))
    groups = next(count for count in range(most, 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


def positional_embedding(position: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding, (B,) -> (B, ``width``): the sines, then the cosines, frequencies 1 .. 1e-4."""
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=position.device) / max(half - 1, 1)
    angle = position.float()[:, None] * torch.pow(1e-4, exponent)[None, :]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


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
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int,
        resample: str | None = None,
        attention: bool = False,
        heads: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels_out = channels_out
        self.resample = resample
        self.heads = heads
        self.dropout = dropout
        self.norm0 = group_norm(channels_in)
        self.conv0 = conv(channels_in, channels_out, 3)
        self.affine = linear(embedding, channels_out)
        self.norm1 = group_norm(channels_out)
        self.conv1 = conv(channels_out, channels_out, 3, gain=NEAR_ZERO)
        needs_skip = channels_in != channels_out or resample is not None
        self.skip = conv(channels_in, channels_out, 1) if needs_skip else None
        self.attention = attention
        if attention:
            self.norm2 = group_norm(channels_out)
            self.qkv = conv(channels_out, 3 * channels_out, 1, gain=math.sqrt(0.2))
            self.proj = conv(channels_out, channels_out, 1, gain=NEAR_ZERO)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return functional.interpolate(x, scale_factor=2, mode="nearest")
        if self.resample == "down":
            return functional.avg_pool2d(x, 2)
        return x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C_in, H, W) and (B, E) -> (B, C_out, H', W')."""
        hidden = self.conv0(self._resampled(functional.silu(self.norm0(x))))
        hidden = hidden + self.affine(embedding)[:, :, None, None].to(hidden.dtype)
        hidden = functional.silu(self.norm1(hidden))
        hidden = functional.dropout(hidden, self.dropout, self.training)
        shortcut = self.skip(self._resampled(x)) if self.skip is not None else x
        x = (self.conv1(hidden) + shortcut) * SKIP_SCALE
        return (x + self._attended(x)) * SKIP_SCALE if self.attention else x

    def _attended(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # The released layout interleaves: per head, channel by channel, the query, key and value rows.
        packed = self.qkv(self.norm2(x)).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        query, key, value = (part.transpose(2, 3) for part in packed.unbind(3))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(2, 3).reshape(batch, channels, height, width))
        return out
