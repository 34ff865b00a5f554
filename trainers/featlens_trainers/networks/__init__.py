"""Networks: the EDM U-Net with its released module names, and the ratio network built from its encoder."""

from featlens_trainers.networks.ratio import RatioNetwork
from featlens_trainers.networks.unet import UNet, UNetConfig

__all__ = ["RatioNetwork", "UNet", "UNetConfig"]
