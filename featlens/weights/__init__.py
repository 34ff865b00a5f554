"""Weights of any network: their roles, rules that say where each comes from, and a record of what was done.

Three lines set a network of your own, here the decoder from another network and all else as it is:

>>> from torch import nn
>>> parts = {"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)}
>>> student, teacher = nn.ModuleDict(parts), nn.ModuleDict(parts)
>>> apply(student, [Rule("role:decoder", "teacher")], {"teacher": teacher.state_dict()}).counts()
{'random': 2, 'teacher': 2}
"""

from featlens.weights import recipes
from featlens.weights.applying import apply, decide
from featlens.weights.manifest import Manifest, TensorOrigin, tensor_digest
from featlens.weights.roles import roles, select
from featlens.weights.rules import TAKES, Rule, sources_of

__all__ = [
    "Manifest",
    "Rule",
    "TAKES",
    "TensorOrigin",
    "apply",
    "decide",
    "recipes",
    "roles",
    "select",
    "sources_of",
    "tensor_digest",
]
