"""How good generated images are: distances, their errors, and the cards that hold them."""

from featlens_trainers.evaluation.best_of import Ranker, best_of
from featlens_trainers.evaluation.cards import Card, Difference, load_cards, save_cards
from featlens_trainers.evaluation.evaluating import Evaluation
from featlens_trainers.evaluation.extractors import (
    Extractor,
    Inputs,
    classifier_extractor,
    load_extractor,
)
from featlens_trainers.evaluation.frechet import Extrapolation, frechet_distance, frechet_infinity
from featlens_trainers.evaluation.images import Images, images_of, load_images
from featlens_trainers.evaluation.kernel import BlockDistance, kernel_distance, kernel_distance_blocks
from featlens_trainers.evaluation.manifold import density_coverage, precision_recall
from featlens_trainers.evaluation.measurement import Measurement, measure
from featlens_trainers.evaluation.models import Generator, open_model

__all__ = [
    "BlockDistance",
    "Card",
    "Difference",
    "Evaluation",
    "Extractor",
    "Extrapolation",
    "Generator",
    "Images",
    "Inputs",
    "Measurement",
    "Ranker",
    "best_of",
    "classifier_extractor",
    "density_coverage",
    "frechet_distance",
    "frechet_infinity",
    "images_of",
    "kernel_distance",
    "kernel_distance_blocks",
    "load_cards",
    "load_extractor",
    "load_images",
    "measure",
    "open_model",
    "precision_recall",
    "save_cards",
]
