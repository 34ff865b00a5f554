"""Sample sets and the noise that belongs to each sample."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featlens import SampleSet
from featlens.errors import UsageError
from featlens.samples import HELD_OUT
from featlens.seeds import derive, sample_noise


@pytest.fixture(scope="module")
def digits():
    return SampleSet.load("digits")


def test_digits_are_scaled_to_minus_one_to_one(digits):
    from sklearn.datasets import load_digits

    source = load_digits()
    assert digits.shape == (1, 8, 8)
    assert digits.images.dtype == np.float32
    assert np.array_equal((digits.images[:, 0] + 1) * 8, source.images)
    assert np.array_equal(digits.labels, source.target)
    assert np.array_equal(digits.ids, np.arange(1797))


def test_train_and_held_out_split_the_digits_without_overlap(digits):
    train, held = (SampleSet.load("digits", split=split) for split in ("train", "held-out"))
    assert len(held) == HELD_OUT
    assert sorted([*train.ids, *held.ids]) == digits.ids.tolist()
    assert np.array_equal(held.images, digits.images[held.ids])
    assert np.array_equal(train.labels, digits.labels[train.ids])


def test_every_class_is_held_out_in_the_same_proportion(digits):
    held = SampleSet.load("digits", split="held-out")
    share = np.bincount(held.labels) / np.bincount(digits.labels)
    assert np.abs(share - 1 / 3).max() < 0.01


def test_the_split_is_fixed_and_the_draw_depends_on_the_seed_alone():
    held = SampleSet.load("digits", split="held-out")
    assert np.array_equal(held.ids, SampleSet.load("digits", split="held-out", seed=5).ids)
    drawn = SampleSet.load("digits", n=50, seed=1, split="held-out")
    assert np.array_equal(drawn.ids, SampleSet.load("digits", n=50, seed=1, split="held-out").ids)
    assert not np.array_equal(drawn.ids, SampleSet.load("digits", n=50, seed=2, split="held-out").ids)
    assert set(drawn.ids) <= set(held.ids)
    assert len(set(drawn.ids)) == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"location": "digts"}, "unknown sample set 'digts': did you mean 'digits'?"),
        ({"split": "heldout"}, "unknown split 'heldout' of digits: did you mean 'held-out'?"),
        ({"n": 0}, "digits (all) has 1797 images, 0 asked for; ask for 1 to 1797"),
        (
            {"n": 600, "split": "held-out"},
            "digits (held-out) has 599 images, 600 asked for; ask for 1 to 599",
        ),
    ],
)
def test_impossible_requests_say_what_is_there(options, message):
    with pytest.raises(UsageError) as caught:
        SampleSet.load(**options)
    assert message in str(caught.value)


def test_the_digest_tells_images_labels_ids_and_seed_apart():
    images, labels = np.zeros((4, 1, 2, 2)), np.arange(4)
    first = SampleSet.from_arrays(images, labels)
    assert first.digest == SampleSet.from_arrays(images.copy(), labels.copy(), name="other").digest
    others = [
        SampleSet.from_arrays(images + np.eye(2), labels),
        SampleSet.from_arrays(images.reshape(4, 4, 1, 1), labels),
        SampleSet.from_arrays(images, labels[::-1]),
        SampleSet.from_arrays(images),
        SampleSet.from_arrays(images, labels, seed=1),
        SampleSet("arrays", first.images, first.ids + 1, first.labels),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 7


def test_own_arrays_are_checked():
    with pytest.raises(UsageError, match="4 images but 3 labels; give one label an image"):
        SampleSet.from_arrays(np.zeros((4, 1, 2, 2)), np.zeros(3))
    images = np.zeros((4, 1, 2, 2))
    images[2, 0, 1, 1] = np.nan
    with pytest.raises(UsageError, match="image 2 of 'mine' holds NaN or infinite pixels"):
        SampleSet.from_arrays(images, name="mine")
    with pytest.raises(UsageError, match=r"expected images \(N, \.\.\.\) and N ids, got \(4,\) and 4 ids"):
        SampleSet.from_arrays(np.zeros(4))
    with pytest.raises(UsageError, match=r"got \(4, 1, 2, 2\) and 3 ids"):
        SampleSet("mine", np.zeros((4, 1, 2, 2), dtype=np.float32), np.arange(3))


@given(
    st.lists(st.integers(0, 10**9), min_size=1, max_size=6, unique=True), st.randoms(use_true_random=False)
)
def test_noise_does_not_depend_on_the_order_or_the_company(ids, random):
    together = dict(zip(ids, sample_noise(3, ids, 0.5, (2, 3)), strict=True))
    shuffled = random.sample(ids, len(ids))
    for sample, noise in zip(shuffled, sample_noise(3, shuffled, 0.5, (2, 3)), strict=True):
        assert np.array_equal(noise, together[sample])
        assert np.array_equal(noise, sample_noise(3, [sample], 0.5, (2, 3))[0])


def test_noise_differs_by_seed_sample_and_sigma():
    draws = [
        sample_noise(*parts, (16,))[0]
        for parts in ((0, [1], 0.5), (1, [1], 0.5), (0, [2], 0.5), (0, [1], 0.6))
    ]
    for i, first in enumerate(draws):
        for second in draws[:i]:
            assert np.abs(first - second).max() > 0.1


def test_noise_is_standard_normal():
    noise = sample_noise(0, range(400), 0.5, (100,))
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.02


def test_noise_of_a_subset_is_the_noise_of_the_whole(digits):
    some = SampleSet.load("digits", n=5, seed=digits.seed)
    assert np.array_equal(some.noise(0.5), digits.noise(0.5)[some.ids])
    assert np.array_equal(digits.noise(0.5, slice(7, 9)), digits.noise(0.5)[7:9])
    other = SampleSet.load("digits", n=5, seed=1)
    assert not np.array_equal(other.noise(0.5), digits.noise(0.5)[other.ids])


def test_noised_images_are_image_plus_sigma_times_noise(digits):
    rows = slice(3, 6)
    noised = digits.noised(2.5, rows)
    assert noised.dtype == np.float32
    assert np.allclose(noised, digits.images[rows] + 2.5 * digits.noise(2.5, rows), atol=1e-6)


def test_derived_seeds_are_pinned_and_tell_their_parts_apart():
    # A change here changes the noise of every published feature file.
    assert derive(0, 17, 0.5) == 3820000445939922559
    noise = sample_noise(0, [17], 0.5, (3,))[0]
    assert np.allclose(noise, [0.7671608924865723, 0.770962655544281, -0.5149685144424438], atol=1e-6)
    assert 0 <= derive("anything") < 2**63
    assert (
        len({derive(1), derive("1"), derive(1.0), derive(1, ""), derive("1", ""), derive(11), derive(1, 1)})
        == 7
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5), (7,), ()])
@pytest.mark.parametrize(("seed", "sigma"), [(0, 0.5), (-3, 80), (2**40, 1e-7), (1, 0.1 + 0.2)])
def test_noise_has_the_bits_of_a_generator_made_anew_for_each_sample(shape, seed, sigma):
    # This is how the noise is defined; feature files of all versions rest on it.
    ids = [0, 5, 10**12, 5]
    for sample, noise in zip(ids, sample_noise(seed, ids, sigma, shape), strict=True):
        bits = np.random.Philox(key=derive(seed, sample, float(sigma)))
        expected = np.random.Generator(bits).standard_normal(shape, dtype=np.float32)
        assert np.array_equal(noise, expected)
    assert sample_noise(seed, [], sigma, shape).shape == (0, *shape)


def test_digests_of_the_digits_are_pinned(digits):
    # A change here makes old feature files incomparable with new ones.
    assert digits.digest == "b62d541b7916991c"
    assert SampleSet.load("digits", n=7, split="held-out", seed=3).digest == "2135fb6c7562d6ec"


def test_samples_without_images_are_noise_alone():
    samples = SampleSet.noise_only(5, [3, 4, 4], seed=2, labels=np.arange(5))
    assert (len(samples), samples.shape, samples.name) == (5, (3, 4, 4), "noise")
    assert np.array_equal(samples.images[1:3], np.zeros((2, 3, 4, 4)))
    latents = samples.latents(2.5, slice(1, 3))
    assert latents.dtype == np.float32
    assert np.array_equal(latents, np.float32(2.5) * sample_noise(2, [1, 2], 2.5, (3, 4, 4)))
    assert np.array_equal(latents, samples.noised(2.5, np.array([1, 2])))
    zeros = SampleSet.from_arrays(np.zeros((5, 3, 4, 4)), np.arange(5), seed=2)
    others = [SampleSet.noise_only(5, (3, 4, 4), seed=2), SampleSet.noise_only(5, (3, 4, 4), 3, np.arange(5))]
    assert len({samples.digest, zeros.digest, *(other.digest for other in others)}) == 4
    # Huge sets take no memory.
    assert len(SampleSet.noise_only(10**6, (3, 512, 512))) == 10**6
    for n, shape in ((0, (3, 4, 4)), (2, ()), (2, (3, 0, 4))):
        with pytest.raises(UsageError, match="expected numbers above 0 for samples and shape"):
            SampleSet.noise_only(n, shape)
    with pytest.raises(UsageError, match="5 images but 2 labels"):
        SampleSet.noise_only(5, (3, 4, 4), labels=[0, 1])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.eye(4), r"got labels \(4, 4\); turn one-hot labels into integers with labels.argmax\(1\)"),
        ([0, 1, -1, 2], "expected integer labels from 0, got -1 for image 2"),
        ([0, 1, 0.5, 2], "got 0.5 for image 2"),
        ([0, np.nan, 1, 2], "got nan for image 1"),
        (["cat", "dog", "cat", "cat"], "expected integer labels, got <U3; number the classes from 0"),
        (3, "4 images but 1 labels"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(labels, said):
    with pytest.raises(UsageError, match=said):
        SampleSet.from_arrays(np.zeros((4, 1, 2, 2)), labels)


def test_seeds_given_as_numpy_numbers_mean_the_same():
    expected = sample_noise(1, [2], 0.5, (3,))
    assert np.array_equal(sample_noise(np.int64(1), np.array([2]), np.float64(0.5), (3,)), expected)


def test_the_examples_of_the_page_on_samples_run(tmp_path, monkeypatch, rng):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    pictures = rng.integers(0, 256, (20, 48, 40, 3), dtype=np.uint8)
    for folder in ("images", "photographs"):
        (tmp_path / folder).mkdir()
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / folder / f"{i}.png")
    np.save("latents.npy", rng.normal(0, 5, (4, 4, 8, 6)).astype(np.float32))
    np.savez("pictures.npz", x=pictures / 255)
    page = Path(__file__).parent.parent / "docs" / "how-to" / "samples.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names = {"images": rng.uniform(-1, 1, (5, 3, 8, 8)), "labels": [0, 1, 2, 1, 0]}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 7
    assert (len(names["train"]), len(names["held"])) == (16, 4)
    assert len(names["shapes"].factors["size"]) == 100 and list(names["own"].factors) == ["age"]
    assert names["samples"].images.shape == (16, 3, 48, 40)
    assert names["small"].images.shape == (20, 3, 32, 32)
    assert names["latents"].images[:].max() > 5 and names["pictures"].images[:].max() == 1
    assert (names["mine"].name, names["mine"].shape) == ("mine", (3, 8, 8))
    assert names["noise"].shape == (3, 32, 32)


@pytest.mark.parametrize("count", [1, 3])
def test_every_image_has_a_label_or_none_has(count):
    with pytest.raises(UsageError, match="2 images but labels"):
        SampleSet("x", np.zeros((2, 1, 4, 4), np.float32), np.arange(2), np.arange(count))
