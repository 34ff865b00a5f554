"""Models by location: prefixes, plugins, Python functions, and what is said when nothing fits."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import featlens
from featlens.adapters import load_python
from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError, UsageError
from featlens.testing import check_denoiser

MODELS = """
import torch
from featlens.denoiser import EDMDenoiser

class Net(torch.nn.Conv2d):
    def forward(self, x, c_noise, labels):
        return super().forward(x)

def make():
    return EDMDenoiser(Net(1, 1, 1), (1, 4, 4))

def make_number():
    return 3

def make_half():
    model = make()
    del model.sigma_data
    return model
"""

POINTS = """
[featlens.adapters]
python = featlens.adapters:load_python
folder = folder_adapter:load
broken = folder_adapter:no_such_function
"""

ADAPTER = """
from pathlib import Path

def load(location, device):
    if not (Path(location) / "model.txt").exists():
        return None
    from host_models import make
    return make()
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Only these adapters, and the modules beside them."""
    info = tmp_path / "site" / "featlens-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "site" / "folder_adapter.py").write_text(ADAPTER)
    (tmp_path / "host_models.py").write_text(MODELS)
    kept = [entry for entry in sys.path if "site-packages" in entry]
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), str(tmp_path), *kept, *sys.path])
    monkeypatch.setattr("featlens.adapters.entry_points", lambda group: points(tmp_path / "site", group))
    yield tmp_path
    for name in ("folder_adapter", "host_models"):
        sys.modules.pop(name, None)


def points(folder, group):
    from featlens import plugins

    return [
        point
        for distribution, text in plugins._entry_point_files(str(folder))
        for point in plugins._parse(text, group, distribution)
    ]


def test_a_python_function_gives_a_denoiser(installed):
    model = featlens.load("python:host_models:make")
    assert isinstance(model, EDMDenoiser)
    check_denoiser(model)


def test_the_working_folder_is_looked_in_and_left_out_of_the_path_again(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = list(sys.path)
    assert load_python("only_here:make", "cpu").sample_shape == (1, 4, 4)
    assert sys.path == before
    del sys.modules["only_here"]


def test_a_plugin_is_found_by_its_files_and_by_its_prefix(installed):
    model = installed / "some-model"
    model.mkdir()
    (model / "model.txt").write_text("")
    for location in (model, str(model), f"folder:{model}"):
        assert isinstance(featlens.load(location), EDMDenoiser)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (
            "python:no_such_host:make",
            "python:no_such_host:make: no module 'no_such_host'; run from its folder",
        ),
        ("python:host_models:mkae", "host_models has no 'mkae': did you mean 'make'"),
        (
            "python:host_models:make_number",
            "returned a int without sample_shape, num_labels, sigma_data, network",
        ),
        ("python:host_models:make_half", "returned a EDMDenoiser without sigma_data; a denoiser is expected"),
        ("python:host_models", "'python:host_models' is no location for 'python': expected a run folder"),
        (
            "pyhton:host_models:make",
            "unknown kind of model 'pyhton' in 'pyhton:host_models:make': did you mean 'python'",
        ),
        ("runs/no/such/teacher", "no model at 'runs/no/such/teacher': expected a run folder with run.json"),
        (
            "broken:anything",
            "adapter 'broken' of featlens cannot be loaded: .*no_such_function.*; install or update",
        ),
    ],
)
def test_locations_that_lead_nowhere_say_why_in_one_line(installed, location, message):
    with pytest.raises(FeatlensError, match=message) as caught:
        featlens.load(location)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_model_is_refused_and_a_broken_adapter_is_named(installed):
    with pytest.raises(
        UsageError, match=r"is not a model that featlens knows: .* \(adapter 'broken' of featlens"
    ):
        featlens.load(installed)


def test_a_missing_package_inside_the_host_module_is_the_one_named(installed):
    (installed / "host_broken.py").write_text("import no_such_dependency\n")
    with pytest.raises(UsageError, match="no module 'no_such_dependency'"):
        featlens.load("python:host_broken:make")


def test_weights_are_put_on_the_device(monkeypatch):
    moved = []
    network = nn.Conv2d(1, 1, 1)
    monkeypatch.setattr(network, "to", moved.append)
    model = SimpleNamespace(sample_shape=(1, 4, 4), num_labels=0, sigma_data=0.5, network=network)
    monkeypatch.setitem(sys.modules, "host_moved", SimpleNamespace(make=lambda: model))
    with pytest.raises(FeatlensError, match="without __call__"):
        load_python("host_moved:make", "cpu")
    callable_model = EDMDenoiser(nn.Identity(), (1,))
    monkeypatch.setattr(callable_model.network, "to", moved.append)
    monkeypatch.setitem(sys.modules, "host_moved", SimpleNamespace(make=lambda: callable_model))
    load_python("host_moved:make", "meta")
    assert moved == ["meta"]
    assert torch.device(moved[0]).type == "meta"
