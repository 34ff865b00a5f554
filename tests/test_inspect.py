"""``featlens inspect`` of images, and the report behind it: every number against a plain computation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import featlens as fl
from featlens.cli import main
from featlens.errors import UsageError
from featlens.inspection import statistics
from featlens.sources import lazy
from featlens.sources.shapes import Shapes


@pytest.fixture
def raw(rng):
    """Forty images of three channels that differ, (40, 3, 8, 6) uint8."""
    scale = np.array([60, 128, 255])[None, :, None, None]
    return (rng.integers(0, 256, (40, 3, 8, 6)) * scale // 255).astype(np.uint8)


def said(capsys, *words):
    """What a command that succeeds prints."""
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


# --- numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 10**9])
def test_spread_is_that_of_all_pixels_whatever_the_blocks(tmp_path, raw, monkeypatch, block):
    monkeypatch.setattr(lazy, "BLOCK_BYTES", block)
    np.savez(tmp_path / "a.npz", images=raw, labels=np.arange(40) % 7)
    report = fl.inspect_data(tmp_path / "a.npz")
    pixels = raw / 127.5 - 1
    assert np.allclose(report.mean, pixels.mean(axis=(0, 2, 3)), atol=1e-6)
    assert np.allclose(report.std, pixels.std(axis=(0, 2, 3)), atol=1e-6)
    assert report.sigma_data == pytest.approx(pixels.std(), abs=1e-6)
    assert report.range == (raw.min(), raw.max())
    assert (report.shape, report.dtype, report.values) == ((3, 8, 6), "uint8", "[0,255]")
    assert (report.total, report.read, report.name, report.split) == (40, 40, "a.npz", "")
    assert report.labels.counts == (6, 6, 6, 6, 6, 5, 5)
    assert (report.labels.classes, report.labels.missing, report.labels.imbalance) == (7, (), 1.2)
    assert report.advice == ()


def test_large_means_do_not_spoil_the_spread(rng):
    values = (1e6 + rng.normal(size=(50, 2, 4, 5))).astype(np.float64)
    spread = statistics.Spread((2, 4, 5))
    for start in range(0, 50, 7):
        spread.add(values[start : start + 7])
    mean, std, whole = spread.result()
    assert np.allclose(mean, values.mean(axis=(0, 2, 3)), rtol=1e-12)
    assert np.allclose(std, values.std(axis=(0, 2, 3)), rtol=1e-6)
    assert whole == pytest.approx(values.std(), rel=1e-6)


def test_sets_without_files_and_their_parts():
    digits = fl.SampleSet.load("digits", split="train")
    report = fl.inspect_data("digits", split="train")
    assert report.sigma_data == pytest.approx(float(digits.images.std(dtype=np.float64)), abs=1e-6)
    assert (report.total, report.split, sum(report.labels.counts)) == (1198, "train", 1198)
    drawn = fl.inspect_data("digits", n=100, split="train")
    assert (drawn.total, drawn.read) == (1198, 100)
    shapes = fl.inspect_data("shapes16", n=500, split="held-out")
    expected = Shapes(16).read(2**40 + np.arange(500)) / 127.5 - 1
    assert shapes.sigma_data == pytest.approx(expected.std(), abs=1e-6)
    assert (shapes.read, shapes.split, shapes.labels.classes) == (500, "held-out", 5)


def test_the_images_read_are_those_that_loading_would_take(tmp_path, raw):
    np.save(tmp_path / "a.npy", raw)
    for options in ({"n": 7, "seed": 3}, {"split": "held-out"}, {"split": "train", "n": 5}):
        images = fl.SampleSet.load(tmp_path / "a.npy", **options).images[:].astype(np.float64)
        report = fl.inspect_data(tmp_path / "a.npy", **options)
        assert report.read == len(images)
        assert report.sigma_data == pytest.approx(images.std(), abs=1e-6)


def test_duplicates_are_found_and_named(tmp_path, raw):
    raw[[9, 30]] = raw[4]
    raw[21] = raw[20]
    labels = np.zeros(40, dtype=int)
    labels[30] = 2
    np.savez(tmp_path / "a.npz", images=raw, labels=labels)
    found = fl.inspect_data(tmp_path / "a.npz")
    assert (found.duplicates.count, found.duplicates.conflicting) == (3, 1)
    assert found.duplicates.first == (("4", "9", "30"), ("20", "21"))
    assert found.labels.missing == (1,) and found.labels.imbalance == 39
    assert [line.split(":")[0] for line in found.advice] == [
        "1 of 3 classes have no image",
        "the largest class has 39 times the images of the smallest",
        "exact duplicates of earlier images",
        "duplicates with another label than the image they repeat",
    ]
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(raw):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "folder" / f"{i:02}.png")
    names = fl.inspect_data(tmp_path / "folder").duplicates.first
    assert names == (("04.png", "09.png", "30.png"), ("20.png", "21.png"))
    all_equal = np.repeat(raw[:1], 40, axis=0)
    np.save(tmp_path / "b.npy", all_equal)
    many = fl.inspect_data(tmp_path / "b.npy").duplicates
    assert many.count == 39 and len(many.first) == 1 and len(many.first[0]) == statistics.FIRST


def test_what_loading_would_refuse_is_reported(tmp_path, raw):
    floats = (raw / 255).astype(np.float32)
    np.save(tmp_path / "unit.npy", floats)
    np.save(tmp_path / "bytes.npy", raw.astype(np.float64))
    np.save(tmp_path / "short.npy", raw.astype(np.int16))
    floats = floats * 2 - 1
    floats[3, 0, 0, 0], floats[9, 1] = np.nan, np.inf
    np.save(tmp_path / "nan.npy", floats)
    floats[:] = np.nan
    np.save(tmp_path / "all.npy", floats)
    for name, advice in (
        ("unit.npy", "nothing below 0, expected [-1, 1]; say what they are with values='[0,1]'"),
        ("bytes.npy", "expected [-1,1]; say what they are with values='[0,255]'"),
        ("short.npy", "int16, which says nothing about the range of its pixels"),
    ):
        (line,) = fl.inspect_data(tmp_path / name).advice
        assert advice in line and "image 0" not in line
    assert fl.inspect_data(tmp_path / "unit.npy", values="[0,1]").advice == ()
    found = fl.inspect_data(tmp_path / "nan.npy")
    assert (found.not_finite, found.first_not_finite) == (2, ("3", "9"))
    kept = np.delete(raw, [3, 9], axis=0) / 127.5 - 1
    assert found.sigma_data == pytest.approx(kept.std(), abs=1e-6)
    nothing = fl.inspect_data(tmp_path / "all.npy").to_dict()
    assert nothing["sigma_data"] is None and nothing["range"] == [None, None]
    assert nothing["not_finite"] == 40
    json.dumps(nothing, allow_nan=False)
    with pytest.raises(UsageError, match="ask for 1 to 40"):
        fl.inspect_data(tmp_path / "unit.npy", n=41)


def test_no_torch_is_imported(python, tmp_path, raw):
    np.save(tmp_path / "a.npy", raw)
    code = """
import sys
from featlens.cli import main
for words in (["digits"], ["shapes32", "--n", "9"], [sys.argv[1]]):
    assert main(["inspect", *words]) == 0
assert "torch" not in sys.modules
"""
    done = python(code, tmp_path / "a.npy")
    assert done.returncode == 0, done.stderr


# --- the command --------------------------------------------------------------------------------------------


def test_every_kind_of_data_is_recognised(tmp_path, raw, capsys):
    import h5py

    for name in ("flat", "classes/a", "classes/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(raw[len(name)].transpose(1, 2, 0)).save(tmp_path / name / "x.PNG")
    np.save(tmp_path / "a.npy", raw)
    np.savez(tmp_path / "a.npz", other=raw)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = raw
    for words, count in (
        (("digits",), 1797),
        (("shapes16", "--n", 12), 12),
        ((tmp_path / "flat",), 1),
        ((tmp_path / "classes",), 2),
        ((tmp_path / "a.npy",), 40),
        ((f"{tmp_path}/a.npz:other",), 40),
        ((tmp_path / "a.h5",), 40),
        ((f"{tmp_path}/a.h5:images", "--split", "held-out"), 6),
    ):
        found = json.loads(said(capsys, "inspect", *words, "--json"))
        assert (found["data"], found["read"]) == (str(words[0]), count)
        assert said(capsys, "inspect", *words).startswith(f"images          {count:,} of ")


def test_the_table_says_what_the_report_says(tmp_path, raw, capsys):
    raw[5] = raw[4]
    labels = np.arange(40) % 3 * 2
    np.savez(tmp_path / "a.npz", images=raw, labels=labels)
    report = fl.inspect_data(tmp_path / "a.npz")
    text = said(capsys, "inspect", tmp_path / "a.npz")
    assert "shape           3x8x6\n" in text
    assert f"sigma_data      {report.sigma_data:.4g} (standard deviation of all pixels" in text
    assert "labels          40 images in 5 classes, 0 to 14 a class" in text
    assert "  0: 14, 1: 0, 2: 13, 3: 0, 4: 13\n  no images of 1, 3\n" in text
    assert "duplicates      1\n  4 = 5\n" in text and "NaN             none\n" in text
    assert text.count("note: ") == len(report.advice) == 3
    some = said(capsys, "inspect", tmp_path / "a.npz", "--n", "10")
    assert "40 of " in some and ", 10 of them read" in some


def test_models_are_told_from_feature_files(tmp_path, capsys, fail):
    from featlens.denoiser import weights_digest
    from tests.convert_helpers import UNET, denoiser_of, write_edm

    denoiser = denoiser_of(UNET)
    path = write_edm(tmp_path / "edm.pkl", denoiser)
    found = json.loads(said(capsys, "inspect", path, "--json"))
    assert found["model"] == str(path) and found["weights_digest"] == weights_digest(denoiser.network)
    assert (found["sample_shape"], found["num_labels"]) == ([3, 16, 16], 4)
    assert {"enc.8x8_block0.conv0", "dec.16x16_block2"} <= {site["name"] for site in found["sites"]}
    assert "sample_shape" in said(capsys, "inspect", path)
    assert "--verify reads feature files" in fail(2, "inspect", path, "--verify")
    path.write_bytes(path.read_bytes()[:500])
    assert str(path) in fail(1, "inspect", path)
    path.write_text("nothing")
    assert "is not a model that featlens knows" in fail(2, "inspect", path)


def test_names_of_files_are_made_safe(tmp_path, raw, capsys):
    for name in ("\x1b[2Ja.png", "b.png"):
        Image.fromarray(raw[0].transpose(1, 2, 0)).save(tmp_path / name)
    text = said(capsys, "inspect", tmp_path)
    assert "\x1b" not in text and "\\x1b[2Ja.png = b.png" in text


def test_what_is_no_data_is_said_in_one_line(tmp_path, fail):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(b"no image")
    assert "is an empty folder; expected a model, or images in it" in fail(2, "inspect", tmp_path / "empty")
    assert "did you mean 'shapes32'" in fail(2, "inspect", "shapes31")
    assert "no model at" in fail(2, "inspect", tmp_path / "nothing")
    assert "unknown split 'tset' of digits" in fail(2, "inspect", "digits", "--split", "tset")
    assert "is a set of images" in fail(2, "inspect", "digits", "--verify")
    assert "damaged, or not an image" in fail(1, "inspect", tmp_path)
    assert "nothing.npy" in fail(2, "inspect", tmp_path / "nothing.npy")
    assert "no such file or folder" in fail(2, "inspect", tmp_path / "nothing", "--n", "5")
