"""Where matrix products run: numpy, or torch on a device, with the same result."""

from __future__ import annotations

import json

import numpy as np
import pytest

from featlens import compare
from featlens.comparison.device import open_device
from featlens.comparison.rows import Rows
from featlens.errors import FeatlensError
from tests.engine_helpers import features, precise

MEASURES = ["cka", "cka(estimator=biased)", "cka(kernel=rbf)", "distance_correlation", "rsa"]

CODE = """
import json, sys
import numpy as np
from featlens import compare
x = np.random.default_rng(0).normal(size=(80, 4))
models = {"a": {"s": x}, "b": {"s": x[:, ::-1]}}
for plan in ("tiles", "features"):
    compare(models, "cka", plan=plan, device="cpu")
names = ["cka(kernel=rbf)", "distance_correlation", "rsa", "procrustes"]
compare(models, names, permutations=20, resamples=3)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""

WITHOUT = """
import sys
sys.modules["torch"] = None
import numpy as np
from featlens import compare
from featlens.errors import FeatlensError
x = np.random.default_rng(0).normal(size=(80, 4))
models = {"a": {"s": x}, "b": {"s": x}}
compare(models)
try:
    compare(models, device="cuda")
except FeatlensError as error:
    print(error)
"""


def test_torch_is_not_imported_for_numpy(python):
    done = python(CODE)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "numpy" in loaded
    assert not loaded & {"torch", "xarray", "pandas", "sklearn", "plotly"}


def test_a_device_without_torch_is_one_line(python):
    done = python(WITHOUT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "device 'cuda' needs torch, which is not installed; use 'cpu'\n"


@pytest.mark.parametrize("made", ["float32", "float64"])
@pytest.mark.parametrize("plan", ["tiles", "features"])
@pytest.mark.parametrize("n", [61, 6])
def test_torch_gives_the_same(monkeypatch, made, plan, n):
    pytest.importorskip("torch")
    precise(monkeypatch, made)
    a, b = features(n)
    names = MEASURES if plan == "tiles" else MEASURES[:2]
    ours, theirs = (
        compare({"a": a, "b": b}, names, plan=plan, permutations=20, resamples=2, device=device)
        for device in ("cpu", "torch:cpu")
    )
    assert theirs.provenance["device"] == "torch:cpu"
    for one, other in zip(ours.panels, theirs.panels, strict=True):
        for quantity, array in one.arrays.items():
            atol = 1e-12 if made == "float64" else 1e-4 if quantity.startswith("ci") else 1e-5
            np.testing.assert_allclose(array, other.arrays[quantity], rtol=0, atol=atol, err_msg=quantity)


def test_torch_gives_the_same_with_many_blocks_that_are_not_kept(monkeypatch):
    pytest.importorskip("torch")
    from featlens.comparison import engine, streaming

    monkeypatch.setattr(streaming, "ROWS", 13)
    monkeypatch.setattr(engine, "tile_size", lambda *sizes: 13)
    monkeypatch.setattr(engine, "tile_anchors", lambda *sizes: 9)
    monkeypatch.setattr(engine, "Rows", lambda *rest: Rows(*rest[:-1], 1.0))
    a, b = features(41)
    for names, plan in ((MEASURES[:4], "tiles"), (MEASURES[:2], "features")):
        ours, theirs = (
            compare({"a": a, "b": b}, names, plan=plan, permutations=0, device=device)
            for device in ("cpu", "torch:cpu")
        )
        for one, other in zip(ours.panels, theirs.panels, strict=True):
            for quantity, array in one.arrays.items():
                np.testing.assert_allclose(array, other.arrays[quantity], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:99", "device 'cuda:99' cannot be used here"),
        ("gpu", r"device 'gpu' cannot be used here \(.*\); use 'cpu' or 'cuda'"),
        ("", "device '' cannot be used here"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(name, message):
    pytest.importorskip("torch")
    a, b = features(20)
    with pytest.raises(FeatlensError, match=message) as e:
        compare({"a": a, "b": b}, device=name)
    assert "\n" not in str(e.value)


def test_cuda_is_one_line_where_it_is_absent():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(FeatlensError, match=r"device 'cuda' cannot be used here \(.*\); use 'cpu'"):
        open_device("cuda")


@pytest.mark.parametrize("made", ["float32", "float64"])
@pytest.mark.parametrize("plan", ["tiles", "features"])
def test_a_gpu_gives_the_same(monkeypatch, made, plan):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    precise(monkeypatch, made)
    a, b = features(700)
    names = MEASURES if plan == "tiles" else MEASURES[:2]
    ours, theirs = (
        compare({"a": a, "b": b}, names, plan=plan, permutations=20, resamples=2, device=device)
        for device in ("cpu", "cuda")
    )
    for one, other in zip(ours.panels, theirs.panels, strict=True):
        for quantity, array in one.arrays.items():
            atol = 1e-11 if made == "float64" else 1e-4 if quantity.startswith("ci") else 1e-5
            np.testing.assert_allclose(array, other.arrays[quantity], rtol=0, atol=atol, err_msg=quantity)


def test_arrays_go_there_and_back():
    for name in ("cpu", "torch:cpu"):
        if name != "cpu":
            pytest.importorskip("torch")
        device = open_device(name)
        array = np.arange(6.0).reshape(2, 3)
        there = device.put(array)
        np.testing.assert_array_equal(device.get(there), array)
        for kind in ("float32", "float64"):
            blank = device.empty((2, 3), kind)
            assert tuple(blank.shape) == (2, 3)
            assert str(blank.dtype).endswith(kind)
