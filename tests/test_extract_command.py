"""``featlens extract`` as its users call it: selectors, latents, warnings, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from featlens import FeatureStore
from featlens.cli import main
from featlens.cli.extract import local_device
from featlens.cli.parser import selection_list, size

MODELS = """
import os, time, torch
from torch import nn
from featlens import EDMDenoiser

class Net(nn.Module):
    def __init__(self, labels):
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.SiLU())
        self.told = nn.Linear(1 + labels, 6)
        self.out = nn.Conv2d(6, 1, 1)

    def forward(self, x, c_noise, labels):
        time.sleep(float(os.environ.get("PAUSE", 0)))
        told = c_noise[:, None] if labels is None else torch.cat([c_noise[:, None], labels], 1)
        return self.out(self.enc(x) + self.told(told)[:, :, None, None])

def make(labels=0, sigma_init=None):
    torch.manual_seed(0)
    denoiser = EDMDenoiser(Net(labels), (1, 8, 8), labels)
    denoiser.sigma_init = sigma_init
    return denoiser
"""


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs the command in its folder and returns what it said on stdout and stderr."""
    (tmp_path / "extract_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "extract_models", raising=False)

    def run(*words, options="", code=0):
        model = "python:extract_models:make" + (f":{options}" if options else "")
        left = main(["extract", model, *map(str, words)])
        said = capsys.readouterr()
        assert left == code, said.err
        return said.out, said.err

    return run


def test_selectors_of_every_kind(tmp_path, call):
    call("-o", "a.h5", "--n", 5, "--sigmas", "0.5", "--sites", "type:Conv2d,re:enc\\.[1-9],told@in,index:2")
    with FeatureStore(tmp_path / "a.h5") as store:
        assert list(store.sites) == ["enc.0", "enc.1", "told@in", "out"]
        assert [site.kind for site in store.sites.values()] == ["Conv2d", "SiLU", "Linear", "Conv2d"]


def test_commas_inside_brackets_belong_to_a_selector():
    assert selection_list("re:a{1,2},b[x,y], c.*") == ["re:a{1,2}", "b[x,y]", "c.*"]


@pytest.mark.parametrize(
    ("text", "value"), [("500MB", 5e8), ("10 gb", 1e10), ("1.5GiB", 1.5 * 2**30), ("123", 123), ("2kB", 2000)]
)
def test_sizes_are_read_as_people_write_them(text, value):
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1 XB", "many"])
def test_other_sizes_are_refused(call, text):
    _, err = call("-o", "a.h5", f"--warn-size={text}", code=2)
    assert "expected a size" in err and len(err.splitlines()) == 1


def test_a_generator_is_looked_at_from_noise_alone(tmp_path, call):
    words = ["--n", 12, "--inputs", "latents", "--samples", "noise", "--sites", "out"]
    call("-o", "a.h5", *words, options="sigma_init=2.5")
    with FeatureStore(tmp_path / "a.h5") as store:
        assert store.sigmas.tolist() == [2.5]
        assert store.manifest["inputs"] == "latents" and store.manifest["sample_set"] == "noise"
        assert store.labels is None
    call("-o", "b.h5", *words, "--labels", "both", options="sigma_init=2.5,labels=3")
    with FeatureStore(tmp_path / "b.h5") as store:
        assert store.labels is not None and store.labels.tolist() == [0, 1, 2] * 4
        assert list(store.sites) == ["out@cond", "out@uncond"]


def test_noise_alone_needs_latents_and_a_number(call):
    _, err = call("-o", "a.h5", "--samples", "noise", code=2)
    assert err == "featlens extract: --samples noise has no images: give --inputs latents and --n\n"


def test_images_of_a_file(tmp_path, call):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8))
    call("-o", "a.h5", "--samples", "x.npy", "--sites", "out", "--sigmas", "0.5")
    with FeatureStore(tmp_path / "a.h5") as store:
        assert len(store) == 20
    _, err = call("-o", "b.h5", "--samples", "y.npy", "--sites", "out", code=2)
    assert "y.npy" in err and len(err.splitlines()) == 1


def test_a_large_file_is_warned_of_in_one_line(call):
    words = ["--n", 12, "--sites", "out", "--sigmas", "0.5", "--warn-size", "40"]
    _, err = call("-o", "a.h5", *words)
    assert err.startswith(
        "featlens extract: warning: a.h5 will hold 48 bytes of features, more than 40 bytes;"
    )
    out, err = call("-o", "b.h5", *words, "--dry-run")
    assert "48 bytes" in out
    assert err.startswith("featlens extract: warning: the file would be larger than --warn-size")


def test_the_plan_as_json(call):
    out, _ = call("-o", "a.h5", "--n", 12, "--sites", "enc.*", "--sigmas", "0.5", "--dry-run", "--json")
    found = json.loads(out)
    assert [site["name"] for site in found["plan"]["sites"]] == ["enc.0", "enc.1"]
    assert found["plan"]["seconds_per_batch"] > 0


def test_half_the_bytes_compressed(tmp_path, call):
    words = ["--n", 100, "--sites", "enc.*", "--sigmas", "0.5", "--reduce", "flatten"]
    call("-o", "a.h5", *words)
    call("-o", "b.h5", *words, "--dtype", "float16", "--compress")
    sizes = [(tmp_path / name).stat().st_size for name in ("a.h5", "b.h5")]
    assert sizes[1] < 0.5 * sizes[0]


def test_each_process_of_a_launcher_takes_its_own_gpu(monkeypatch):
    assert local_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [local_device(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_a_file_that_the_same_command_finishes(tmp_path, call, number):
    words = ["--n", "599", "--sites", "out", "--sigmas", "0.5,2.5", "--batch", "64"]
    call("-o", "whole.h5", *words)
    start = [sys.executable, "-m", "featlens", "extract", "python:extract_models:make", "-o", "a.h5", *words]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PAUSE": "0.2"}
    process = subprocess.Popen(start, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    path, deadline = tmp_path / "a.h5", time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 1
        assert err == "featlens extract: interrupted; run the same command again to continue\n"
    with FeatureStore(path) as store:
        assert not store.complete
    call("-o", "a.h5", *words)
    assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_the_command_says_its_name_once(call):
    _, err = call("-o", "a.h5", "--n", 5, "--sites", "out", "--halves", "a", code=2)
    assert err.startswith("featlens extract: halves are two or more names")
