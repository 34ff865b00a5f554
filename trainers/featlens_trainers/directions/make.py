"""Which direction the settings ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import nn

from featlens.denoiser import Denoiser
from featlens.errors import UsageError, choices_hint
from featlens_trainers.directions.divergences import resolve_divergence
from featlens_trainers.directions.protocol import Direction
from featlens_trainers.directions.ratio import RatioDirection
from featlens_trainers.directions.score import DiffInstruct, SiD
from featlens_trainers.engine import Engine
from featlens_trainers.weighting import resolve_weighting

if TYPE_CHECKING:
    from featlens_trainers.settings import DistillConfig
    from featlens_trainers.training import Training

__all__ = ["make_direction"]

_OWN_WEIGHTING = {
    "ratio": "sigma_squared",
    "diff_instruct": "sigma_squared",
    "sid": "normalised",
    "dmd2": "normalised",
}


def make_direction(
    config: DistillConfig,
    training: Training,
    teacher: Denoiser | None = None,
    engine: Engine | None = None,
) -> Direction:
    """The direction that ``config`` names, around the critic that ``training`` holds.

    Parameters
    ----------
    config, training
        Settings, and what :func:`featlens_trainers.start_distillation` returned.
    teacher
        Denoiser that score-based directions compare with; on the device of the networks.
    engine
        Makes the networks faster where that was asked for.

    Raises
    ------
    UsageError
        A score-based direction without a teacher, or a critic of the other family.
    """
    engine = engine or Engine()
    weighting = resolve_weighting(config.weighting or _OWN_WEIGHTING[config.direction])
    critic = "ratio" if config.direction == "ratio" else "fake_score"
    network = _critic(training, critic, config.direction)
    if config.direction == "ratio":
        sigma_data = getattr(training.networks["net"], "sigma_data", 0.5)
        divergence = resolve_divergence(config.divergence, config.clip)
        return RatioDirection(
            engine.faster(network), divergence, weighting, sigma_data, config.denoising_weight
        )
    if teacher is None:
        raise UsageError(
            f"the direction {config.direction!r} compares with a teacher's denoiser, and none was given; "
            "pass teacher=..., or choose the direction 'ratio', which needs none"
        )
    fake_score = cast(Denoiser, engine.faster(network))
    guide = cast(Denoiser, engine.faster(teacher)) if isinstance(teacher, nn.Module) else teacher
    if config.direction == "sid":
        return SiD(guide, fake_score, weighting, config.alpha)
    # Diff-Instruct compares both as they train, under one dropout mask; DMD2 without dropout.
    return DiffInstruct(guide, fake_score, weighting, dropout=config.direction == "diff_instruct")


def _critic(training: Training, name: str, direction: str) -> nn.Module:
    if name not in training.networks:
        raise UsageError(
            f"the direction {direction!r} needs the network {name!r}, which this training does not hold: "
            f"{choices_hint(name, training.networks)}; give start_distillation "
            + ("a ratio network" if name == "ratio" else "a denoiser, the fake score, as critic")
        )
    return training.networks[name]
