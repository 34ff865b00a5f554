"""Settings of a ratio network."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from featlens.errors import UsageError, choices_hint
from featlens_trainers.settings.network import DiTConfig, NetworkConfig, UNetConfig

__all__ = ["RATIO_KINDS", "RatioConfig", "scaled"]

RATIO_KINDS = ("encoder", "fake_score")


@dataclass(frozen=True)
class RatioConfig:
    """Which network tells real from generated images.

    Attributes
    ----------
    kind
        ``"encoder"``: the backbone's encoder with a pooled head. ``"fake_score"``: a whole denoiser, to be
        trained on the student's samples, whose encoder also carries the head (arXiv 2410.14919).
    width
        Width in units of the backbone's; 0.5 is the light ratio network. Tensors of a teacher fit at 1 only.
    dropout
        Dropout probability of the ratio network; None for the backbone's own.
    """

    kind: str = "encoder"
    width: float = 1.0
    dropout: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in RATIO_KINDS:
            raise UsageError(f"unknown ratio network {self.kind!r}: {choices_hint(self.kind, RATIO_KINDS)}")
        if not 0 < self.width <= 8:
            raise UsageError(
                f"ratio network: width must be above 0 and at most 8, got {self.width}; it is a fraction of "
                "the backbone's width, 0.5 for a light one"
            )
        if self.kind == "fake_score" and self.width != 1:
            raise UsageError(
                f"ratio network: a head on the fake score has the fake score's width, got {self.width}; "
                "set width to 1, or kind to 'encoder'"
            )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UsageError(
                f"ratio network: dropout must be at least 0 and below 1, got {self.dropout}; leave it out "
                "for the backbone's own"
            )


def scaled(network: NetworkConfig, ratio: RatioConfig) -> NetworkConfig:
    """Settings of the ratio network's body: the backbone's, as wide as ``ratio`` asks.

    Widths are rounded to what attention heads and group norms divide; heads become fewer, not narrower, in a
    transformer.

    Examples
    --------
    >>> from featlens_trainers import UNetConfig
    >>> scaled(UNetConfig(channels=128), RatioConfig(width=0.5)).channels
    64
    """
    if ratio.dropout is not None:
        network = dataclasses.replace(network, dropout=ratio.dropout)
    if ratio.width == 1:
        return network
    if isinstance(network, DiTConfig):
        each = network.width // network.heads
        heads = max(1, round(network.heads * ratio.width))
        while heads * each % 4:
            heads += 1
        return dataclasses.replace(network, heads=heads, width=heads * each)
    step = math.lcm(4, network.heads) if isinstance(network, UNetConfig) else 4
    channels = max(step, round(network.channels * ratio.width / step) * step)
    return dataclasses.replace(network, channels=channels)
