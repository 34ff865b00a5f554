"""Networks: the EDM U-Nets with their released names, a transformer, and the ratio networks on them."""

from featlens_trainers.networks.build import build_denoiser, build_network, build_ratio
from featlens_trainers.networks.dit import DiT
from featlens_trainers.networks.ratio import FakeScoreRatio, RatioNetwork
from featlens_trainers.networks.unet import ADMNet, UNet
from featlens_trainers.settings.network import ADMConfig, DiTConfig, NetworkConfig, UNetConfig
from featlens_trainers.settings.ratio import RatioConfig

__all__ = [
    "ADMConfig",
    "ADMNet",
    "DiT",
    "DiTConfig",
    "FakeScoreRatio",
    "NetworkConfig",
    "RatioConfig",
    "RatioNetwork",
    "UNet",
    "UNetConfig",
    "build_denoiser",
    "build_network",
    "build_ratio",
]
