"""What a study measures of generated images: Frechet distance and KID in the features of a classifier."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from featlens_trainers.evaluation.frechet import frechet_distance
from featlens_trainers.evaluation.kernel import kernel_distance
from featlens_trainers.evaluation.sets import Features

__all__ = ["Quality", "frechet_distance", "kernel_distance", "quality"]


@dataclass(frozen=True)
class Quality:
    """Distances of generated to held-out images, and the numbers of images they rest on."""

    frechet: float
    kid: float
    generated: int
    reference: int

    def to_dict(self) -> dict[str, Any]:
        """Plain dict."""
        return asdict(self)


def quality(generated: Features, reference: Features) -> Quality:
    """Both distances of features (n, d) of generated images to features (m, d) of held-out images."""
    return Quality(
        frechet_distance(generated, reference),
        kernel_distance(generated, reference),
        len(generated),
        len(reference),
    )
