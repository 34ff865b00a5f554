"""Ratio networks: time-conditioned real/fake classifiers whose logit is a log density ratio."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from featlens.denoiser import EDMDenoiser, Preconditioning, one_hot
from featlens.errors import UsageError
from featlens_trainers.networks.dit import DiT, build_token_encoder
from featlens_trainers.networks.embedding import NoiseEmbedding, encode
from featlens_trainers.networks.layers import group_norm, linear
from featlens_trainers.networks.unet import ADMNet, UNet, build_encoder
from featlens_trainers.settings.network import DiTConfig, NetworkConfig

__all__ = ["FakeScoreRatio", "RatioNetwork"]


def _head(config: NetworkConfig) -> tuple[nn.Module, nn.Linear]:
    """Norm and linear layer over the pooled features of an encoder."""
    if isinstance(config, DiTConfig):
        return nn.LayerNorm(config.width, eps=1e-6), linear(config.width, 1)
    _, channels, _ = list(config.levels())[-1]
    return group_norm(channels), linear(channels, 1)


def _pooled_logit(norm: nn.Module, head: nn.Linear, hidden: Tensor) -> Tensor:
    """(B, C, H, W) or (B, T, D) features -> (B,) logits, in the precision of the head's weights."""
    # A logit in bfloat16 has three digits, too few for a log ratio.
    with torch.autocast(hidden.device.type, enabled=False):
        normed = functional.silu(norm(hidden.to(head.weight.dtype)))
        pooled = normed.mean(dim=1) if normed.ndim == 3 else normed.mean(dim=(2, 3))
        return torch.squeeze(head(pooled), 1)


class RatioNetwork(NoiseEmbedding):
    """Logit ``h(x, sigma) = log p_sigma(x) - log q_sigma(x)`` of data p against student q.

    The encoder of a backbone (same names, so a teacher's tensors fit), a norm, the mean over positions and a
    linear head. Trained with binary cross-entropy on equally noised real and generated images its optimum is
    the log density ratio itself (arXiv 2502.08005, section on class-ratio estimation). The encoder of a
    transformer is the first half of its blocks.

    Examples
    --------
    >>> import torch
    >>> from featlens_trainers import UNetConfig
    >>> ratio = RatioNetwork(UNetConfig(channels=8), sigma_data=0.5)
    >>> ratio(torch.zeros(2, 1, 8, 8), torch.ones(2)).shape
    torch.Size([2])
    """

    def __init__(self, config: NetworkConfig, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.config = config
        self.num_labels = config.labels
        self.scaling = Preconditioning(sigma_data)
        self._build_embedding(config)
        if isinstance(config, DiTConfig):
            self.enc = build_token_encoder(config)
        else:
            self.enc, _ = build_encoder(config)
        self.head_norm, self.head = _head(config)

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data."""
        return self.scaling.sigma_data

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W) noised images, (B,) sigma, (B,) labels -> (B,) logits."""
        scaled, c_noise = self.scaling.inputs(x, sigma)
        hot = one_hot(labels, self.num_labels, len(x), x.device)
        hidden = encode(self.enc, scaled, self.embed(c_noise, hot))[-1]
        return _pooled_logit(self.head_norm, self.head, hidden)


class FakeScoreRatio(nn.Module):
    """Ratio network on the fake score: a denoiser of the student's samples whose encoder carries the head.

    One forward pass gives the denoised image and the logit; the logit alone needs the encoder only.

    Parameters
    ----------
    denoiser
        From :func:`featlens_trainers.build_denoiser`.

    References
    ----------
    arXiv 2410.14919 joins a discriminator to the encoder of the fake score network; the head here is the one
    of :class:`RatioNetwork`.

    Examples
    --------
    >>> import torch
    >>> from featlens_trainers import UNetConfig, build_denoiser
    >>> ratio = FakeScoreRatio(build_denoiser(UNetConfig(channels=8), 0.5, seed=0))
    >>> denoised, logit = ratio.both(torch.zeros(2, 1, 8, 8), torch.ones(2))
    >>> denoised.shape, logit.shape
    (torch.Size([2, 1, 8, 8]), torch.Size([2]))
    """

    def __init__(self, denoiser: EDMDenoiser) -> None:
        super().__init__()
        network = denoiser.network
        if not isinstance(network, UNet | ADMNet | DiT):
            raise UsageError(
                "ratio network: a head on the fake score needs the encoder of a network of featlens (unet, "
                f"adm or dit), got a {type(network).__name__}; use RatioConfig(kind='encoder')"
            )
        self.denoiser = denoiser
        self.config: NetworkConfig = network.config
        self.num_labels = denoiser.num_labels
        self.head_norm, self.head = _head(self.config)

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data."""
        return self.denoiser.sigma_data

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W) noised images, (B,) sigma, (B,) labels -> (B,) logits."""
        encoded, _ = self._encoded(x, sigma, labels)
        return _pooled_logit(self.head_norm, self.head, encoded[-1])

    def both(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Estimate of x0 (B, C, H, W) and logits (B,) of the same forward pass."""
        network = self._network()
        encoded, embedding = self._encoded(x, sigma, labels)
        logit = _pooled_logit(self.head_norm, self.head, encoded[-1])
        return self.denoiser.scaling.estimate(x, sigma, network.decode(encoded, embedding)), logit

    def _network(self) -> UNet | ADMNet | DiT:
        network: UNet | ADMNet | DiT = self.denoiser.network  # type: ignore[assignment]
        return network

    def _encoded(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> tuple[list[Tensor], Tensor]:
        network = self._network()
        scaled, c_noise = self.denoiser.scaling.inputs(x, sigma)
        hot = one_hot(labels, self.num_labels, len(x), x.device)
        embedding = network.embed(c_noise, hot)
        return encode(network.enc, scaled, embedding), embedding
