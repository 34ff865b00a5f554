"""Networks from other places and to other places: EDM's pickles, folders of diffusers, runs of ours."""

from featlens_trainers.convert.edm import Released, read_edm
from featlens_trainers.convert.folders import (
    Converted,
    read_diffusers_folder,
    write_diffusers_folder,
    write_run_folder,
)
from featlens_trainers.convert.plan import Conversion, plan_conversion

__all__ = [
    "Conversion",
    "Converted",
    "Released",
    "plan_conversion",
    "read_diffusers_folder",
    "read_edm",
    "write_diffusers_folder",
    "write_run_folder",
]
