"""Drawn shapes: what is drawn follows from the factors, and the factors from the number and the data seed."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from featlens import SampleSet
from featlens.errors import UsageError
from featlens.seeds import derive
from featlens.sources import shapes
from featlens.sources.shapes import FACTORS, SHAPES, SYMMETRY, Shapes, factor_targets

HELD = 2**40


def factors(**given):
    """Factors of one large upright red shape in the middle, but for what is given."""
    usual = {"shape": 0, "colour": 0.0, "size": 0.35, "x": 0.5, "y": 0.5, "orientation": 0.0}
    return {name: np.atleast_1d(value) for name, value in (usual | given).items()}


def share(side=64, **given):
    """Share of colour of each pixel (side, side): the red of a red shape."""
    return shapes.draw(factors(**given), side)[0, 0] / 255


def splitmix(seed, count):
    """SplitMix64 as published, one number after the other, in Python's integers."""
    mask, out = 2**64 - 1, []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


# --- which image is which -----------------------------------------------------------------------------------


def test_the_reference_generator_gives_the_published_numbers():
    assert splitmix(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_factors_are_the_numbers_of_a_splitmix_generator():
    ids = np.array([0, 5, 11, HELD, HELD + 3])
    found = Shapes(32, data_seed=4).factors(ids)
    for row, number in enumerate(ids.tolist()):
        # The generator's state moves by a constant: number 8 i comes after 8 i steps.
        start = (derive("shapes", 4) + 8 * number * 0x9E3779B97F4A7C15) % 2**64
        for factor, bits in zip(FACTORS, splitmix(start, len(FACTORS)), strict=True):
            value = factor.low + (factor.high - factor.low) * ((bits >> 11) * 2.0**-53)
            expected = math.floor(value) if factor.kind == "class" else value
            assert found[factor.name][row] == pytest.approx(expected, abs=1e-12)


def test_an_image_depends_on_its_number_and_the_data_seed_alone():
    few, many = SampleSet.load("shapes32", n=5), SampleSet.load("shapes32", n=40, seed=3)
    assert np.array_equal(few.images[:], many.images[:5])
    raw = Shapes(32).read(np.array([7, 3]))
    assert np.array_equal(many.images[np.array([7, 3])], (raw / 127.5 - 1).astype(np.float32))
    one_by_one = np.concatenate([Shapes(32).read(np.array([i])) for i in range(40)])
    assert np.array_equal(one_by_one, Shapes(32).read(np.arange(40)))
    other = SampleSet.load("shapes32:seed=1", n=5)
    assert (np.abs(other.images[:] - few.images[:]).reshape(5, -1).max(axis=1) > 0.1).all()
    assert (few.name, other.name) == ("shapes32", "shapes32:seed=1")
    # The same world at another size: the same factors.
    small = SampleSet.load("shapes16", n=5)
    assert all(np.array_equal(small.factors[name], few.factors[name]) for name in few.factors)


def test_images_for_training_and_held_out_ones_are_different_and_without_end():
    train, held = (SampleSet.load("shapes16", n=1000, split=split) for split in ("train", "held-out"))
    assert train.ids.tolist() == list(range(1000)) and held.ids[0] == HELD
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in held.images}
    whole = SampleSet.load("shapes64")
    assert (len(whole), len(SampleSet.load("shapes64", split="held-out"))) == (50_000, 10_000)
    million = SampleSet.load("shapes64", n=1_000_000)
    assert million.images[np.array([999_999])].shape == (1, 3, 64, 64)


def test_pictures_are_pinned():
    # A change here makes old teachers and feature files meaningless: raise the number in Shapes.recipe.
    found = Shapes(16).read(np.arange(3))
    assert found[:, :, 7, 8].tolist() == [[0, 0, 0], [200, 182, 0], [48, 254, 81]]
    assert SampleSet.load("shapes16", n=3).digest == "88e654f36bb357ff"


def test_the_digest_tells_sizes_seeds_splits_and_noise_apart():
    locations = ("shapes16", "shapes32", "shapes16:seed=1", "shapes16:seed=-1")
    sets = [SampleSet.load(location, n=9) for location in locations]
    sets += [SampleSet.load("shapes16", n=9, split="held-out"), SampleSet.load("shapes16", n=9, seed=1)]
    sets += [SampleSet.load("shapes16", n=8)]
    assert len({samples.digest for samples in sets}) == len(sets)
    assert SampleSet.load("shapes16:seed=0", n=9).digest == sets[0].digest


# --- factors ------------------------------------------------------------------------------------------------


def test_factors_are_uniform_and_independent():
    count = 20_000
    found = Shapes(16).factors(np.arange(count))
    unit = []
    for factor in FACTORS:
        values = found[factor.name] + (0.5 if factor.kind == "class" else 0.0)
        assert factor.low <= values.min() and values.max() < factor.high
        unit.append((values - factor.low) / (factor.high - factor.low))
        cells = np.histogram(unit[-1], bins=5, range=(0, 1))[0]
        # Four standard deviations of a count.
        assert np.abs(cells - count / 5).max() < 4 * math.sqrt(count * 0.16)
    for i, first in enumerate(unit):
        for second in unit[:i]:
            table = np.histogram2d(first, second, bins=5, range=((0, 1), (0, 1)))[0]
            squares = ((table - count / 25) ** 2 / (count / 25)).sum()
            assert squares < 60  # Chi squared of 24 degrees: above 60 once in 10,000 times.


def test_labels_are_the_shapes_and_factors_stay_with_their_images():
    samples = SampleSet.load("shapes32", n=50)
    assert list(samples.factors) == [factor.name for factor in FACTORS]
    assert np.array_equal(samples.labels, samples.factors["shape"]) and samples.labels.dtype == np.int64
    assert samples.num_labels == len(SHAPES) == len(SYMMETRY)
    again = pickle.loads(pickle.dumps(samples))
    assert again.digest == samples.digest and np.array_equal(again.images[:3], samples.images[:3])
    assert np.array_equal(again.factors["x"], samples.factors["x"])


def test_targets_of_probes_are_what_an_image_tells():
    found = {
        "shape": np.array([0, 1, 2, 4]),
        "colour": np.array([0.0, math.pi / 2, 0, 0]),
        "size": np.array([0.2, 0.3, 0.2, 0.2]),
        "x": np.full(4, 0.4),
        "y": np.full(4, 0.6),
        "orientation": np.array([1.0, 0.1 + math.pi / 2, 0.2, 0.3]),
    }
    told = factor_targets(found)
    assert told["shape"].tolist() == [0, 1, 2, 4]
    assert np.allclose(told["colour"][1], [0, 1]) and told["size"].shape == (4, 1)
    assert np.isnan(told["orientation"][0]).all()
    # A square turned by 0.1 and a quarter looks as one turned by 0.1.
    assert np.allclose(told["orientation"][1], [math.cos(0.4), math.sin(0.4)])
    assert np.allclose(told["orientation"][2], [math.cos(0.6), math.sin(0.6)])
    assert np.allclose(told["orientation"][3], [math.cos(1.5), math.sin(1.5)])


# --- drawing ------------------------------------------------------------------------------------------------

AREAS = {
    "disc": math.pi,
    "square": 2.0,
    "triangle": 3 * math.sqrt(3) / 4,
    "cross": 8 * 0.32 * math.sqrt(1 - 0.32**2) - 4 * 0.32**2,
    "star": 10 * 0.5 * 0.5 * math.sin(math.pi / 5),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turn", [0.0, 0.7, 2.5])
def test_size_and_place_of_what_is_drawn(shape, turn):
    size, x, y, side = 0.31, 0.45, 0.53, 64
    found = share(side, shape=SHAPES.index(shape), size=size, x=x, y=y, orientation=turn)
    area = AREAS[shape] * (size * side) ** 2
    assert found.sum() == pytest.approx(area, rel=0.02)
    centres = np.arange(side) + 0.5
    if shape != "cross" or turn != 0:
        assert found.sum(axis=0) @ centres / found.sum() == pytest.approx(x * side, abs=0.15)
        assert found.sum(axis=1) @ centres / found.sum() == pytest.approx(y * side, abs=0.15)
    reach = np.hypot(centres[None] - x * side, centres[:, None] - y * side)[found > 0].max()
    assert reach < size * side + 1
    assert reach > size * side - 1


def test_edges_are_smooth_and_the_same_at_every_size():
    for index in range(len(SHAPES)):
        large = share(64, shape=index, orientation=0.4)
        small = share(16, shape=index, orientation=0.4)
        assert ((large > 0.02) & (large < 0.98)).any()
        # Pixels of the small image are about the means of those of the large one.
        assert np.abs(large.reshape(16, 4, 16, 4).mean(axis=(1, 3)) - small).mean() < 0.03


@pytest.mark.parametrize(("shape", "fold"), list(zip(SHAPES, SYMMETRY, strict=True)))
def test_a_turn_by_the_symmetry_changes_nothing_and_half_of_it_does(shape, fold):
    index = SHAPES.index(shape)
    start = share(shape=index, orientation=0.3)
    if not fold:
        assert np.abs(share(shape=index, orientation=1.234) - start).max() < 0.01
        return
    assert np.abs(share(shape=index, orientation=0.3 + 2 * math.pi / fold) - start).max() < 0.01
    assert np.abs(share(shape=index, orientation=0.3 + math.pi / fold) - start).max() > 0.5


def test_a_positive_turn_is_anticlockwise_and_upright_tips_point_up():
    star = SHAPES.index("star")
    rows, columns = np.nonzero(share(shape=star) > 0.5)
    assert abs(columns[rows == rows.min()].mean() - 31.5) < 1 and rows.min() == pytest.approx(
        32 - 0.35 * 64, abs=2
    )
    rows, columns = np.nonzero(share(shape=SHAPES.index("triangle"), orientation=0.3) > 0.5)
    assert columns[rows == rows.min()].mean() < 30


def test_colours_go_round_the_circle_at_one_brightness():
    hues = [0, 2 * math.pi / 3, 4 * math.pi / 3, 1.0]
    middles = [shapes.draw(factors(colour=hue), 32)[0, :, 16, 16] for hue in hues]
    assert [int(middle.argmax()) for middle in middles[:3]] == [0, 1, 2]
    for middle, hue in zip(middles, hues, strict=True):
        assert np.abs(middle / 127.5 - 1 - np.cos(hue - 2 * math.pi / 3 * np.arange(3))).max() < 0.005
        assert abs(int(middle.sum()) - 3 * 127.5) <= 2


def test_every_shape_lies_whole_inside_its_image():
    found = Shapes(32).factors(np.arange(5000))
    for centre in (found["x"], found["y"]):
        assert (centre - found["size"]).min() > 0 - 0.001
        assert (centre + found["size"]).max() < 1 + 0.001


# --- requests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "options", "said"),
    [
        ("shapes33", {}, "no shapes of 33 pixels: did you mean 'shapes32'"),
        ("shapes32:7", {}, "expected shapes32 or shapes32:seed=NUMBER, got 'shapes32:7'"),
        ("shapes32:seed=x", {}, "expected shapes32 or shapes32:seed=NUMBER"),
        ("shapes32", {"split": "test"}, "unknown split 'test' of shapes32: choose from train, held-out"),
        ("shapes32", {"split": "all"}, "unknown split 'all' of shapes32: choose from train, held-out"),
        ("shapes32", {"n": 0}, "shapes32 (train) has 2**40 images, 0 asked for"),
        ("shapes32", {"values": "[0,1]"}, "the values of shapes32 are known; leave values out"),
        ("shapes32", {"holdout": 5}, "the held-out images of shapes32 are known; leave holdout out"),
        ("shapes", {}, "unknown sample set 'shapes': did you mean 'shapes"),
    ],
)
def test_impossible_requests_say_what_is_there(location, options, said):
    with pytest.raises(UsageError) as caught:
        SampleSet.load(location, **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_own_factors_are_kept_and_checked():
    images = np.zeros((4, 1, 2, 2))
    plain = SampleSet.from_arrays(images)
    mine = SampleSet.from_arrays(images, factors={"age": [1, 2, 3, 4]})
    other = SampleSet.from_arrays(images, factors={"age": [1, 2, 3, 5]})
    assert plain.factors is None and mine.factors["age"].tolist() == [1, 2, 3, 4]
    assert len({plain.digest, mine.digest, other.digest}) == 3
    for wrong in ([1, 2, 3], np.zeros((4, 2)), ["a", "b", "c", "d"]):
        with pytest.raises(UsageError, match=r"expected \(4,\) numbers for the factor 'age'"):
            SampleSet.from_arrays(images, factors={"age": wrong})
