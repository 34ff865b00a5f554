"""Drawn shapes whose factors are known and independent: class, colour, size, position, orientation.

Image ``i`` is a function of ``i``, the side in pixels and the data seed alone. There are 2**40 images for
training and as many held out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError, choices_hint
from featlens.seeds import derive

__all__ = ["FACTORS", "SHAPES", "SIDES", "SYMMETRY", "Factor", "Shapes", "factor_targets", "find_shapes"]

SHAPES = ("disc", "square", "triangle", "cross", "star")
"""Names of the classes; label ``k`` is ``SHAPES[k]``."""

SYMMETRY = (0, 4, 3, 4, 5)
"""Number of turns of a full circle that leave each shape as it is; 0: every turn does."""

SIDES = (16, 32, 64)
"""Sides of the images in pixels."""

SPLITS = ("train", "held-out")

DEFAULT_N = {"train": 50_000, "held-out": 10_000}
"""Number of images where none is given."""

_HALF = 2**40
_FLOAT = np.float32
# Of the cross: half the width of an arm; its corners lie on the unit circle. Of the star: its inner radius.
_ARM, _INNER = 0.32, 0.5


@dataclass(frozen=True)
class Factor:
    """One factor: its range and what its number means.

    Attributes
    ----------
    name
        As in ``SampleSet.factors``.
    kind
        ``"class"``, ``"number"`` or ``"angle"`` (circular, in radians).
    low, high
        Uniform in [low, high), for classes over the whole numbers in it.
    meaning
        In words.
    """

    name: str
    kind: str
    low: float
    high: float
    meaning: str


FACTORS = (
    Factor("shape", "class", 0, len(SHAPES), "disc, square, triangle, cross or star"),
    Factor("colour", "angle", 0.0, 2 * math.pi, "hue: 0 is red, a third of a turn green, two thirds blue"),
    Factor("size", "number", 0.2, 0.35, "radius of the circle around the shape, in sides of the image"),
    Factor("x", "number", 0.35, 0.65, "centre, in sides of the image from its left edge"),
    Factor("y", "number", 0.35, 0.65, "centre, in sides of the image from its top edge"),
    Factor("orientation", "angle", 0.0, 2 * math.pi, "turn from upright, anticlockwise; see SYMMETRY"),
)
"""All factors, in the order in which their numbers are drawn; every shape lies whole inside its image."""


def find_shapes(location: object) -> Shapes | None:
    """The set that ``"shapes32"`` or ``"shapes32:seed=3"`` names; None if the location means something else.

    Raises
    ------
    UsageError
        Shapes of another side, or an option that is none.
    """
    found = re.fullmatch(r"shapes(\d+)(?::(.*))?", location) if isinstance(location, str) else None
    if found is None:
        return None
    name, side, option = f"shapes{found[1]}", int(found[1]), found[2]
    if side not in SIDES:
        known = [f"shapes{known}" for known in SIDES]
        raise UsageError(f"samples: no shapes of {side} pixels: {choices_hint(name, known)}")
    if option is None:
        return Shapes(side)
    key, _, value = option.partition("=")
    if key != "seed" or not re.fullmatch(r"-?\d{1,18}", value):
        raise UsageError(f"samples: expected {name} or {name}:seed=NUMBER, got {location!r}")
    return Shapes(side, int(value))


class Shapes:
    """Raw pixels (N, 3, side, side) uint8 of numbered shapes, drawn when they are read.

    Parameters
    ----------
    side
        Height and width in pixels.
    data_seed
        Which world of images; not the seed of the noise.
    split
        ``"train"`` or ``"held-out"``: no image belongs to both.

    Examples
    --------
    >>> Shapes(32).read(np.array([0, 7])).shape
    (2, 3, 32, 32)
    """

    dtype: np.dtype[Any] = np.dtype(np.uint8)
    classes = len(SHAPES)

    def __init__(self, side: int, data_seed: int = 0, split: str = "train") -> None:
        if split not in SPLITS:
            raise UsageError(f"unknown split {split!r} of shapes{side}: {choices_hint(split, SPLITS)}")
        self.side, self.data_seed, self.split = side, data_seed, split
        self.shape: tuple[int, ...] = (_HALF, 3, side, side)

    @property
    def name(self) -> str:
        """As it is loaded: ``"shapes32"``, with the data seed if that is not 0."""
        return f"shapes{self.side}" + (f":seed={self.data_seed}" if self.data_seed else "")

    @property
    def recipe(self) -> bytes:
        """What the pixels depend on besides their numbers: stands for the pixels in a digest."""
        return f"shapes 1|{self.side}|{self.data_seed}".encode()

    def part(self, split: str) -> Shapes:
        """The same world, the images of another split."""
        return Shapes(self.side, self.data_seed, split)

    def numbers(self, n: int | None = None) -> NDArray[np.int64]:
        """Numbers of the first ``n`` images of the split, (n,) int64; held-out ones start at 2**40."""
        n = DEFAULT_N[self.split] if n is None else n
        if not 1 <= n <= _HALF:
            raise UsageError(f"samples: {self.name} ({self.split}) has 2**40 images, {n} asked for")
        return np.arange(n) + (_HALF if self.split == "held-out" else 0)

    def factors(self, ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Factors of the given images by name, each (len(ids),): int64 for the shape, else float64."""
        found: dict[str, NDArray[Any]] = {}
        key = derive("shapes", self.data_seed)
        for index, factor in enumerate(FACTORS):
            number = factor.low + (factor.high - factor.low) * _uniform(key, ids, index)
            found[factor.name] = number.astype(np.int64) if factor.kind == "class" else number
        return found

    def read(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Raw pixels (len(ids), 3, side, side)."""
        return draw(self.factors(ids), self.side)

    def close(self) -> None:
        """Nothing is open."""


def _uniform(key: int, ids: NDArray[np.int64], index: int) -> NDArray[np.float64]:
    """Number ``index`` of each image in [0, 1): output 8 i + index of the SplitMix64 generator of ``key``.

    References
    ----------
    Steele, Lea & Flood 2014, Fast splittable pseudorandom number generators, OOPSLA, figure 17.
    """
    place = ids.astype(np.uint64) * np.uint64(8) + np.uint64(index + 1)
    # Arithmetic modulo 2**64 is meant.
    mixed = np.uint64(key) + place * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return np.asarray((mixed >> np.uint64(11)) * 2.0**-53)


def draw(factors: Mapping[str, NDArray[Any]], side: int) -> NDArray[np.uint8]:
    """Images of the given factors, (n, 3, side, side) uint8, the edges smoothed over one pixel.

    A pixel's share of colour is 1/2 minus its signed distance to the outline in pixels, cut to [0, 1]; the
    rest is black. The colours have one brightness: channel k is cos(hue - 2 pi k / 3) in [-1, 1].
    """
    count = len(factors["shape"])
    out = np.empty((count, 3, side, side), dtype=np.uint8)
    # Few images at once stay in the processor's cache, which is twice as fast as all at once.
    step = max(1, 2**16 // side**2)
    order = np.argsort(factors["shape"], kind="stable")
    for index, distance in enumerate(_DISTANCES):
        mine = order[factors["shape"][order] == index]
        for start in range(0, len(mine), step):
            rows = mine[start : start + step]
            out[rows] = _drawn({name: values[rows] for name, values in factors.items()}, side, distance)
    return out


Distance = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]


def _drawn(factors: dict[str, NDArray[Any]], side: int, distance: Distance) -> NDArray[np.uint8]:
    """Images of one shape."""
    # What is computed for each image is double, what is computed for each pixel is float32 and made of sums,
    # products and comparisons alone: these have the same bits on all machines.
    centres = (np.arange(side) + 0.5) / side
    radius = factors["size"][:, None]
    across = ((centres - factors["x"][:, None]) / radius).astype(_FLOAT)[:, None, :]
    up = ((factors["y"][:, None] - centres) / radius).astype(_FLOAT)[:, :, None]
    turn = factors["orientation"]
    cosine, sine = (f(turn).astype(_FLOAT)[:, None, None] for f in (np.cos, np.sin))
    u, v = cosine * across + sine * up, cosine * up - sine * across
    pixels = (radius[:, :, None] * side).astype(_FLOAT)
    share = np.clip(_FLOAT(0.5) - distance(u, v) * pixels, 0, 1)
    hue = factors["colour"][:, None] - 2 * math.pi / 3 * np.arange(3)
    # 0 is black, pixel -1; full colour is 127.5 (1 + cos).
    colour = (127.5 * (1 + np.cos(hue))).astype(_FLOAT)[:, :, None, None]
    return np.asarray(np.rint(share[:, None] * colour), dtype=np.uint8)


def _disc(u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.sqrt(u * u + v * v) - _FLOAT(1))


def _box(u: NDArray[np.float32], v: NDArray[np.float32], width: float, height: float) -> NDArray[np.float32]:
    return np.asarray(np.maximum(u - _FLOAT(width), v - _FLOAT(height)))


def _square(u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    half = math.sqrt(0.5)
    return _box(np.abs(u), np.abs(v), half, half)


def _triangle(u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    # Three sides at distance 1/2 from the centre; one corner points up.
    slanted = _FLOAT(math.cos(math.pi / 6)) * np.abs(u) + _FLOAT(0.5) * v
    return np.asarray(np.maximum(slanted, -v) - _FLOAT(0.5))


def _cross(u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    u, v, long = np.abs(u), np.abs(v), math.sqrt(1 - _ARM**2)
    return np.asarray(np.minimum(_box(u, v, _ARM, long), _box(u, v, long, _ARM)))


def _star(u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    # Reflections bring every point into one tenth of the star, between a tip (pointing up) and a notch.
    u = np.abs(u)
    for angle in (3 * math.pi / 5, math.pi / 5):
        a, b = _FLOAT(math.cos(angle)), _FLOAT(math.sin(angle))
        beyond = _FLOAT(2) * np.maximum(a * u - b * v, 0)
        u, v = u - beyond * a, v + beyond * b
    u = np.abs(u)
    # The edge from the tip (0, 1) to the notch.
    notch = _INNER * math.sin(math.pi / 5), _INNER * math.cos(math.pi / 5)
    length = math.hypot(notch[0], notch[1] - 1)
    return np.asarray(_FLOAT((1 - notch[1]) / length) * u + _FLOAT(notch[0] / length) * (v - _FLOAT(1)))


_DISTANCES: tuple[Distance, ...] = (_disc, _square, _triangle, _cross, _star)


def factor_targets(factors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What an image tells of each factor, ready for probes.

    The shape is (n,) int64. Numbers are (n, 1) float64. Angles are (n, 2) float64, cosine and sine; the
    orientation's angle is multiplied by the symmetry of the shape (a square turned by a quarter is the same
    square), and NaN for discs, which have none.

    Examples
    --------
    >>> targets = factor_targets(Shapes(16).factors(np.arange(9)))
    >>> {name: target.shape for name, target in targets.items() if name in ("shape", "size", "colour")}
    {'shape': (9,), 'colour': (9, 2), 'size': (9, 1)}
    """
    told: dict[str, NDArray[Any]] = {}
    for factor in FACTORS:
        values = factors[factor.name]
        if factor.kind == "angle":
            turns = np.ones(len(values))
            if factor.name == "orientation":
                fold = np.array(SYMMETRY)[factors["shape"]]
                turns = np.where(fold > 0, fold, np.nan)
            told[factor.name] = np.stack([np.cos(turns * values), np.sin(turns * values)], axis=1)
        else:
            told[factor.name] = values if factor.kind == "class" else values[:, None]
    return told
