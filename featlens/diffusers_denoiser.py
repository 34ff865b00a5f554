"""A network of diffusers as a denoiser."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featlens.errors import UsageError
from featlens.parameterisation import Parameterisation

__all__ = ["DiffusersConfig", "DiffusersDenoiser"]

# What is typed as 157 or 0.01 may be 157.407 or 0.010000500.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class DiffusersConfig:
    """What was understood of a folder; without paths, so that it is the same on every machine.

    Attributes
    ----------
    network
        Class of the network.
    digest
        First 16 hex digits of SHA-256 of the network's settings.
    schedule
        How the network sees noise, in words.
    prediction
        What it predicts: ``epsilon``, ``sample``, ``v_prediction``, ``score`` or ``velocity``.
    centred
        Whether it knows images in [0, 1].
    null_label
        Class that stands for no label, None if there is none.
    """

    network: str
    digest: str
    schedule: str
    prediction: str
    centred: bool = False
    null_label: int | None = None


class DiffusersDenoiser(nn.Module):
    """Denoiser around ``UNet2DModel`` or ``DiTTransformer2DModel``.

    Parameters
    ----------
    network
        diffusers' module, called with its input, time and ``class_labels``.
    parameterisation
        How it sees noise.
    sample_shape, num_labels, sigma_data
        As in :class:`featlens.Denoiser`.
    config
        What goes into manifests.

    Attributes
    ----------
    sigma_range
        Least and greatest sigma that the network was trained for.
    """

    sigma_init: float | None = None
    """Noise level from which a one-step generator starts, where that is known."""

    def __init__(
        self,
        network: nn.Module,
        parameterisation: Parameterisation,
        sample_shape: tuple[int, ...],
        config: DiffusersConfig,
        num_labels: int = 0,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        self.network = network
        self.parameterisation = parameterisation
        self.sample_shape = sample_shape
        self.num_labels = num_labels
        self.sigma_data = sigma_data
        self.config = config
        low, high = parameterisation.sigma_range
        self.sigma_range = (2 * low, 2 * high) if config.centred else (low, high)
        self._checked: tuple[weakref.ref[Tensor], int] | None = None

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W) noised, (B,) sigma, (B,) labels -> (B, C, H, W) estimate of x0.

        Raises
        ------
        UsageError
            A sigma is outside ``sigma_range``, or labels are needed and there are none.
        """
        self._require_known(sigma)
        dtype = torch.promote_types(x.dtype, torch.float32)
        image, level = x.to(dtype), sigma.to(x.device, dtype)
        if self.config.centred:
            image, level = (image + 1) / 2, level / 2
        given, time = self.parameterisation.given(image, level), self.parameterisation.time(level)
        out = self._raw(given, time, self._classes(labels, x))
        estimate = self.parameterisation.x0(image, level, out.to(dtype))
        if self.config.centred:
            estimate = 2 * estimate - 1
        return estimate.to(x.dtype)

    def _raw(self, given: Tensor, time: Tensor, classes: Tensor | None) -> Tensor:
        """Output of the network; of one that also predicts variances, without these."""
        weight = next(self.network.parameters())
        told = time.float() if time.is_floating_point() else time
        out: Tensor = self.network(given.to(weight.dtype), told, class_labels=classes, return_dict=False)[0]
        return out[:, : given.shape[1]]

    def _classes(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        if not self.num_labels:
            return None
        if labels is not None:
            return labels.to(x.device).long()
        if self.config.null_label is None:
            raise UsageError(
                f"the model is conditional ({self.num_labels} classes) and knows no class for 'no label'; "
                "give labels, or the option null_label"
            )
        return torch.full((len(x),), self.config.null_label, dtype=torch.int64, device=x.device)

    def _require_known(self, sigma: Tensor) -> None:
        """Refuse noise levels outside the range."""
        # Reading values waits for an accelerator, so a tensor that was read already is not read again.
        seen = self._checked
        if seen is not None and seen[0]() is sigma and seen[1] == sigma._version:
            return
        self._checked = None
        if not sigma.numel():
            return
        least, greatest = (float(value) for value in torch.stack(torch.aminmax(sigma.detach())).tolist())
        low, high = self.sigma_range
        # Written so that NaN is refused, too.
        if not (low * (1 - _ROUNDING) <= least and greatest <= high * (1 + _ROUNDING) and least > 0):
            wrong = least if least <= 0 or least < low else greatest
            raise UsageError(
                f"sigma {wrong:g} is outside the noise levels that {self.config.network} was trained for; "
                f"choose sigmas from {low:.4g} to {high:.4g}"
            )
        if not sigma.is_inference():
            self._checked = (weakref.ref(sigma), sigma._version)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_checked": None}
