"""A diffusion transformer with adaptive norms that start as nothing (arXiv 2212.09748, section 3.2).

Names are coordinates, as in the U-Nets: ``enc.patch`` turns patches into tokens, ``enc.block0`` is the first
block; blocks of the second half are ``dec.block2`` and so on, counted through; ``dec.out`` turns tokens into
patches. Notation: B batch, T tokens, D width of a token, E = D width of the noise embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from featlens_trainers.networks.embedding import NoiseEmbedding, encode
from featlens_trainers.networks.layers import attention, linear
from featlens_trainers.settings.network import DiTConfig

__all__ = ["DiT", "build_token_encoder", "positions"]


def positions(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column of each token, (side * side, ``width``) float32, row by row.

    A quarter of the width each: sines of the row, its cosines, sines of the column, its cosines, with
    frequencies from 1 down towards 1e-4.

    Examples
    --------
    >>> positions(2, 8).shape
    torch.Size([4, 8])
    """
    count = width // 4
    frequency = torch.pow(1e-4, torch.arange(count, dtype=torch.float32) / count)
    at = torch.arange(side, dtype=torch.float32)
    row, column = torch.meshgrid(at, at, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (row, column)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)


class Patches(nn.Module):
    """Patches as tokens: (B, C, H, W) -> (B, T, D), with their positions."""

    where: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.width, config.patch, stride=config.patch)
        # As a linear layer of the flattened patch would start.
        nn.init.xavier_uniform_(self.proj.weight.data.view(config.width, -1))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]
        side = config.resolution // config.patch
        # A function of the size, and so no part of the state.
        self.register_buffer("where", positions(side, config.width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T, D)."""
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2) + self.where
        return out


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer network, each behind a norm that the noise embedding modulates.

    ``affine`` gives shift, scale and gate of the attention, then those of the two layers; it starts from
    zero, so a fresh block passes its input on.
    """

    conditioned = True
    """Called with the noise embedding."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.dropout = config.dropout
        self.affine = linear(config.embedding, 6 * width, gain=0.0)
        self.norm0 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.qkv = linear(width, 3 * width)
        self.proj = linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp0 = linear(width, config.mlp_ratio * width)
        self.mlp1 = linear(config.mlp_ratio * width, width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, T, D) and (B, E) -> (B, T, D)."""
        told = self.affine(embedding)[:, None, :].chunk(6, dim=2)
        mixed = self._attended(_modulated(self.norm0(x), told[0], told[1]))
        x = x + told[2] * functional.dropout(mixed, self.dropout, self.training)
        hidden = functional.gelu(self.mlp0(_modulated(self.norm1(x), told[3], told[4])), approximate="tanh")
        out: Tensor = x + told[5] * functional.dropout(self.mlp1(hidden), self.dropout, self.training)
        return out

    def _attended(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        # Rows of the weight: all queries, all keys, all values, each head by head.
        packed = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.proj(attention(query, key, value).transpose(1, 2).reshape(batch, tokens, width))
        return out


class Output(nn.Module):
    """Tokens as patches, behind a modulated norm; starts from zero."""

    conditioned = True
    """Called with the noise embedding."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.affine = linear(config.embedding, 2 * config.width, gain=0.0)
        self.norm = nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=False)
        self.linear = linear(config.width, config.patch**2 * config.out_channels, gain=0.0)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, T, D) and (B, E) -> (B, T, C * patch * patch)."""
        shift, scale = self.affine(embedding)[:, None, :].chunk(2, dim=2)
        out: Tensor = self.linear(_modulated(self.norm(x), shift, scale))
        return out


def build_token_encoder(config: DiTConfig) -> nn.ModuleDict:
    """The patches and the first half of the blocks, by name, in order of execution."""
    encoder = nn.ModuleDict({"patch": Patches(config)})
    for index in range(config.encoder_depth):
        encoder[f"block{index}"] = TransformerBlock(config)
    return encoder


class DiT(NoiseEmbedding):
    """Raw network F, called as :class:`UNet`: (B, C, H, W) scaled image and (B,) c_noise -> (B, C, H, W).

    Examples
    --------
    >>> import torch
    >>> from featlens_trainers import DiTConfig
    >>> network = DiT(DiTConfig(resolution=8, patch=2, width=32))
    >>> network(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self._build_embedding(config)
        self.enc = build_token_encoder(config)
        self.dec = nn.ModuleDict()
        for index in range(config.encoder_depth, config.depth):
            self.dec[f"block{index}"] = TransformerBlock(config)
        self.dec["out"] = Output(config)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Apply the network; ``labels`` (B, labels) one-hot, ``augment_labels`` (B, augment_labels)."""
        embedding = self.embed(c_noise, labels, augment_labels)
        return self.decode(encode(self.enc, x, embedding), embedding)

    def decode(self, encoded: list[Tensor], embedding: Tensor) -> Tensor:
        """Outputs of the encoder, of which the last is used, and (B, E) -> (B, C, H, W)."""
        x = encoded[-1]
        for module in self.dec.values():
            x = module(x, embedding)
        size, patch = self.config.resolution, self.config.patch
        side = size // patch
        # Of each patch: row, column, channel, row and column within; rows go with rows, columns with columns.
        x = x.reshape(len(x), side, side, self.config.out_channels, patch, patch)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(len(x), self.config.out_channels, size, size)
