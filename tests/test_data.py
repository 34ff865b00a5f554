"""Training data: in memory or read as asked for, and split as said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featlens import SampleSet
from featlens.errors import FeatlensError, UsageError
from featlens_trainers.data import LazyData, TensorData, as_data, load_data, require_labels


@pytest.fixture
def pictures(tmp_path, rng):
    """Folder of 30 labelled images of 8 x 6 pixels."""
    for i in range(30):
        place = tmp_path / "images" / f"class{i % 3}" / f"{i:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8)).save(place)
    return tmp_path / "images"


# --- what is loaded -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_digits_are_bit_for_bit_what_studies_use(split):
    samples = SampleSet.load("digits", split=split)
    data = load_data("digits", split=split)
    assert isinstance(data, TensorData)
    assert data.images.dtype == torch.float32 and data.labels.dtype == torch.int64
    assert torch.equal(data.images, torch.from_numpy(samples.images))
    assert torch.equal(data.labels, torch.from_numpy(samples.labels))
    assert (data.name, data.digest, data.shape) == ("digits", samples.digest, (1, 8, 8))
    assert (data.num_labels, len(data)) == (10, len(samples))


def test_small_sets_are_held_and_large_ones_read_with_the_same_batches(pictures):
    held, lazy = load_data(pictures), load_data(pictures, hold=1000)
    assert isinstance(held, TensorData) and isinstance(lazy, LazyData)
    assert held.digest == lazy.digest == SampleSet.load(pictures, split="train").digest
    assert held.shape == lazy.shape == (3, 8, 6) and held.num_labels == lazy.num_labels == 3
    assert len(held) == len(lazy) == 25 and torch.equal(held.labels, lazy.labels)
    rows = torch.tensor([7, 0, 24, 7])
    for first, second in zip(held.batch(rows), lazy.batch(rows), strict=True):
        assert first.dtype == second.dtype and torch.equal(first, second)
    moved = lazy.to("meta").batch(rows)[0], held.to("meta").batch(rows)[0]
    assert {part.device.type for part in moved} == {"meta"}


@pytest.mark.parametrize("location", ["digits", "shapes16", "images", "x.npy", "x.npz", "edm.zip"])
def test_every_source_has_images_for_training_and_others_held_out(location, pictures, tmp_path, rng):
    import io
    import zipfile

    raw = rng.integers(0, 256, (24, 3, 8, 6), dtype=np.uint8)
    np.save(tmp_path / "x.npy", raw)
    np.savez(tmp_path / "x.npz", images=raw, labels=np.arange(24) % 4)
    with zipfile.ZipFile(tmp_path / "edm.zip", "w") as archive:
        for i, image in enumerate(raw):
            out = io.BytesIO()
            Image.fromarray(image.transpose(1, 2, 0)).save(out, "png")
            archive.writestr(f"{i:03}.png", out.getvalue())
        told = [[f"{i:03}.png", i % 4] for i in range(24)]
        archive.writestr("dataset.json", str({"labels": told}).replace("'", '"'))
    place = location if location in ("digits", "shapes16") else tmp_path / location
    n = 20 if location == "shapes16" else None
    train, held = (load_data(place, split, n) for split in ("train", "held-out"))
    assert not {image.numpy().tobytes() for image in train.images} & {
        image.numpy().tobytes() for image in held.images
    }
    assert (train.labels is None) == (location == "x.npy") == (held.labels is None)
    if location not in ("digits", "shapes16"):
        whole = SampleSet.load(place)
        assert len(held) == len(whole) // 6 and len(train) + len(held) == len(whole)
        ids = [SampleSet.load(place, split=split, seed=5).ids for split in ("train", "held-out")]
        assert sorted(np.concatenate(ids).tolist()) == whole.ids.tolist()
        assert torch.equal(held.images, torch.from_numpy(whole.images[ids[1]]))


def test_a_larger_hold_out_contains_a_smaller_one_and_no_seed_moves_it(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(100 * 30.0).reshape(100, 6, 5))
    options = {"values": "any", "split": "held-out"}
    few, many = (SampleSet.load(tmp_path / "x.npy", holdout=n, **options).ids for n in (5, 40))
    assert len(few) == 5 and len(many) == 40 and set(few) < set(many)
    other = SampleSet.load(tmp_path / "x.npy", holdout=5, seed=9, **options).ids
    assert np.array_equal(few, other)
    drawn = SampleSet.load(tmp_path / "x.npy", n=3, holdout=40, seed=9, **options).ids
    assert set(drawn) < set(many)


def test_classes_are_those_of_the_whole_set(tmp_path, rng):
    raw = rng.integers(0, 256, (40, 3, 6, 5), dtype=np.uint8)
    rows = SampleSet.load(_saved(tmp_path / "a.npy", raw), split="train").ids
    labels = np.zeros(40, dtype=int)
    labels[rows[-1]] = 6
    np.savez(tmp_path / "a.npz", images=raw, labels=labels)
    held = load_data(tmp_path / "a.npz", "held-out")
    assert held.labels.max() == 0 and held.num_labels == 7


def _saved(path: Path, array):
    np.save(path, array)
    return path


# --- bad input ----------------------------------------------------------------------------------------------


def test_what_cannot_be_trained_on_is_one_line(tmp_path, rng):
    (tmp_path / "empty").mkdir()
    (tmp_path / "unequal").mkdir()
    for i, width in enumerate((8, 9)):
        Image.fromarray(np.zeros((8, width, 3), np.uint8)).save(tmp_path / "unequal" / f"{i}.png")
    bad = rng.uniform(-1, 1, (12, 3, 6, 5)).astype(np.float32)
    bad[7, 0, 1, 1] = np.nan
    np.save(tmp_path / "nan.npy", bad)
    np.save(tmp_path / "two.npy", np.nan_to_num(bad)[:2])
    for name, said, options in (
        ("empty", "no images in it", {}),
        ("unequal", "is 9 x 8 RGB, but the first image (0.png) is 8 x 8 RGB", {"split": "all"}),
        ("nan.npy", "image 7 of 'nan.npy' holds NaN", {"split": "all"}),
        ("two.npy", "two.npy has 2 images, too few to hold a sixth out", {}),
        ("two.npy", "expected a hold-out of 1 to 1 images of two.npy, got 2", {"holdout": 2}),
        ("two.npy", "unknown split 'trian' of two.npy: did you mean 'train'?", {"split": "trian"}),
        ("nothing", "no such file or folder", {}),
    ):
        with pytest.raises(FeatlensError) as caught:
            load_data(tmp_path / name, **options)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_large_files_that_are_read_forwards_are_refused_for_training(tmp_path, rng, monkeypatch):
    from featlens.sources import lazy

    np.savez_compressed(tmp_path / "big.npz", images=rng.integers(0, 256, (50, 3, 8, 8), dtype=np.uint8))
    monkeypatch.setattr(lazy, "HELD_BYTES", 100)
    assert isinstance(load_data(tmp_path / "big.npz"), TensorData)
    with pytest.raises(FeatlensError, match=r"can only be read forwards, .*; save them as \.npy"):
        load_data(tmp_path / "big.npz", hold=100)


def test_tensors_are_checked_where_they_come_in():
    images = torch.zeros(4, 1, 2, 2)
    assert as_data(images, torch.arange(4)).num_labels == 4
    data = TensorData(images)
    assert as_data(data) is data
    broken = images.clone()
    broken[2, 0, 1, 1] = torch.inf
    for wrong, said in (
        ((broken,), "image 2 holds NaN or infinite pixels"),
        ((images, torch.arange(3)), r"4 images but labels of shape \(3,\)"),
        ((images[:0],), "N at least 1"),
        ((data, torch.arange(4)), "tensor brings its own labels"),
    ):
        with pytest.raises(UsageError, match=said):
            as_data(*wrong)


def test_missing_labels_are_said_before_training():
    plain = TensorData(torch.zeros(4, 1, 2, 2), name="images")
    labelled = TensorData(plain.images, torch.tensor([0, 5, 1, 1]), name="images")
    require_labels(plain, 0, "teacher")
    require_labels(labelled, 6, "teacher")
    with pytest.raises(UsageError, match="teacher: expected labels of 6 classes, but images has none"):
        require_labels(plain, 6, "teacher")
    with pytest.raises(UsageError, match="the network has 5 classes, but images has labels up to 5"):
        require_labels(labelled, 5, "teacher")
