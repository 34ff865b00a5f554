"""Feature functions: TorchScript, Python, the study's classifier; how images are handed over."""

from __future__ import annotations

import pickle
import sys
import textwrap
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featlens.errors import FeatlensError, UsageError
from featlens_trainers.classifier import Classifier, features_of, save_classifier
from featlens_trainers.evaluation import Extractor, Inputs, images_of, load_extractor
from featlens_trainers.evaluation.images import cached_features, features
from featlens_trainers.initialisation import seeded


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.float()).mean((2, 3), keepdim=True)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "small.ts"
    with seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Small().eval(), torch.zeros(1, 3, 8, 8)).save(str(path))
    return path


@pytest.fixture
def images() -> Tensor:
    return torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


# --- how images are handed over -----------------------------------------------------------------------------


def test_ranges() -> None:
    x = torch.tensor([-1.5, -1.0, 0.0, 0.5, 1.0, 2.0]).reshape(1, 1, 1, 6)
    assert torch.equal(Inputs()(x), x)
    assert Inputs("[0,1]")(x).flatten().tolist() == [0, 0, 0.5, 0.75, 1, 1]
    assert Inputs("[0,255]")(x).flatten().tolist() == [0, 0, 127.5, 191.25, 255, 255]
    whole = Inputs("uint8")(x)
    assert whole.dtype == torch.uint8 and whole.flatten().tolist() == [0, 0, 128, 191, 255, 255]


def test_size_and_colour() -> None:
    x = torch.rand(2, 1, 8, 8)
    out = Inputs(size=4, rgb=True)(x)
    assert out.shape == (2, 3, 4, 4)
    assert torch.equal(out[:, 0], out[:, 2])
    assert float(out.mean()) == pytest.approx(float(x.mean()), rel=0.05)
    assert torch.equal(Inputs(size=8)(x), x)
    colour = torch.rand(2, 3, 8, 8)
    assert torch.equal(Inputs(rgb=True)(colour), colour)


def test_options_as_they_are_written(script: Path) -> None:
    found = load_extractor(f"{script}:range=uint8,size=8,rgb=yes")
    assert found.inputs == Inputs("uint8", 8, True)
    assert load_extractor(f"{script}:range=[0,1],rgb=no").inputs == Inputs("[0,1]")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("rage=uint8", "no option 'rage': did you mean 'range'"),
        ("range=uint", "unknown range 'uint'"),
        ("range=[0,2]", "unknown range"),
        ("size=big", "whole number of pixels"),
        ("size=0", "at least 1 pixel"),
        ("rgb=perhaps", "rgb is yes or no"),
    ],
)
def test_options_that_mean_nothing_are_refused(script: Path, options: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_extractor(f"{script}:{options}")


# --- TorchScript --------------------------------------------------------------------------------------------


def test_a_torchscript_file_gives_what_the_module_gives(script: Path, images: Tensor) -> None:
    with seeded(0):
        module = Small().eval()
    found = load_extractor(str(script))(images)
    assert found.dtype == np.float64 and found.shape == (7, 5)
    np.testing.assert_allclose(found, module(images).flatten(1).detach().numpy(), atol=1e-6)


def test_the_digest_follows_the_file_and_the_options(script: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.ts"
    copy.write_bytes(script.read_bytes())
    assert load_extractor(str(copy)).digest == load_extractor(str(script)).digest
    assert load_extractor(f"{script}:range=uint8").digest != load_extractor(str(script)).digest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Small().eval(), torch.zeros(1, 3, 8, 8)).save(str(copy))
    assert load_extractor(str(copy)).digest != load_extractor(str(script)).digest


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_what_is_no_torchscript_is_refused_and_no_pickle_is_run(tmp_path: Path, script: Path) -> None:
    text, weights, hostile, cut = (tmp_path / name for name in ("a.ts", "b.pt", "c.ts", "d.ts"))
    text.write_text("not a model")
    torch.save(nn.Linear(2, 2).state_dict(), weights)
    hostile.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    cut.write_bytes(script.read_bytes()[:-200])
    for path in (text, weights, hostile, cut):
        with pytest.raises(FeatlensError, match="is no TorchScript file"):
            load_extractor(str(path))
    disguised = tmp_path / "e.ts"
    with zipfile.ZipFile(disguised, "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"e/{name}", pickle.dumps(Trap(tmp_path / "sprung")))
        archive.writestr("e/version", "3\n")
    with pytest.raises(FeatlensError, match="cannot be loaded as TorchScript"):
        load_extractor(str(disguised))
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(UsageError, match="no extractor at"):
        load_extractor(str(tmp_path / "nowhere.ts"))


def test_a_model_that_does_not_take_the_images_says_so_in_one_line(script: Path) -> None:
    with pytest.raises(
        FeatlensError, match=r"failed on images \(2, 1, 8, 8\) float32: .*options range"
    ) as told:
        load_extractor(str(script))(torch.zeros(2, 1, 8, 8))
    assert "\n" not in str(told.value)
    assert load_extractor(f"{script}:rgb=yes")(torch.zeros(2, 1, 8, 8)).shape == (2, 5)


# --- Python -------------------------------------------------------------------------------------------------

MODULE = """
import torch
SCALE = 2.0
def means(images):
    return SCALE * images.mean((2, 3))
def wrong(images):
    return images
def few(images):
    return images.mean((2, 3))[:-1]
def broken(images):
    raise KeyError("no such thing")
def nan(images):
    out = images.mean((2, 3))
    out[images[:, 0, 0, 0] > 0.9] = float("nan")
    return out
def arrays(images):
    return images.numpy().mean((2, 3))
def build():
    return torch.nn.Flatten()
def nothing():
    return None
number = 3
"""


@pytest.fixture
def module(tmp_path: Path) -> str:
    path = tmp_path / "feats.py"
    path.write_text(textwrap.dedent(MODULE))
    return f"python:{path}"


def test_python_functions(
    module: str, images: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = 2 * images.mean((2, 3)).double().numpy()
    np.testing.assert_allclose(load_extractor(f"{module}:means")(images), wanted, rtol=1e-6)
    np.testing.assert_allclose(2 * load_extractor(f"{module}:arrays")(images), wanted, rtol=1e-5)
    flat = load_extractor(f"{module}:build:build=yes,range=[0,1]")(images)
    np.testing.assert_allclose(flat, (images.flatten(1).numpy() + 1) / 2, rtol=1e-5, atol=1e-6)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "feats", raising=False)
    np.testing.assert_allclose(load_extractor("python:feats:means")(images), wanted, rtol=1e-6)


def test_the_digest_follows_the_source(module: str, tmp_path: Path) -> None:
    first = load_extractor(f"{module}:means").digest
    assert load_extractor(f"{module}:means").digest == first
    assert load_extractor(f"{module}:arrays").digest != first
    (tmp_path / "feats.py").write_text(MODULE.replace("2.0", "3.0"))
    assert load_extractor(f"{module}:means").digest != first


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mean", "has no 'mean': did you mean 'means'"),
        ("number", "is a int; expected a function from images to features"),
        ("wrong", r"expected features \(7, d\).*got shape \(7, 3, 8, 8\)"),
        ("few", r"got shape \(6, 3\)"),
        ("broken", "raised KeyError: 'no such thing'"),
        ("nothing:build=yes", "returned a NoneType; with build=yes"),
        ("means:width=3", "no option 'width'"),
    ],
)
def test_python_functions_that_do_not_work_are_named(
    module: str, images: Tensor, name: str, said: str
) -> None:
    with pytest.raises(FeatlensError, match=said):
        load_extractor(f"{module}:{name}")(images)
    with pytest.raises(UsageError, match="expected python:module:function"):
        load_extractor("python:means")


# --- the study's classifier, and features of many images ----------------------------------------------------


def test_a_study_s_classifier_by_its_folder(tmp_path: Path, images: Tensor) -> None:
    classifier = Classifier(3, 8, 4, 6)
    (tmp_path / "classifier").mkdir()
    save_classifier(tmp_path / "classifier" / "classifier.safetensors", classifier)
    for location in (tmp_path, tmp_path / "classifier"):
        found = load_extractor(str(location))
        np.testing.assert_array_equal(found(images), features_of(classifier, images))
        assert found.shape == (3, 8, 8)
    with pytest.raises(UsageError, match="takes no options"):
        load_extractor(f"{tmp_path}:size=8")
    with pytest.raises(
        UsageError, match=r"takes images of shape \(3, 8, 8\), those of mine have \(1, 8, 8\)"
    ):
        features(found, images_of(images[:, :1], "mine"))


def test_features_come_in_batches_and_name_the_image_that_is_not_finite(module: str, images: Tensor) -> None:
    found = load_extractor(f"{module}:means")
    told: list[tuple[int, int]] = []
    rows = features(found, images_of(images, "mine"), lambda *counts: told.append(counts), batch=3)
    np.testing.assert_allclose(rows, found(images), rtol=1e-6)
    assert told == [(3, 7), (6, 7), (7, 7)]
    images[:, 0, 0, 0] = 0
    images[5, 0, 0, 0] = 1
    with pytest.raises(FeatlensError, match="features of image 5 of mine hold NaN"):
        features(load_extractor(f"{module}:nan"), images_of(images, "mine"), batch=3)


def test_features_are_kept_by_digest_and_made_again_where_the_file_is_damaged(
    tmp_path: Path, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def count(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x.mean((2, 3))

    extractor = Extractor("mine", "abc", count, Inputs())
    folder = tmp_path / "kept"
    first, digest = cached_features(extractor, images_of(images, "x"), folder)
    again, same = cached_features(extractor, images_of(images.clone(), "y"), folder)
    assert np.array_equal(first, again) and digest == same and calls == [7]
    (file,) = folder.iterdir()
    assert file.name == f"features-abc-{digest}.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 255
    file.write_bytes(data)
    assert np.array_equal(cached_features(extractor, images_of(images, "x"), folder)[0], first)
    assert calls == [7, 7] and "computed again" in caplog.text
    other, changed = cached_features(extractor, images_of(images[:6], "x"), folder)
    assert len(other) == 6 and changed != digest and len(list(folder.iterdir())) == 2
    assert cached_features(extractor, images_of(images, "x"), None)[1] == digest
