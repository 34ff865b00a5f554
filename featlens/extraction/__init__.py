"""Extraction of features into a file: request, plan, forward passes, background writing, processes."""

from featlens.extraction.extract import Progress, extract
from featlens.extraction.plan import ExtractionPlan, plan_extraction

__all__ = ["ExtractionPlan", "Progress", "extract", "plan_extraction"]
