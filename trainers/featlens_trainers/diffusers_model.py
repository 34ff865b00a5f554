"""Our denoisers as a model and a pipeline of diffusers (extra ``diffusers``).

``featlens convert RUN OUT`` writes a folder that ``OneStepPipeline.from_pretrained(OUT)`` and
``DenoiserModel.from_pretrained(OUT, subfolder="unet")`` read.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featlens.errors import UsageError, choices_hint
from featlens_trainers.convert.names import network_config
from featlens_trainers.networks import build_denoiser
from featlens_trainers.sampler import OneStepGenerator, latents

__all__ = ["DenoiserModel", "OneStepPipeline"]

# Whether diffusers is typed, and how, depends on its release.
diffusers: Any = importlib.import_module("diffusers")
register_to_config: Any = importlib.import_module("diffusers.configuration_utils").register_to_config
UNet2DOutput: Any = importlib.import_module("diffusers.models.unets.unet_2d").UNet2DOutput
# A pipeline's loader looks in the module of a component for the class that tells how to load it.
ModelMixin: Any = diffusers.ModelMixin

OUTPUTS = ("pil", "np", "pt", "raw")


class DenoiserModel(diffusers.ModelMixin, diffusers.ConfigMixin):  # type: ignore[misc]
    """Denoiser as a model of diffusers; EDM's preconditioning is inside.

    Parameters
    ----------
    network
        Settings of the network as a mapping, its ``kind`` among them.
    sigma_data
        Standard deviation of the data.
    sigma_init
        Noise level from which a one-step generator starts.
    kind
        ``teacher`` or ``student``: what the network was trained as.

    Attributes
    ----------
    denoiser
        The denoiser of ours, for samplers and for capturing features.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        network: Mapping[str, Any],
        sigma_data: float = 0.5,
        sigma_init: float = 2.5,
        kind: str = "teacher",
    ) -> None:
        super().__init__()
        self.denoiser = build_denoiser(network_config(network), sigma_data, 0)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Estimate of the clean images.

        Parameters
        ----------
        sample
            (B, C, H, W) noised images in units of the data.
        timestep
            Noise level sigma, one number or (B,); no index of a step, and no logarithm.
        class_labels
            (B,) int64 for a conditional model.
        return_dict
            Whether an object with ``sample`` comes back, or a tuple.
        """
        sigma = torch.as_tensor(timestep, dtype=sample.dtype, device=sample.device).expand(len(sample))
        estimate: Tensor = self.denoiser(sample, sigma, class_labels)
        return UNet2DOutput(sample=estimate) if return_dict else (estimate,)


class OneStepPipeline(diffusers.DiffusionPipeline):  # type: ignore[misc]
    """Pipeline that makes images by one call of the network, ``D(sigma_init z; sigma_init)``.

    Parameters
    ----------
    unet
        The model.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: DenoiserModel) -> None:
        super().__init__()
        self.register_modules(unet=unet)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Tensor | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        sigma_init: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Images.

        Parameters
        ----------
        batch_size
            How many.
        class_labels
            (B,) int64 for a conditional model.
        seed
            Image i depends on (seed, i) only, as with ``featlens sample``.
        generator
            Draws the latents instead of the seed.
        latents
            (B, C, H, W) standard normal, instead of drawing them.
        sigma_init
            Noise level to start from, instead of the model's own.
        output_type
            ``pil``, ``np`` (B, H, W, C) or ``pt`` (B, C, H, W), both in [0, 1], or ``raw``: (B, C, H, W) as
            the network made it, around [-1, 1] and not clipped.
        return_dict
            Whether an object with ``images`` comes back, or a tuple.

        Raises
        ------
        UsageError
            The latents are of another shape, or the output type is unknown.
        """
        if output_type not in OUTPUTS:
            raise UsageError(f"output_type: unknown {output_type!r}: {choices_hint(output_type, OUTPUTS)}")
        z = self._latents(batch_size, seed, generator, latents)
        start = self.unet.config.sigma_init if sigma_init is None else sigma_init
        raw = OneStepGenerator(self.unet.denoiser, float(start))(z, class_labels)
        images = self._as(raw, output_type)
        return diffusers.ImagePipelineOutput(images=images) if return_dict else (images,)

    def _latents(
        self, batch_size: int, seed: int, generator: torch.Generator | None, given: Tensor | None
    ) -> Tensor:
        shape = self.unet.denoiser.sample_shape
        if given is not None:
            if tuple(given.shape[1:]) != shape:
                raise UsageError(
                    f"latents: expected (B, {', '.join(map(str, shape))}), got {tuple(given.shape)}"
                )
            z = given
        elif generator is not None:
            z = torch.randn((batch_size, *shape), generator=generator, device=generator.device)
        else:
            z = latents(seed, 0, batch_size, shape)
        return z.to(self.unet.device, self.unet.dtype)

    def _as(self, raw: Tensor, output_type: str) -> Any:
        if output_type == "raw":
            return raw
        unit = (raw / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return unit
        pixels: np.ndarray[Any, Any] = unit.cpu().permute(0, 2, 3, 1).float().numpy()
        return pixels if output_type == "np" else self.numpy_to_pil(pixels)
