"""The EDM U-Nets of the DDPM++ and ADM families, with the released names.

Names are coordinates: ``enc.16x16_block0`` is the first block at 16 x 16 pixels on the way down,
``dec.8x8_up`` the block that brings the decoder to 8 x 8. One class serves 8 x 8 digits and the 55.73
M-parameter CIFAR network.

References
----------
DDPM++: arXiv 2206.00364, appendix F.3 and table 7. ADM: arXiv 2105.05233, section 3, and the same table 7.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from featlens_trainers.networks.embedding import NoiseEmbedding, encode
from featlens_trainers.networks.layers import ADM, DDPMPP, Block, Family, group_norm
from featlens_trainers.settings.network import ADMConfig, UNetConfig

__all__ = ["ADMNet", "UNet", "UNetConfig", "build_encoder"]


class _Blocks:
    """Blocks of one network: what all of them share."""

    def __init__(self, config: UNetConfig | ADMConfig) -> None:
        self.config = config
        self.family: Family = ADM if isinstance(config, ADMConfig) else DDPMPP

    def __call__(
        self, width: int, channels: int, attends: bool = False, resample: str | None = None
    ) -> Block:
        config = self.config
        heads = config.heads(channels) if isinstance(config, ADMConfig) else config.heads
        options: dict[str, Any] = {"resample": resample, "attention": attends}
        options |= {"heads": heads, "dropout": config.dropout, "family": self.family}
        return Block(width, channels, config.embedding, **options)


def build_encoder(config: UNetConfig | ADMConfig) -> tuple[nn.ModuleDict, list[int]]:
    """Encoder modules by released name, in order of execution, and the channels of each output."""
    block = _Blocks(config)
    encoder = nn.ModuleDict()
    widths: list[int] = []
    width = config.in_channels
    for level, (resolution, channels, attends) in enumerate(config.levels()):
        at = f"{resolution}x{resolution}"
        if level == 0:
            # ADM's input convolution is as wide as its first level, that of DDPM++ as the base width.
            first = channels if isinstance(config, ADMConfig) else config.channels
            encoder[f"{at}_conv"] = block.family.conv(width, first, 3)
            width = first
        else:
            encoder[f"{at}_down"] = block(width, width, resample="down")
        widths.append(width)
        for index in range(config.blocks):
            encoder[f"{at}_block{index}"] = block(width, channels, attends)
            width = channels
            widths.append(width)
    return encoder, widths


def _build_decoder(config: UNetConfig | ADMConfig, widths: list[int]) -> tuple[nn.ModuleDict, int]:
    """Decoder modules by released name, in order of execution, and the channels of the last output."""
    block = _Blocks(config)
    everywhere = isinstance(config, ADMConfig)
    decoder = nn.ModuleDict()
    skips = list(widths)
    width = skips[-1]
    levels = list(config.levels())
    for level, (resolution, channels, attends) in reversed(list(enumerate(levels))):
        at = f"{resolution}x{resolution}"
        if level == len(levels) - 1:
            decoder[f"{at}_in0"] = block(width, width, attends=True)
            decoder[f"{at}_in1"] = block(width, width)
        else:
            decoder[f"{at}_up"] = block(width, width, resample="up")
        for index in range(config.blocks + 1):
            last = everywhere or index == config.blocks
            decoder[f"{at}_block{index}"] = block(width + skips.pop(), channels, attends and last)
            width = channels
    return decoder, width


def _run_decoder(decoder: nn.ModuleDict, encoded: list[Tensor], embedding: Tensor) -> Tensor:
    """Run the blocks of a decoder on the encoder's outputs, which are used up on the way."""
    x = encoded[-1]
    for name, module in decoder.items():
        if not isinstance(module, Block):
            continue
        if "_block" in name:
            x = torch.cat([x, encoded.pop()], dim=1)
        x = module(x, embedding)
    return x


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
        self.dec, width = _build_decoder(config, widths)
        self._top = f"{config.resolution}x{config.resolution}"
        self.dec[f"{self._top}_aux_norm"] = group_norm(width)
        self.dec[f"{self._top}_aux_conv"] = DDPMPP.conv(width, config.out_channels, 3, "last")

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
        """Outputs of the encoder, which are used up, and (B, E) -> (B, C, H, W)."""
        x = _run_decoder(self.dec, encoded, embedding)
        x = functional.silu(self.dec[f"{self._top}_aux_norm"](x))
        out: Tensor = self.dec[f"{self._top}_aux_conv"](x)
        return out


class ADMNet(NoiseEmbedding):
    """Raw network F of the ADM family, called as :class:`UNet`; 295.9 M parameters at its defaults.

    Examples
    --------
    >>> import torch
    >>> from featlens_trainers import ADMConfig
    >>> network = ADMNet(ADMConfig(resolution=8, channels=16, channel_mult=(1, 2), blocks=1, labels=0))
    >>> network(torch.zeros(2, 3, 8, 8), torch.zeros(2)).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(self, config: ADMConfig) -> None:
        super().__init__()
        self.config = config
        self._build_embedding(config)
        self.enc, widths = build_encoder(config)
        self.dec, width = _build_decoder(config, widths)
        self.out_norm = group_norm(width, ADM.eps)
        self.out_conv = ADM.conv(width, config.out_channels, 3, "last")

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
        """Outputs of the encoder, which are used up, and (B, E) -> (B, C, H, W)."""
        x = _run_decoder(self.dec, encoded, embedding)
        out: Tensor = self.out_conv(functional.silu(self.out_norm(x)))
        return out
