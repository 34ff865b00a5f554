"""Models by location: prefixes, plugins, Python functions, and what is said when nothing fits."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import featlens
from featlens.cli import main
from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError, UsageError
from featlens.python_models import load_python
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

def build(width, depth=2, name="plain", device="none"):
    model = make()
    model.told = (width, depth, name, device)
    return model

def leave():
    raise SystemExit(3)

def divide():
    return 1 / 0

def own_error():
    from featlens import FeatlensError
    raise FeatlensError("weights are missing; train first")

setting = 3
"""

POINTS = """
[featlens.adapters]
python = featlens.python_models:load_python
folder = folder_adapter:load
aaa = folder_adapter:refuse
broken = folder_adapter:no_such_function
"""

ADAPTER = """
from pathlib import Path

def load(location, device, *, ema=True, width=1):
    if not (Path(location) / "model.txt").exists():
        return None
    from host_models import build
    return build(width, name=str(ema))

def refuse(location, device):
    from featlens.errors import FeatlensError, UsageError
    if (Path(location) / "model.txt").exists() or (Path(location) / "almost.txt").exists():
        raise UsageError("almost a model of aaa; add more")
    if (Path(location) / "broken.txt").exists():
        raise FeatlensError("a broken model of aaa; write it again")
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
            "python:no_such_host:make: no module 'no_such_host'; run from its folder or install it",
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
        ("python:host_models:setting", "'setting' is a int; expected a function that returns a denoiser"),
        ("python:host_models:build:width", "is no location for 'python'"),
        (
            "python:host_models:build",
            "python:host_models:build needs 'width'; give options, as in ':width=VALUE'",
        ),
        (
            "python:host_models:build:width=1,dept=3",
            r"python:host_models:build has no option 'dept': did you mean 'depth'\? \(it has width, depth",
        ),
        (
            "python:host_models:leave",
            r"^python:host_models:leave: leave\(\) ended the program \(SystemExit: 3\); put what a script",
        ),
        (
            "python:host_models:divide",
            r"^python:host_models:divide: divide\(\) raised ZeroDivisionError: division by zero "
            r"\(host_models.py, line \d+\); --debug shows the traceback",
        ),
        ("python:host_models:own_error", "^weights are missing; train first$"),
        ("python:./no_such.py:make", "python:./no_such.py:make: no file './no_such.py'; expected the path"),
        (
            "google/ddpm-cifar10-32",
            "no model at .*; featlens downloads nothing: if it is a model of the Hugging Face hub, run "
            "'hf download google/ddpm-cifar10-32 --local-dir models/ddpm-cifar10-32' and give models/ddpm",
        ),
        ("folder:google/ddpm", "is no location for 'folder': .*run 'hf download google/ddpm --local-dir"),
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


@pytest.mark.parametrize(
    ("location", "options"),
    [
        ("python:host_models:build:width=32,name='a, b'", {}),
        ("python:host_models:build", {"width": 32, "name": "a, b"}),
        ("python:host_models:build:width=32", {"name": "a, b"}),
    ],
)
def test_options_reach_the_function(installed, location, options):
    assert featlens.load(location, **options).told == (32, 2, "a, b", "none")


def test_an_option_may_be_called_device(installed):
    assert featlens.load("python:host_models:build:width=1,device=there").told[3] == "there"


def test_an_option_given_twice_is_refused(installed):
    with pytest.raises(UsageError, match=r"option 'width' is in .* and an argument; give it once"):
        featlens.load("python:host_models:build:width=1", width=2)


@pytest.fixture
def model(installed):
    folder = installed / "some-model"
    folder.mkdir()
    (folder / "model.txt").write_text("")
    return folder


def test_options_reach_an_adapter_with_and_without_its_name(model):
    for location in (f"folder:{model}:ema=false,width=5", f"{model}:ema=false,width=5"):
        assert featlens.load(location).told[:3] == (5, 2, "False")
    assert featlens.load(model, width=5, ema=False).told[:3] == (5, 2, "False")


@pytest.mark.parametrize("prefix", ["", "folder:"])
def test_options_that_an_adapter_does_not_have_are_refused_by_name(model, prefix):
    with pytest.raises(UsageError, match=r"adapter 'folder' has no option 'emma': .*\(it has ema, width\)"):
        featlens.load(f"{prefix}{model}:emma=false")


def test_a_path_that_is_there_is_never_taken_apart(model, installed):
    odd = model.rename(installed / "made:ema=false")
    assert featlens.load(odd).told[2] == "True"
    assert featlens.load(odd, ema=False).told[2] == "False"


def test_a_usage_error_of_one_adapter_lets_the_others_try(model, installed):
    # Adapter aaa, asked first, refuses the folder that is the other's.
    assert featlens.load(model).told[2] == "True"
    almost = installed / "almost"
    almost.mkdir()
    (almost / "almost.txt").write_text("")
    with pytest.raises(UsageError, match=r"^almost a model of aaa; add more$"):
        featlens.load(almost)


def test_any_other_error_of_an_adapter_ends_the_search(model):
    (model / "broken.txt").write_text("")
    (model / "model.txt").rename(model / "other.txt")
    with pytest.raises(FeatlensError, match=r"^a broken model of aaa"):
        featlens.load(model)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Working folder for files; their modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_function_of_a_file_with_what_lies_beside_it(host):
    (host / "far").mkdir()
    (host / "far" / "models_of_mine.py").write_text(f"from beside_models import make\n{MODELS}")
    (host / "far" / "beside_models.py").write_text(MODELS)
    before = list(sys.path)
    for location in ("far/models_of_mine.py", "./far/models_of_mine.py", host / "far" / "models_of_mine.py"):
        model = featlens.load(f"python:{location}:build:width=2")
        assert model.told[0] == 2
        assert type(model.network).__module__ == "models_of_mine"
    assert sys.path == before


def test_a_file_that_is_named_like_a_package_takes_no_name(host):
    import json

    for name in ("json", "wave", "odd-name"):
        (host / f"{name}.py").write_text(MODELS)
        model = featlens.load(f"python:./{name}.py:build:width=7")
        assert model.told[0] == 7
        assert type(model.network).__module__.startswith(f"{name}_")
        # Asked for again, it is the same module.
        assert type(featlens.load(f"python:{name}.py:make").network) is type(model.network)
    assert sys.modules["json"] is json
    import wave

    assert hasattr(wave, "Wave_read")


def test_two_files_of_one_name_are_two_modules(host):
    for name in "ab":
        (host / name).mkdir()
        (host / name / "my_models.py").write_text(
            f"{MODELS}\nwhich = {name!r}\nbuild.__defaults__ = (2, which, '')\n"
        )
    told = [featlens.load(f"python:{name}/my_models.py:build:width=1").told[2] for name in "aba"]
    assert told == ["a", "b", "a"]


def test_a_file_that_fails_leaves_no_module_behind(host):
    (host / "failing_models.py").write_text("import sys\nsys.exit('no GPU')\n")
    with pytest.raises(
        FeatlensError, match=r"python:./failing_models.py:make: importing it ended .*: no GPU\)"
    ):
        featlens.load("python:./failing_models.py:make")
    assert "failing_models" not in sys.modules
    (host / "failing_models.py").write_text("def make(:\n")
    with pytest.raises(
        FeatlensError, match=r"importing it raised SyntaxError: .*; --debug shows the traceback"
    ):
        featlens.load("python:./failing_models.py:make")


def test_the_command_line_shows_one_line_and_with_debug_the_traceback(host, capsys):
    (host / "divide_models.py").write_text(MODELS)
    words = ["extract", "python:divide_models:divide", "-o", "x.h5"]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith("featlens extract: python:divide_models:divide: divide() raised ZeroDivisionError")
    assert len(err.splitlines()) == 1
    with pytest.raises(FeatlensError) as caught:
        main([*words, "--debug"])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_looking_for_an_adapter_imports_no_torch(python, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    code = """
import sys
from featlens.adapters import load
from featlens.diffusers_models import load_diffusers
from featlens.python_models import load_python
assert load_diffusers(sys.argv[1], "cpu") is None
assert load_python("nothing", "cpu") is None
assert not {"torch", "diffusers"} & set(sys.modules)
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
