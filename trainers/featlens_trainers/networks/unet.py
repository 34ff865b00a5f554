"""The EDM U-Net of the DDPM++ family, with the released names (arXiv 2206.00364, appendix F.3, table 7).

Names are coordinates: ``enc.16x16_block0`` is the first block at 16 x 16 pixels on the way down,
``dec.8x8_up`` the block that brings the decoder to 8 x 8. One class serves 8 x 8 digits and the 55.73
M-parameter CIFAR network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from featlens.errors import UsageError
from featlens_trainers.networks.layers import NEAR_ZERO, Block, conv, group_norm, linear, positional_embedding

__all__ = ["UNet", "UNetConfig", "build_encoder"]


@dataclass(frozen=True)
class UNetConfig:
    """Size of a U-Net.

    Attributes
    ----------
    resolution
        Height and width of the images in pixels.
    in_channels, out_channels
        Channels of the image.
    channels
        Width after the input convolution; level ``i`` has ``channels * channel_mult[i]``.
    channel_mult
        One factor a level; each level halves the resolution.
    blocks
        Residual blocks a level in the encoder (the decoder has one more).
    attention_resolutions
        Resolutions whose encoder blocks attend; in the decoder the last block of such a level does.
    labels
        Number of classes, 0 for an unconditional network.
    augment_labels
        Number of augmentation labels, 0 for none.
    heads, dropout
        Attention heads; dropout probability.
    """

    resolution: int = 8
    in_channels: int = 1
    out_channels: int = 1
    channels: int = 32
    channel_mult: tuple[int, ...] = (1, 1)
    blocks: int = 1
    attention_resolutions: tuple[int, ...] = (4,)
    labels: int = 0
    augment_labels: int = 0
    heads: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.channel_mult or min(self.channel_mult) < 1:
            raise UsageError(
                f"network: channel_mult must be one or more factors above 0, got {list(self.channel_mult)}"
            )
        halvings = len(self.channel_mult) - 1
        if self.resolution < 2**halvings or self.resolution % 2**halvings:
            raise UsageError(
                f"network: resolution {self.resolution} cannot be halved {halvings} times "
                f"(channel_mult {list(self.channel_mult)}); use fewer levels or another resolution"
            )
        for name in ("in_channels", "out_channels", "channels", "blocks", "heads"):
            if getattr(self, name) < 1:
                raise UsageError(f"network: {name} must be at least 1, got {getattr(self, name)}")
        if self.channels % 4:
            raise UsageError(f"network: channels must be a multiple of 4 (group norm), got {self.channels}")
        for name in ("labels", "augment_labels"):
            if getattr(self, name) < 0:
                raise UsageError(f"network: {name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"network: dropout must be at least 0 and below 1, got {self.dropout}")
        coarsest = self.resolution >> halvings
        for resolution, channels, attends in self.levels():
            if (attends or resolution == coarsest) and channels % self.heads:
                raise UsageError(
                    f"network: {channels} channels at resolution {resolution} do not divide into "
                    f"{self.heads} attention heads; choose a divisor"
                )

    @property
    def embedding(self) -> int:
        """Width E of the noise embedding."""
        return 4 * self.channels

    def levels(self) -> Iterator[tuple[int, int, bool]]:
        """Yield (resolution, channels, attends) of each level, finest first."""
        for level, factor in enumerate(self.channel_mult):
            resolution = self.resolution >> level
            yield resolution, self.channels * factor, resolution in self.attention_resolutions


def build_encoder(config: UNetConfig) -> tuple[nn.ModuleDict, list[int]]:
    """Encoder modules by released name, in order of execution, and the channels of each output."""
    encoder = nn.ModuleDict()
    widths: list[int] = []
    width = config.in_channels
    for level, (resolution, channels, attends) in enumerate(config.levels()):
        at = f"{resolution}x{resolution}"
        if level == 0:
            encoder[f"{at}_conv"] = conv(width, config.channels, 3)
            width = config.channels
        else:
            encoder[f"{at}_down"] = Block(
                width, width, config.embedding, resample="down", dropout=config.dropout
            )
        widths.append(width)
        for index in range(config.blocks):
            encoder[f"{at}_block{index}"] = Block(
                width,
                channels,
                config.embedding,
                attention=attends,
                heads=config.heads,
                dropout=config.dropout,
            )
            width = channels
            widths.append(width)
    return encoder, widths


def _build_decoder(config: UNetConfig, widths: list[int]) -> nn.ModuleDict:
    decoder = nn.ModuleDict()
    skips = list(widths)
    width = skips[-1]
    options = {"heads": config.heads, "dropout": config.dropout}
    levels = list(config.levels())
    for level, (resolution, channels, attends) in reversed(list(enumerate(levels))):
        at = f"{resolution}x{resolution}"
        if level == len(levels) - 1:
            decoder[f"{at}_in0"] = Block(width, width, config.embedding, attention=True, **options)  # type: ignore[arg-type]
            decoder[f"{at}_in1"] = Block(width, width, config.embedding, **options)  # type: ignore[arg-type]
        else:
            decoder[f"{at}_up"] = Block(width, width, config.embedding, resample="up", dropout=config.dropout)
        for index in range(config.blocks + 1):
            decoder[f"{at}_block{index}"] = Block(
                width + skips.pop(),
                channels,
                config.embedding,
                attention=attends and index == config.blocks,
                **options,  # type: ignore[arg-type]
            )
            width = channels
    top = f"{config.resolution}x{config.resolution}"
    decoder[f"{top}_aux_norm"] = group_norm(width)
    decoder[f"{top}_aux_conv"] = conv(width, config.out_channels, 3, gain=NEAR_ZERO)
    return decoder


class NoiseEmbedding(nn.Module):
    """Mix-in of the embedding layers ``map_layer0/1``, ``map_label`` and ``map_augment``."""

    def _build_embedding(self, config: UNetConfig) -> None:
        self.map_label = linear(config.labels, config.channels) if config.labels else None
        augment = config.augment_labels
        self.map_augment = linear(augment, config.channels, bias=False) if augment else None
        self.map_layer0 = linear(config.channels, config.embedding)
        self.map_layer1 = linear(config.embedding, config.embedding)

    def embed(
        self, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """(B,) c_noise, (B, labels) one-hot, (B, augment_labels) -> (B, E)."""
        embedding = positional_embedding(c_noise, self.map_layer0.in_features)
        embedding = embedding.to(self.map_layer0.weight.dtype)
        if self.map_label is not None and labels is not None:
            scaled = labels.to(embedding.dtype) * self.map_label.in_features**0.5
            embedding = embedding + self.map_label(scaled)
        if self.map_augment is not None and augment_labels is not None:
            embedding = embedding + self.map_augment(augment_labels.to(embedding.dtype))
        embedding = functional.silu(self.map_layer0(embedding))
        out: Tensor = functional.silu(self.map_layer1(embedding))
        return out


class UNet(NoiseEmbedding):
    """Raw network F of EDM: (B, C, H, W) scaled image and (B,) c_noise -> (B, C, H, W).

    Preconditioning is not its business: see :class:`featlens.denoiser.EDMDenoiser`.

    Examples
    --------
    >>> import torch
    >>> network = UNet(UNetConfig(resolution=8, channels=16))
    >>> network(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self._build_embedding(config)
        self.enc, widths = build_encoder(config)
        self.dec = _build_decoder(config, widths)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Apply the network; ``labels`` (B, labels) one-hot, ``augment_labels`` (B, augment_labels)."""
        embedding = self.embed(c_noise, labels, augment_labels)
        skips: list[Tensor] = []
        for module in self.enc.values():
            x = module(x, embedding) if isinstance(module, Block) else module(x)
            skips.append(x)
        for name, module in self.dec.items():
            if name.endswith("_aux_norm"):
                x = functional.silu(module(x))
            elif not isinstance(module, Block):
                x = module(x)
            else:
                if "_block" in name:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = module(x, embedding)
        return x
