"""What every network does alike: the noise embedding, and running an encoder."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from featlens.errors import UsageError
from featlens_trainers.networks.layers import linear, positional_embedding
from featlens_trainers.settings.network import ADMConfig, NetworkConfig, UNetConfig

__all__ = ["NoiseEmbedding", "encode"]


class NoiseEmbedding(nn.Module):
    """Mix-in of the embedding layers ``map_layer0/1``, ``map_label`` and ``map_augment``.

    DDPM++ adds the label before the two layers, ADM and the transformer after them. Labels are one-hot rows;
    a row of zeros is an image without a label.
    """

    def _build_embedding(self, config: NetworkConfig) -> None:
        self._family = config.kind
        self._frequencies = config.frequencies
        if isinstance(config, UNetConfig):
            self.map_label = linear(config.labels, config.frequencies) if config.labels else None
        self.map_augment = _augment_layer(config)
        if isinstance(config, ADMConfig):
            self.map_layer0 = nn.Linear(config.frequencies, config.embedding)
            self.map_layer1 = nn.Linear(config.embedding, config.embedding)
        else:
            self.map_layer0 = linear(config.frequencies, config.embedding)
            self.map_layer1 = linear(config.embedding, config.embedding)
        if not isinstance(config, UNetConfig):
            self.map_label = _late_label_layer(config)

    def embed(
        self, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """(B,) c_noise, (B, labels) one-hot, (B, augment_labels) -> (B, E).

        Without labels a conditional network is told a row of zeros for each image; without augmentation
        labels it is told that nothing was augmented.
        """
        adm = self._family == "adm"
        told = positional_embedding(c_noise, self._frequencies, endpoint=not adm, cosines_first=adm)
        told = told.to(self.map_layer0.weight.dtype)
        of_label = self._of_label(labels, told)
        if of_label is not None and self._family == "unet":
            told = told + of_label
        if augment_labels is not None:
            if self.map_augment is None:
                raise UsageError(
                    f"expected no augmentation labels, got {tuple(augment_labels.shape)}: the network has "
                    "none; set network.augment_labels to their number"
                )
            told = told + self.map_augment(augment_labels.to(told.dtype))
        told = self.map_layer1(functional.silu(self.map_layer0(told)))
        if of_label is not None and self._family != "unet":
            told = told + of_label
        out: Tensor = functional.silu(told)
        return out

    def _of_label(self, labels: Tensor | None, told: Tensor) -> Tensor | None:
        if self.map_label is None:
            return None
        classes = self.map_label.in_features
        if labels is None:
            labels = told.new_zeros(len(told), classes)
        hot = labels.to(told.dtype)
        # DDPM++ brings a one-hot row to the size of a row of unit variance.
        out: Tensor = self.map_label(hot * classes**0.5 if self._family == "unet" else hot)
        return out


def _augment_layer(config: NetworkConfig) -> nn.Linear | None:
    if not config.augment_labels:
        return None
    layer = linear(config.augment_labels, config.frequencies, bias=False)
    if isinstance(config, ADMConfig):
        nn.init.zeros_(layer.weight)
    return layer


def _late_label_layer(config: NetworkConfig) -> nn.Linear | None:
    if not config.labels:
        return None
    if not isinstance(config, ADMConfig):
        return linear(config.labels, config.embedding)
    layer = nn.Linear(config.labels, config.embedding, bias=False)
    # Of unit variance for a one-hot row.
    nn.init.normal_(layer.weight)
    return layer


def encode(encoder: nn.ModuleDict, x: Tensor, embedding: Tensor) -> list[Tensor]:
    """Output of every module of an encoder, in order, the deepest last."""
    outputs: list[Tensor] = []
    for module in encoder.values():
        x = module(x, embedding) if getattr(module, "conditioned", False) else module(x)
        outputs.append(x)
    return outputs
