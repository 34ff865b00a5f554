"""Directions: what turns a noised student sample into a gradient in image space.

Score-free (:class:`RatioDirection`): the gradient of a divergence through the log density ratio that a
classifier has learnt. Score-based (:class:`ScoreDirection`): a difference of denoisers, the teacher's and one
that learns the student's samples. docs/notes/directions.md derives all of them.
"""

from featlens_trainers.directions.divergences import CLIP, DIVERGENCES, Divergence, resolve_divergence
from featlens_trainers.directions.make import make_direction
from featlens_trainers.directions.protocol import Direction, Noised, denoising_loss
from featlens_trainers.directions.ratio import RatioDirection, ratio_loss
from featlens_trainers.directions.score import DiffInstruct, ScoreDirection, SiD, denoiser_gap

__all__ = [
    "CLIP",
    "DIVERGENCES",
    "DiffInstruct",
    "Direction",
    "Divergence",
    "Noised",
    "RatioDirection",
    "ScoreDirection",
    "SiD",
    "denoiser_gap",
    "denoising_loss",
    "make_direction",
    "ratio_loss",
    "resolve_divergence",
]
