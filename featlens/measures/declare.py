"""What a measure declares of itself, and how it is found by name.

A measure is a plain function ``f(x, y, **options) -> float``. Behind it stands a *method*: the work that one
side needs (``prepare``) apart from what two prepared sides need (``combine``), so that K networks cost K
preparations and a permutation of the samples costs none.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError, choices_hint
from featlens.measures.arrays import Array, checked, namespace, norm, same_rows, take

__all__ = [
    "INVARIANCES",
    "MEASURES",
    "Alignment",
    "Bound",
    "Measure",
    "Method",
    "declare",
    "evaluate",
    "resolve",
]

INVARIANCES = ("shift", "scale", "permutation", "orthogonal", "feature_scale", "linear")
"""Transformations of one side, features x (n, d), under which a value may be declared not to change:

``shift`` adds a vector to every row; ``scale`` multiplies everything by one positive number; ``permutation``
reorders the features; ``orthogonal`` rotates or mirrors them; ``feature_scale`` multiplies each feature by a
positive number of its own; ``linear`` applies any invertible matrix.
"""


class Method(Protocol):
    """A measure with its options fixed, split into work per side and work per pair."""

    def prepare(self, x: Array) -> Any:
        """State of one side from checked float64 features (n, d), not centred."""

    def combine(self, a: Any, b: Any) -> float:
        """The value from the states of both sides; NaN where it is undefined."""

    def permute(self, state: Any, order: NDArray[np.int64]) -> Any:
        """State of the same features with their rows taken in the given order."""


class Alignment:
    """A method whose value is the cosine between one (n, n) matrix of either side.

    A subclass gives :meth:`matrix`; NaN if either matrix is zero. Many permutations of the samples of such a
    measure can be had at once from Fourier transforms along the diagonals (:mod:`featlens.comparison.null`).
    """

    def matrix(self, x: Array) -> Array:
        """Matrix (n, n) of checked float64 features (n, d), with its diagonal and centring settled."""
        raise NotImplementedError

    def finish(self, cosine: float) -> float:
        """The value from the cosine; increasing."""
        return cosine

    def prepare(self, x: Array) -> Array:
        """The matrix divided by its norm, NaN if that is zero."""
        matrix = self.matrix(x)
        length = norm(matrix)
        return matrix / (length if length > 0 else float("nan"))

    def combine(self, a: Array, b: Array) -> float:
        """Sum of the elementwise product, finished."""
        xp = namespace(a, b)
        return self.finish(float(xp.sum(a * b)))

    def permute(self, state: Array, order: NDArray[np.int64]) -> Array:
        """Rows and columns reordered."""
        return take(take(state, order), order, axis=1)


@dataclass(frozen=True)
class Measure:
    """Declaration of a measure."""

    name: str
    function: Callable[..., float]
    """The public function ``f(x, y, **options)``."""
    method: Callable[..., Method]
    """Called with the same options, gives the method."""
    title: str
    """A few words for axes and tables."""
    family: str
    """Stem of the page docs/notes/FAMILY.md."""
    direction: Literal["similarity", "distance"]
    low: float
    """Smallest value that can come out (``-inf`` where there is none)."""
    high: float
    """Largest value that can come out."""
    itself: float
    """Value of x with itself, 1 for similarities and 0 for distances unless the measure says otherwise."""
    invariances: frozenset[str]
    """Of :data:`INVARIANCES`, complete: whatever is not declared does not hold."""
    symmetric: bool
    """Whether f(x, y) = f(y, x)."""
    least: int
    """Smallest number of samples, unless the method has a ``least`` of its own."""
    cost: str
    """Order of the time for one pair, with n samples and widths d1, d2."""
    reference: str
    """arXiv id or journal, and equation."""
    blind: str
    """What it cannot see, one sentence."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options that the function takes and their defaults."""


@dataclass(frozen=True)
class Bound:
    """A measure with its options chosen."""

    measure: Measure
    options: dict[str, Any]
    method: Method

    @property
    def name(self) -> str:
        """Name with the options that differ from the defaults: ``rsa(distance='cosine')``."""
        told = [
            f"{key}={value!r}" for key, value in self.options.items() if value != self.measure.options[key]
        ]
        return f"{self.measure.name}({', '.join(told)})" if told else self.measure.name

    @property
    def least(self) -> int:
        """Smallest number of samples."""
        return int(getattr(self.method, "least", self.measure.least))


MEASURES: dict[str, Measure] = {}
"""All declared measures of two feature sets, by name."""


def declare(
    function: Callable[..., float], method: Callable[..., Method], invariances: Iterable[str], **told: Any
) -> Measure:
    """Declare a measure under the name of its function; see :class:`Measure` for the rest."""
    unknown = set(invariances) - set(INVARIANCES)
    if unknown:
        raise ValueError(f"unknown invariances {sorted(unknown)}")
    parameters = list(inspect.signature(function).parameters.values())[2:]
    told.setdefault("itself", 1.0 if told["direction"] == "similarity" else 0.0)
    measure = Measure(
        name=function.__name__,
        function=function,
        method=method,
        invariances=frozenset(invariances),
        options={parameter.name: parameter.default for parameter in parameters},
        **told,
    )
    MEASURES[measure.name] = measure
    return measure


def evaluate(measure: Measure, x: Array, y: Array, **options: Any) -> float:
    """Value of two feature sets: checks, then the method of the measure."""
    bound = Bound(measure, options, measure.method(**options))
    method = bound.method
    namespace(x, y, measure=measure.name)
    a, b = (checked(side, name, bound.least, measure.name) for side, name in ((x, "x"), (y, "y")))
    same_rows(a, b, measure.name)
    return float(method.combine(method.prepare(a), method.prepare(b)))


def resolve(name: str | Bound) -> Bound:
    """Measure by name, with options in parentheses as in ``"rsa(distance='cosine')"``.

    Quotes around words may be left out.

    >>> resolve("cka(estimator=biased)").name
    "cka(estimator='biased')"
    """
    if isinstance(name, Bound):
        return name
    stem, opened, rest = str(name).strip().partition("(")
    if stem not in MEASURES:
        raise UsageError(f"unknown measure {stem!r}: {choices_hint(stem, sorted(MEASURES))}")
    measure = MEASURES[stem]
    options = dict(measure.options)
    for key, value in _arguments(str(name), opened + rest).items():
        if key not in options:
            raise UsageError(f"{stem} has no option {key!r}: {choices_hint(key, list(options))}")
        options[key] = value
    return Bound(measure, options, measure.method(**options))


def _arguments(text: str, rest: str) -> dict[str, Any]:
    """Options written between parentheses."""
    if not rest:
        return {}
    wrong = UsageError(f"measure {text!r}: expected NAME or NAME(option=value, ...)")
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise wrong from None
    if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
        raise wrong
    out: dict[str, Any] = {}
    for word in call.keywords:
        node = word.value
        try:
            out[str(word.arg)] = node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
        except ValueError:
            raise wrong from None
    return out
