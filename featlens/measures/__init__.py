"""Similarity measures: plain functions on (n, d1) and (n, d2) whose rows are the same samples.

Written against the array API: numpy in, a Python float computed by numpy out; torch tensors are used on the
device they are on. torch is never imported here.
"""

from featlens.measures.cca import mean_cca, mean_squared_cca, pwcca, svcca
from featlens.measures.cka import cka, cka_from_kernels, hsic_debiased
from featlens.measures.declare import MEASURES, Bound, Measure, resolve
from featlens.measures.dependence import distance_correlation
from featlens.measures.geometry import (
    TwoNN,
    anisotropy,
    dead_units,
    effective_rank,
    geometry,
    participation_ratio,
    rankme,
    two_nn,
)
from featlens.measures.halves import half_sample_errors
from featlens.measures.minibatch import MinibatchCKA, cka_minibatch
from featlens.measures.neighbours import cknna, jaccard_knn, mutual_knn
from featlens.measures.predictivity import linear_predictivity
from featlens.measures.procrustes import angular_shape, permutation_matching, procrustes
from featlens.measures.rsa import rsa
from featlens.measures.spectral import bures, subspace_overlap

__all__ = [
    "MEASURES",
    "Bound",
    "Measure",
    "MinibatchCKA",
    "TwoNN",
    "angular_shape",
    "anisotropy",
    "bures",
    "cka",
    "cka_from_kernels",
    "cka_minibatch",
    "cknna",
    "dead_units",
    "distance_correlation",
    "effective_rank",
    "geometry",
    "half_sample_errors",
    "hsic_debiased",
    "jaccard_knn",
    "linear_predictivity",
    "mean_cca",
    "mean_squared_cca",
    "mutual_knn",
    "participation_ratio",
    "permutation_matching",
    "procrustes",
    "pwcca",
    "rankme",
    "resolve",
    "rsa",
    "subspace_overlap",
    "svcca",
    "two_nn",
]
