"""Similarity measures: plain functions on (n, d1) and (n, d2) whose rows are the same samples.

Written against the array API: numpy in, a Python float computed by numpy out; torch tensors are used on the
device they are on. torch is never imported here.
"""

from featlens.measures.cka import cka, cka_grid, hsic_debiased
from featlens.measures.declare import MEASURES, Bound, Measure, resolve

__all__ = ["MEASURES", "Bound", "Measure", "cka", "cka_grid", "hsic_debiased", "resolve"]
