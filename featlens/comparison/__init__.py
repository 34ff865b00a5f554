"""Comparison of two feature files, site by site and noise level by noise level."""

from featlens.comparison.compare import compare
from featlens.comparison.result import Comparison

__all__ = ["Comparison", "compare"]
