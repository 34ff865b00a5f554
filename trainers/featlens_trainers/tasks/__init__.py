"""The trainings of a study, each an ordinary resumable run: classifier, teacher, controls, students.

Every task finds what it needs in the study's folder and leaves its own folder there; running a finished task
again does nothing.
"""

from featlens_trainers.tasks.common import (
    StudentSpec,
    data_of,
    evaluation_images,
    held_out_samples,
    require_data,
)
from featlens_trainers.tasks.quality import judge_of, load_classifier, reference_features, run_classifier
from featlens_trainers.tasks.student import run_student
from featlens_trainers.tasks.teacher import CONTROLS, run_control, run_teacher

__all__ = [
    "CONTROLS",
    "StudentSpec",
    "data_of",
    "evaluation_images",
    "held_out_samples",
    "judge_of",
    "load_classifier",
    "reference_features",
    "require_data",
    "run_classifier",
    "run_control",
    "run_student",
    "run_teacher",
]
