"""The pages on loading models and embedding featlens: their code runs as it stands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

import featlens
from featlens.denoiser import EDMDenoiser
from featlens.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGES = Path(__file__).parent.parent / "docs" / "how-to"
WORDS = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page, language="python"):
    text = (PAGES / page).read_text(encoding="utf-8")
    return [code for found, code in WORDS.findall(text) if found == language]


def one(page, containing, language="python"):
    (code,) = [code for code in blocks(page, language) if containing in code]
    return code


def run(code, **known):
    exec(compile(code, "<page>", "exec"), known)
    return known


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Working folder whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in {"models", "my_project", "my_project.adapter", "my_project.models"} & set(
        sys.modules
    ) - before:
        del sys.modules[name]


def test_the_three_ways_to_give_options_give_the_same_model(folder):
    (folder / "models.py").write_text(one("load-models.md", "# models.py"))
    code = one("load-models.md", "python:./models.py:build")
    calls = re.findall(r"^fl\.load\(.*\)$", code, re.MULTILINE)
    assert len(calls) == 3
    models = [eval(call, {"fl": featlens}) for call in calls]  # noqa: S307
    assert run(code)["fl"] is featlens
    assert [type(model) for model in models] == [EDMDenoiser] * 3
    assert [(len(m.network.blocks), m.network.out.in_channels) for m in models] == [(3, 32)] * 3
    with pytest.raises(UsageError, match=r"has no option 'widht': did you mean 'width'\?"):
        featlens.load("python:models:build:widht=32")
    (words,) = [line.split() for line in one("load-models.md", "-o wide.h5", "sh").splitlines()]
    assert featlens.load(words[2]).network.out.in_channels == 32


def test_a_folder_of_diffusers(folder):
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        norm_num_groups=4,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    network.save_pretrained(folder / "models" / "ddpm-cifar10")
    known = run(one("load-models.md", 'model = fl.load("models/ddpm-cifar10")'), fl=featlens)
    assert known["model"].sample_shape == (3, 8, 8)
    code = one("load-models.md", "squaredcos_cap_v2").strip()
    model = eval(code, {"fl": featlens})  # noqa: S307
    assert (model.config.prediction, "squaredcos_cap_v2" in model.config.schedule) == ("v_prediction", True)


def test_the_table_of_options_is_that_of_the_adapter():
    from featlens.diffusers_models import load_diffusers
    from featlens.options import known_options

    text = (PAGES / "load-models.md").read_text(encoding="utf-8")
    table = text[text.index("| option | meaning |") :].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert known_options(load_diffusers, dict.fromkeys(named), skip=2).keys() == named
    assert named == load_diffusers.__kwdefaults__.keys()


def test_a_denoiser_of_ones_own_and_its_test():
    class Network(torch.nn.Conv2d):
        def forward(self, x, sigma):
            return super().forward(x)

    network = Network(1, 1, 1)
    known = run(one("embed.md", "class MyDenoiser"), my_network=network)
    assert isinstance(known["MyDenoiser"](network), featlens.Denoiser)
    run(one("embed.md", "def test_my_denoiser_is_one"), **known)["test_my_denoiser_is_one"]()


def test_an_adapter_of_ones_own(folder, monkeypatch):
    project = folder / "my_project"
    project.mkdir()
    (project / "__init__.py").write_text("")
    (project / "adapter.py").write_text(one("embed.md", "# my_project/adapter.py"))
    (project / "models.py").write_text(
        "from torch import nn\nfrom featlens import EDMDenoiser\n\n\n"
        "def build(width, ema):\n    model = EDMDenoiser(nn.Conv2d(1, width, 1), (1, 8, 8))\n"
        "    model.ema = ema\n    return model\n"
    )
    points = tomllib.loads(one("embed.md", "featlens.adapters", "toml"))["project"]["entry-points"]
    info = folder / "my_project-1.0.dist-info"
    info.mkdir()
    lines = [f"{name} = {value}" for name, value in points["featlens.adapters"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[featlens.adapters]", *lines]))
    monkeypatch.syspath_prepend(folder)
    checkpoint = folder / "checkpoints" / "7"
    checkpoint.mkdir(parents=True)
    (checkpoint / "my_project.json").write_text('{"width": 3}')

    text = (PAGES / "embed.md").read_text(encoding="utf-8")
    calls = re.findall(r'`fl\.load\("([^"]*checkpoints/7[^"]*)"\)`', text)
    models = [featlens.load(location) for location in calls]
    assert [(model.network.out_channels, model.ema) for model in models] == [(3, True), (3, False)]
    with pytest.raises(UsageError, match=r"adapter 'mine' has no option 'emma': .*\(it has ema\)"):
        featlens.load("mine:checkpoints/7:emma=false")
