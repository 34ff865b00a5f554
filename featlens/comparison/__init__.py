"""Comparison of two feature files, site by site and noise level by noise level."""

from featlens.comparison.compare import compare, plan_comparison
from featlens.comparison.plan import ComparisonPlan
from featlens.comparison.result import Comparison

__all__ = ["Comparison", "ComparisonPlan", "compare", "plan_comparison"]
