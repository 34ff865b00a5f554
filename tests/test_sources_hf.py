"""Data sets of the package ``datasets``: what lies on this machine is read, nothing is downloaded."""

from __future__ import annotations

import importlib
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from featlens import SampleSet
from featlens.errors import FeatlensError, UsageError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    """A cache of its own, and no bars."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


@pytest.fixture
def raw(rng):
    return rng.integers(0, 256, (20, 3, 6, 5), dtype=np.uint8)


def part(raw, labels, column="img", label="label"):
    kinds = {column: datasets.Image(), label: datasets.Value("int64")}
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in raw]
    rows = {column: pictures, label: list(labels)}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


@pytest.fixture
def both(raw):
    """Twelve images to train on, eight of a test."""
    return datasets.DatasetDict(train=part(raw[:12], range(12)), test=part(raw[12:], range(8)))


def test_saved_sets_and_parquet_give_the_images_that_arrays_give(tmp_path, both, raw):
    both.save_to_disk(tmp_path / "saved")
    for name, data in both.items():
        (tmp_path / "parquet" / "data").mkdir(parents=True, exist_ok=True)
        data.to_parquet(tmp_path / "parquet" / "data" / f"{name}-00000-of-00001.parquet")
    labels = np.array([*range(12), *range(8)])
    whole = SampleSet.from_arrays((raw / 127.5 - 1).astype(np.float32), labels)
    for folder in ("saved", "parquet"):
        place = f"hf:{tmp_path / folder}"
        found = SampleSet.load(place)
        assert found.digest == whole.digest and found.name == folder
        train, held = (SampleSet.load(place, split=split) for split in ("train", "held-out"))
        assert train.ids.tolist() == list(range(12)) and held.ids.tolist() == list(range(12, 20))
        assert np.array_equal(held.images[:], whole.images[12:])
        assert held.labels.tolist() == list(range(8)) and held.num_labels == 12
    some = SampleSet.load(place, n=6, seed=2)
    assert np.array_equal(some.images[:], whole.images[some.ids])


def test_one_split_has_a_seeded_hold_out_and_columns_have_names(tmp_path, both, raw):
    both.save_to_disk(tmp_path / "saved")
    train = SampleSet.load(f"hf:{tmp_path / 'saved'}:train", split="train")
    held = SampleSet.load(f"hf:{tmp_path / 'saved'}:train:img", split="held-out")
    assert sorted([*train.ids, *held.ids]) == list(range(12)) and len(held) == 2
    both["test"].save_to_disk(tmp_path / "one")
    assert len(SampleSet.load(f"hf:{tmp_path / 'one'}")) == 8


def test_labels_that_are_kept_secret_are_none(tmp_path, raw):
    secret = datasets.DatasetDict(train=part(raw[:12], range(12)), test=part(raw[12:], [-1] * 8))
    secret.save_to_disk(tmp_path / "saved")
    place = f"hf:{tmp_path / 'saved'}"
    assert SampleSet.load(place, split="held-out").labels is None
    assert SampleSet.load(place, split="train").labels.tolist() == list(range(12))
    assert SampleSet.load(place).labels is None


def test_a_named_set_is_read_from_the_cache(tmp_path, both, raw):
    # What load_dataset leaves behind: owner___name/configuration/version/fingerprint/*.arrow.
    both.save_to_disk(tmp_path / "saved")
    place = tmp_path / "cache" / "me___things" / "default" / "0.0.0" / "abc"
    place.mkdir(parents=True)
    for name in both:
        (arrow,) = (tmp_path / "saved" / name).glob("*.arrow")
        shutil.copy(arrow, place / f"things-{name}.arrow")
    info = both["train"].info.copy()
    told = [{"name": name, "num_examples": len(both[name]), "dataset_name": "things"} for name in both]
    info.splits = datasets.SplitDict.from_split_dict(told)
    info.builder_name = info.dataset_name = "things"
    info.config_name, info.version = "default", "0.0.0"
    info.write_to_directory(str(place))
    found = SampleSet.load("hf:me/things", split="train")
    assert np.array_equal(found.images[:], (raw[:12] / 127.5 - 1).astype(np.float32))
    assert found.name == "hf:me/things"


def test_nothing_is_downloaded_and_the_settings_of_the_process_stay(monkeypatch):
    import socket

    def refuse(*_):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    constants = importlib.import_module("huggingface_hub.constants")
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    with pytest.raises(FeatlensError) as caught:
        SampleSet.load("hf:nobody/nothing")
    said = str(caught.value)
    assert "hf:nobody/nothing is not on this machine, and nothing is downloaded" in said
    assert "datasets.load_dataset('nobody/nothing')" in said and "\n" not in said
    assert before == (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
    assert "HF_HUB_OFFLINE" not in os.environ


def test_what_cannot_be_read_is_one_line(tmp_path, both, raw):
    both.save_to_disk(tmp_path / "saved")
    (tmp_path / "empty").mkdir()
    # The package would load this as pickles.
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    words = datasets.Dataset.from_dict({"text": ["a", "b"]})
    words.save_to_disk(tmp_path / "words")
    uneven = part(raw[:3], range(3)).to_list() + part(raw[:2, :, :4], range(2)).to_list()
    kinds = both["train"].features
    datasets.Dataset.from_list(uneven, features=kinds).save_to_disk(tmp_path / "uneven")
    for location, said in (
        ("hf:", "names no data set; expected hf:FOLDER or hf:OWNER/NAME"),
        ("hf:csv", "no folder 'csv', nor can a data set have that name"),
        ("hf:a/b:c:d:e", "names no data set"),
        (f"hf:{tmp_path}/empty", "neither saved by save_to_disk nor Parquet files in it"),
        (f"hf:{tmp_path}/code", "neither saved by save_to_disk nor Parquet files in it"),
        (f"hf:{tmp_path}/saved:tset", "no split 'tset' in"),
        (f"hf:{tmp_path}/saved:test:imgs", "no column 'imgs' of images in"),
        (f"hf:{tmp_path}/words", "no column of images among text; cast one to datasets.Image"),
        (f"hf:{tmp_path}/uneven", "(row 3): is 5 x 4 RGB, but the first image (row 0) is 5 x 6 RGB"),
    ):
        with pytest.raises(FeatlensError) as caught:
            SampleSet.load(location)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="unknown split 'test' of"):
        SampleSet.load(f"hf:{tmp_path}/saved", split="test")
    with pytest.raises(UsageError, match="has held-out images of its own; leave holdout out"):
        SampleSet.load(f"hf:{tmp_path}/saved", split="train", holdout=3)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FeatlensError, match=r"run: pip install 'featlens\[hf\]'"):
        SampleSet.load("hf:me/things")
