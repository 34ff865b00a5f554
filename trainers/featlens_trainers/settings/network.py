"""Settings of a network: one dataclass a family, told apart by ``kind``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from featlens.errors import UsageError

__all__ = ["ADMConfig", "DiTConfig", "NetworkConfig", "UNetConfig"]

MOST = 2**16
"""No size is larger: a slip of the keyboard must not ask for all memory."""


def _image(default: int) -> Any:
    """Field that describes the images; it stays when another kind of network is chosen for them."""
    return field(default=default, metadata={"shared": True})


@dataclass(frozen=True)
class UNetConfig:
    """Size of a U-Net of the DDPM++ family (arXiv 2206.00364, table 7).

    Attributes
    ----------
    kind
        Always ``"unet"``.
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

    kind: str = field(default="unet", kw_only=True)
    resolution: int = _image(8)
    in_channels: int = _image(1)
    out_channels: int = _image(1)
    channels: int = 32
    channel_mult: tuple[int, ...] = (1, 1)
    blocks: int = 1
    attention_resolutions: tuple[int, ...] = (4,)
    labels: int = _image(0)
    augment_labels: int = _image(0)
    heads: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_common(self, UNetConfig)
        _at_least(self, 1, "heads")
        _check_levels(self)
        coarsest = self.resolution >> (len(self.channel_mult) - 1)
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

    @property
    def frequencies(self) -> int:
        """Width of the sinusoids that the noise embedding starts from."""
        return self.channels

    def levels(self) -> Iterator[tuple[int, int, bool]]:
        """Yield (resolution, channels, attends) of each level, finest first."""
        return _levels(self)


@dataclass(frozen=True)
class ADMConfig:
    """Size of a U-Net of the ADM family; the defaults are those of ImageNet at 64 x 64 pixels.

    As :class:`UNetConfig`, but every block of a level named in ``attention_resolutions`` attends, in the
    decoder too, with a head for each ``channels_per_head`` channels (arXiv 2105.05233, table 4;
    arXiv 2206.00364, table 7).

    Attributes
    ----------
    kind
        Always ``"adm"``.
    resolution, in_channels, out_channels, channels, channel_mult, blocks, attention_resolutions
        As in :class:`UNetConfig`.
    labels, augment_labels, dropout
        As in :class:`UNetConfig`.
    channels_per_head
        Least width of one attention head.
    """

    kind: str = field(default="adm", kw_only=True)
    resolution: int = _image(64)
    in_channels: int = _image(3)
    out_channels: int = _image(3)
    channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    labels: int = _image(1000)
    augment_labels: int = _image(0)
    channels_per_head: int = 64
    dropout: float = 0.1

    def __post_init__(self) -> None:
        _check_common(self, ADMConfig)
        _at_least(self, 1, "channels_per_head")
        _check_levels(self)

    @property
    def embedding(self) -> int:
        """Width E of the noise embedding."""
        return 4 * self.channels

    @property
    def frequencies(self) -> int:
        """Width of the sinusoids that the noise embedding starts from."""
        return self.channels

    def heads(self, channels: int) -> int:
        """Attention heads of a level of so many channels, fewer where they would not divide them."""
        most = max(1, channels // self.channels_per_head)
        return next(count for count in range(most, 0, -1) if channels % count == 0)

    def levels(self) -> Iterator[tuple[int, int, bool]]:
        """Yield (resolution, channels, attends) of each level, finest first."""
        return _levels(self)


@dataclass(frozen=True)
class DiTConfig:
    """Size of a diffusion transformer (arXiv 2212.09748, section 3).

    Attributes
    ----------
    kind
        Always ``"dit"``.
    resolution, in_channels, out_channels
        Size of the images.
    patch
        Height and width in pixels of the patch that becomes one token.
    width
        Width of a token, and of the noise embedding.
    depth
        Number of blocks; the first half, rounded up, is called the encoder.
    heads
        Attention heads.
    mlp_ratio
        Width of a block's hidden layer in units of ``width``.
    labels, augment_labels, dropout
        As in :class:`UNetConfig`; dropout acts on what a block adds.
    """

    kind: str = field(default="dit", kw_only=True)
    resolution: int = _image(8)
    in_channels: int = _image(1)
    out_channels: int = _image(1)
    patch: int = 2
    width: int = 64
    depth: int = 4
    heads: int = 4
    mlp_ratio: int = 4
    labels: int = _image(0)
    augment_labels: int = _image(0)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_common(self, DiTConfig)
        _at_least(self, 1, "resolution", "patch", "width", "depth", "heads", "mlp_ratio")
        if self.resolution % self.patch:
            raise UsageError(
                f"network: resolution {self.resolution} does not divide into patches of {self.patch} pixels; "
                "choose a divisor"
            )
        if self.width % 4:
            raise UsageError(
                f"network: width must be a multiple of 4 (sines and cosines of two axes), got {self.width}"
            )
        if self.width % self.heads:
            raise UsageError(
                f"network: width {self.width} does not divide into {self.heads} attention heads; choose a "
                "divisor"
            )

    @property
    def embedding(self) -> int:
        """Width E of the noise embedding."""
        return self.width

    @property
    def frequencies(self) -> int:
        """Width of the sinusoids that the noise embedding starts from."""
        return self.width

    @property
    def encoder_depth(self) -> int:
        """Blocks of the first half."""
        return (self.depth + 1) // 2


NetworkConfig: TypeAlias = UNetConfig | ADMConfig | DiTConfig
"""Settings of any network, told apart by ``kind``."""


def _at_least(config: NetworkConfig, least: int, *names: str) -> None:
    for name in names:
        if not least <= getattr(config, name) <= MOST:
            bound = f"at least {least}" if getattr(config, name) < least else f"at most {MOST}"
            raise UsageError(f"network: {name} must be {bound}, got {getattr(config, name)}")


def _check_common(config: NetworkConfig, family: type[NetworkConfig]) -> None:
    """Refuse what no family can be."""
    kind = family.__dataclass_fields__["kind"].default
    if config.kind != kind:
        raise UsageError(
            f"network: {family.__name__} is of kind {kind!r}, got kind {config.kind!r}; use the settings of "
            "that kind"
        )
    _at_least(config, 1, "in_channels", "out_channels")
    _at_least(config, 0, "labels", "augment_labels")
    if not 0 <= config.dropout < 1:
        raise UsageError(f"network: dropout must be at least 0 and below 1, got {config.dropout}")


def _check_levels(config: UNetConfig | ADMConfig) -> None:
    """Refuse a resolution that cannot be halved as often as asked, and widths without group norm."""
    _at_least(config, 1, "channels", "blocks")
    factors = config.channel_mult
    if not factors or min(factors) < 1 or max(factors) > MOST:
        raise UsageError(
            f"network: channel_mult must be one or more factors from 1 to {MOST}, got {list(factors)}"
        )
    halvings = len(factors) - 1
    if not 2**halvings <= config.resolution <= MOST or config.resolution % 2**halvings:
        raise UsageError(
            f"network: resolution {config.resolution} cannot be halved {halvings} times "
            f"(channel_mult {list(factors)}); use fewer levels or another resolution"
        )
    if config.channels % 4:
        raise UsageError(f"network: channels must be a multiple of 4 (group norm), got {config.channels}")
    unknown = [at for at in config.attention_resolutions if not 1 <= at <= MOST]
    if unknown:
        raise UsageError(f"network: attention_resolutions are pixels above 0, got {unknown[0]}")


def _levels(config: UNetConfig | ADMConfig) -> Iterator[tuple[int, int, bool]]:
    for level, factor in enumerate(config.channel_mult):
        resolution = config.resolution >> level
        yield resolution, config.channels * factor, resolution in config.attention_resolutions
