"""The ratio network: a time-conditioned real/fake classifier whose logit is a log density ratio."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from featlens.denoiser import Preconditioning, column, one_hot
from featlens_trainers.networks.layers import Block, group_norm, linear
from featlens_trainers.networks.unet import NoiseEmbedding, UNetConfig, build_encoder

__all__ = ["RatioNetwork"]


class RatioNetwork(NoiseEmbedding):
    """Logit ``h(x, sigma) = log p_sigma(x) - log q_sigma(x)`` of data p against student q.

    The U-Net's encoder (same names, so a teacher's tensors fit), a group norm, the mean over positions and a
    linear head. Trained with binary cross-entropy on equally noised real and generated images its optimum is
    the log density ratio itself (arXiv 2502.08005, section on class-ratio estimation).
    """

    def __init__(self, config: UNetConfig, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.config = config
        self.num_labels = config.labels
        self.scaling = Preconditioning(sigma_data)
        self._build_embedding(config)
        self.enc, widths = build_encoder(config)
        self.head_norm = group_norm(widths[-1])
        self.head = linear(widths[-1], 1)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W) noised images, (B,) sigma, (B,) labels -> (B,) logits."""
        sigma = sigma.to(x.dtype)
        hot = one_hot(labels, self.num_labels, len(x), x.device)
        embedding = self.embed(self.scaling.c_noise(sigma), hot)
        hidden = column(self.scaling.c_in(sigma), x) * x
        for module in self.enc.values():
            hidden = module(hidden, embedding) if isinstance(module, Block) else module(hidden)
        pooled = functional.silu(self.head_norm(hidden)).mean(dim=(2, 3))
        out: Tensor = torch.squeeze(self.head(pooled), 1)
        return out
