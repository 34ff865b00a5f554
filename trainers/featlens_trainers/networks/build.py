"""Networks from their settings: raw network, denoiser, ratio network."""

from __future__ import annotations

from torch import nn

from featlens.denoiser import EDMDenoiser
from featlens_trainers.networks.dit import DiT
from featlens_trainers.networks.ratio import FakeScoreRatio, RatioNetwork
from featlens_trainers.networks.unet import ADMNet, UNet
from featlens_trainers.settings.network import ADMConfig, DiTConfig, NetworkConfig
from featlens_trainers.settings.ratio import RatioConfig, scaled

__all__ = ["bare_denoiser", "build_denoiser", "build_network", "build_ratio"]


def build_network(config: NetworkConfig) -> nn.Module:
    """Raw network, called as ``network(x, c_noise, labels, augment_labels)``.

    Its weights are drawn from PyTorch's global generator.

    Examples
    --------
    >>> from featlens_trainers import DiTConfig
    >>> sum(p.numel() for p in build_network(DiTConfig(width=32, depth=2)).parameters())
    42340
    """
    if isinstance(config, ADMConfig):
        return ADMNet(config)
    if isinstance(config, DiTConfig):
        return DiT(config)
    return UNet(config)


def bare_denoiser(config: NetworkConfig, sigma_data: float) -> EDMDenoiser:
    """Denoiser whose weights are drawn from PyTorch's global generator."""
    shape = (config.in_channels, config.resolution, config.resolution)
    return EDMDenoiser(build_network(config), shape, config.labels, sigma_data)


def build_denoiser(config: NetworkConfig, sigma_data: float, seed: int) -> EDMDenoiser:
    """Randomly initialised denoiser; the weights depend on ``seed`` alone.

    Examples
    --------
    >>> from featlens_trainers import UNetConfig
    >>> build_denoiser(UNetConfig(channels=8), sigma_data=0.5, seed=0).sample_shape
    (1, 8, 8)
    """
    from featlens_trainers.training import seeded

    with seeded(seed, "network"):
        return bare_denoiser(config, sigma_data)


def build_ratio(
    network: NetworkConfig, ratio: RatioConfig | None = None, sigma_data: float = 0.5
) -> RatioNetwork | FakeScoreRatio:
    """Ratio network for students of the settings ``network``, called as ``ratio(x, sigma, labels) -> (B,)``.

    Its weights are drawn from PyTorch's global generator. At width 1 its tensors have the names and shapes of
    a teacher's encoder and noise embedding; for ``fake_score`` those of the whole teacher, behind
    ``denoiser.``.

    Examples
    --------
    >>> from featlens_trainers import RatioConfig, UNetConfig
    >>> light = build_ratio(UNetConfig(channels=16), RatioConfig(width=0.5))
    >>> light.config.channels
    8
    """
    settings = RatioConfig() if ratio is None else ratio
    body = scaled(network, settings)
    if settings.kind == "fake_score":
        return FakeScoreRatio(bare_denoiser(body, sigma_data))
    return RatioNetwork(body, sigma_data)
