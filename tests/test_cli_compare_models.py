"""``featlens compare`` on models: extracted into a cache on the samples of the files, found there again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featlens import FeatureStore
from featlens.cli import main
from featlens.cli.features import cache_folder
from featlens.store import FeatureWriter

MODELS = """
import torch
from torch import nn
from featlens import EDMDenoiser

class Net(nn.Module):
    def __init__(self, width, labels, channels):
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.SiLU())
        self.told = nn.Linear(1 + labels, width)
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, x, c_noise, labels):
        told = c_noise[:, None] if labels is None else torch.cat([c_noise[:, None], labels], 1)
        return self.out(self.enc(x) + self.told(told)[:, :, None, None])

def make(width=6, seed=0, labels=0, sigma_init=None, size=8, channels=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        denoiser = EDMDenoiser(Net(width, labels, channels), (channels, size, size), labels)
    denoiser.sigma_init = sigma_init
    return denoiser

class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.middle = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 1))

    def forward(self, x, c_noise, labels):
        return self.middle(x)

def other():
    return EDMDenoiser(Other(), (1, 8, 8))

def broken():
    raise RuntimeError("no weights\\nhere")
"""
A, B = "A=python:compare_models:make", "B=python:compare_models:make:seed=1"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with the models and an empty cache of its own."""
    (tmp_path / "compare_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "compare_models", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs ``featlens compare ... --json`` and returns what it found, and what it said on stderr."""

    def run(*words: Any, code: int = 0) -> tuple[Any, str]:
        left = main(["compare", *map(str, words), "--permutations", "0", "--no-intervals", "--json"])
        out, err = capsys.readouterr()
        assert left == code, err
        assert "Traceback" not in err and "internal error" not in err, err
        return (json.loads(out) if code == 0 else out), err

    return run


@pytest.fixture
def extract(capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """Runs ``featlens extract`` and returns the file."""

    def run(name: str, *words: Any, options: str = "") -> Path:
        model = f"python:compare_models:make{':' if options else ''}{options}"
        assert main(["extract", model, "-o", name, *map(str, words)]) == 0
        capsys.readouterr()
        return Path(name)

    return run


def cached() -> list[Path]:
    return sorted(Path("xdg/featlens").glob("*.h5"))


def values(found: Any) -> list[float]:
    return [cell["value"] for cell in found["cells"]]


# --- models alone -------------------------------------------------------------------------------------------


def test_models_are_extracted_once_and_found_again(call: Any) -> None:
    words = (A, B, "--n", "20", "--sigmas", "0.5,2.5", "--sites", "enc.*")
    first, said = call(*words)
    files = cached()
    assert len(files) == 2 and said.count("extracted to") == 2 and "warning" not in said
    assert {cell["site_a"] for cell in first["cells"]} == {"enc.0", "enc.1"}
    assert {cell["sigma"] for cell in first["cells"]} == {0.5, 2.5}
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    again, said = call(*words)
    assert values(again) == values(first) and said.count("found in") == 2
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in cached()] == before


def test_the_cache_holds_what_extract_writes(call: Any, extract: Any) -> None:
    words = ("--n", "12", "--sigmas", "0.5", "--reduce", "grid(2)", "--labels", "both", "--batch", "5")
    options = "labels=10"
    call(f"a=python:compare_models:make:{options}", B, *words[:6], code=0)
    reference = extract("a.h5", *words, "--seed", "4", options=options)
    model = f"python:compare_models:make:{options}"
    call(model, f"x={model}", *words, "--noise-seed", "4")
    newest = max(cached(), key=lambda path: path.stat().st_mtime_ns)
    with FeatureStore(reference) as one, FeatureStore(newest) as two:
        assert list(one.sites) == list(two.sites) and any(site.endswith("@uncond") for site in two.sites)
        assert {**one.manifest, "model": ""} == {**two.manifest, "model": ""}
        assert all(np.array_equal(one.read(site, 0.5), two.read(site, 0.5)) for site in one.sites)


def test_what_changes_features_changes_the_file(call: Any, folder: Path) -> None:
    words = ["--n", "8", "--sigmas", "0.5"]
    others = [
        ["--n", "9", "--sigmas", "0.5"],
        ["--n", "8", "--sigmas", "2.5"],
        [*words, "--noise-seed", "1"],
        [*words, "--sites", "enc.0"],
        [*words, "--reduce", "flatten"],
        [*words, "--dtype", "float16"],
        [*words, "--split", "train"],
        [*words, "--inputs", "latents"],
    ]
    for number, chosen in enumerate((words, *others), start=1):
        call(A, f"same={A[2:]}", *chosen)
        assert len(cached()) == number, chosen
    call(A, f"same={A[2:]}", *words, "--batch", "3")
    call(A, "same=python:compare_models:make:seed=0", *words)
    # Another spelling of the location is another provenance.
    assert len(cached()) == len(others) + 2
    # The same weights in other code are another model.
    text = MODELS.replace("nn.SiLU()", "nn.ReLU()")
    (folder / "compare_models.py").write_text(text)
    sys.modules.pop("compare_models")
    call(A, f"same={A[2:]}", *words)
    assert len(cached()) == len(others) + 3


def test_the_cache_lies_where_it_is_wanted(call: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(A, B, "--n", "8", "--sigmas", "1", "--cache", "mine/deeper")
    assert len(list(Path("mine/deeper").glob("make-*.h5"))) == 2 and not Path("xdg").exists()
    assert cache_folder() == folder / "xdg" / "featlens"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "featlens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "featlens"
    assert cache_folder("x") == Path("x")


def test_an_interrupted_extraction_is_finished(call: Any) -> None:
    words = (A, B, "--n", "20", "--sigmas", "0.5,2.5")
    first, _ = call(*words)
    path = cached()[0]
    with FeatureStore(path) as store:
        rows = {name: store.read(name, 0.5) for name in store.sites}
        sites, sigmas, ids, manifest = list(store.sites.values()), store.sigmas, store.ids, store.manifest
        labels = store.labels
    whole = path.read_bytes()
    path.unlink()
    with FeatureWriter.create(path, sites, sigmas, ids, manifest, labels) as writer:
        writer.append(0, {name: rows[name] for name in writer.names})
    again, said = call(*words)
    assert values(again) == values(first)
    assert said.count("found in") == said.count("extracted to") == 1
    assert len(whole) == path.stat().st_size


def test_a_damaged_file_of_the_cache_is_made_again(call: Any) -> None:
    words = (A, B, "--n", "20", "--sigmas", "0.5")
    first, _ = call(*words)
    path = cached()[0]
    path.write_bytes(path.read_bytes()[:3000])
    again, said = call(*words)
    assert values(again) == values(first)
    assert f"warning: {path.absolute()} is truncated" in said and "it is made again" in said


def test_two_processes_on_one_file(call: Any) -> None:
    words = (A, B, "--n", "8", "--sigmas", "0.5")
    call(*words)
    path = cached()[0]
    with FeatureStore(path) as store:
        sites, sigmas, ids, manifest = list(store.sites.values()), store.sigmas, store.ids, store.manifest
    path.unlink()
    with FeatureWriter.create(path, sites, sigmas, ids, manifest):
        _, said = call(*words, code=1)
    assert "is being written in" in said and str(path) in said


# --- models beside files ------------------------------------------------------------------------------------


def test_a_model_is_extracted_on_the_samples_of_the_file(call: Any, extract: Any) -> None:
    split = ("--split", "train", "--n", "24", "--seed", "7", "--sigmas", "0.3,3", "--reduce", "grid(2)")
    file = extract("a.h5", *split, "--sites", "enc.*")
    found, _ = call(file, A)
    with FeatureStore(file) as one, FeatureStore(cached()[0]) as two:
        same = ("sample_digest", "noise_seed", "sigmas", "reducer", "sites", "weights_digest")
        assert all(one.manifest[key] == two.manifest[key] for key in same)
        assert np.array_equal(one.ids, two.ids)
    assert all(
        cell["value"] == pytest.approx(1, abs=1e-6)
        for cell in found["cells"]
        if cell["site_a"] == cell["site_b"]
    )


def test_a_model_with_other_sites_gets_the_default(call: Any, extract: Any) -> None:
    file = extract("a.h5", "--n", "12", "--sigmas", "0.5", "--sites", "enc.0,out")
    found, _ = call(file, "python:compare_models:other")
    assert {cell["site_b"] for cell in found["cells"]} == {"middle.0", "middle.1", "middle.2"}
    found, _ = call(file, "python:compare_models:make:seed=5")
    assert {cell["site_b"] for cell in found["cells"]} == {"enc.0", "out"}
    found, _ = call(file, "python:compare_models:make:seed=5", "--sites", "out")
    assert {(cell["site_a"], cell["site_b"]) for cell in found["cells"]} == {("out", "out")}


def test_latents_and_noise_follow_the_file(call: Any, extract: Any) -> None:
    words = ("--samples", "noise", "--inputs", "latents", "--n", "16", "--sigmas", "2.5")
    file = extract("a.h5", *words, "--seed", "3", options="labels=10")
    call(file, "python:compare_models:make:labels=10,seed=1")
    with FeatureStore(file) as one, FeatureStore(cached()[0]) as two:
        assert one.sample_digest == two.sample_digest and two.manifest["inputs"] == "latents"


def test_own_images_are_found_by_their_digest(call: Any, extract: Any) -> None:
    rng = np.random.default_rng(0)
    np.save("images.npy", rng.uniform(-1, 1, (40, 1, 8, 8)).astype(np.float32))
    file = extract("a.h5", "--samples", "images.npy", "--n", "30", "--seed", "2", "--sigmas", "0.5")
    _, said = call(file, B, code=2)
    assert "a.h5 was made of images.npy, whose place is not in the file: give it with --samples" in said
    call(file, B, "--samples", "images.npy")
    with FeatureStore(file) as one, FeatureStore(cached()[0]) as two:
        assert one.sample_digest == two.sample_digest
    np.save("others.npy", rng.uniform(-1, 1, (40, 1, 8, 8)).astype(np.float32))
    _, said = call(file, B, "--samples", "others.npy", code=1)
    assert "on other samples or other noise than a.h5" in said and len(cached()) == 1
    call(file, B, "--samples", "others.npy", "--allow-other-samples")


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_parts_of_any_images_are_found_by_their_digest(call: Any, extract: Any, split: str) -> None:
    pixels = np.random.default_rng(0).uniform(-1, 1, (40, 1, 8, 8))
    np.save("images.npy", pixels.astype(np.float32))
    words = ("--samples", "images.npy", "--sigmas", "0.5")
    file = extract("a.h5", *words, "--split", split)
    call(file, B, *words[:2])
    with FeatureStore(file) as one, FeatureStore(cached()[0]) as two:
        assert one.sample_digest == two.sample_digest and np.array_equal(one.ids, two.ids)


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_shapes_are_known_by_name(call: Any, extract: Any, split: str) -> None:
    words = ("--samples", "shapes16:seed=4", "--n", "12", "--sigmas", "0.5", "--split", split)
    file = extract("a.h5", *words, options="size=16,channels=3")
    call(file, "python:compare_models:make:size=16,channels=3,seed=1")
    with FeatureStore(file) as one, FeatureStore(cached()[0]) as two:
        assert one.sample_digest == two.sample_digest and len(two) == 12


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere/teacher", B], 2, "no model at 'nowhere/teacher': expected a run folder"),
        ([".", B], 2, "'.' is not a model that featlens knows"),
        ([A, "python:compare_models:mak"], 2, "did you mean 'make'"),
        ([A, "pyton:compare_models:make"], 2, "did you mean 'python'?"),
        ([A, "python:compare_models:broken"], 1, "RuntimeError: no weights here"),
        ([A, B, "--sites", "enk.*"], 2, "no site 'enk.*' in the network"),
        ([A, B, "--sites", "enc.3"], 2, "did you mean 'enc."),
        ([A, B, "--sigmas", "-1"], 2, "numbers above 0"),
        ([A, B, "--n", "0"], 2, "599 images, 0 asked for"),
        ([A, B, "--batch", "0"], 2, "--batch must be at least 1, got 0"),
        ([A, B, "--reduce", "gapp"], 2, "did you mean 'gap'?"),
        ([A, B, "--samples", "digit"], 2, "did you mean 'digits'?"),
        ([A, B, "--samples", "noise"], 2, "--samples noise has no images"),
        ([A, B, "--split", "test"], 2, "choose from all, train, held-out"),
        ([A, B, "--device", "cudda"], 2, "unknown device 'cudda'"),
        ([A, B, "--reference", "C"], 2, "choose from A, B"),
        ([A, B, "--measure", "ckaa"], 2, "did you mean 'cka'"),
        ([A, B, "-o", "x.pdf"], 2, "ends in .html, .nc or .csv"),
        ([A, B, "--permutations", "-1"], 2, "--permutations must be 0 or more, got -1"),
        ([A, "python:compare_models:make:size=4"], 2, "the model takes samples of shape (1, 4, 4)"),
        ([A, "python:compare_models:make:labels=5"], 2, "the model knows labels 0 to 4"),
    ],
)
def test_wrong_models_and_options_are_one_line(fail: Any, words: list[str], code: int, said: str) -> None:
    line = fail(code, "compare", *words, *([] if "--n" in words else ["--n", "8"]))
    assert said in line
    assert cached() == []


def test_a_cache_that_cannot_be_written_is_named(fail: Any, folder: Path) -> None:
    (folder / "file").touch()
    line = fail(1, "compare", A, B, "--n", "8", "--cache", "file/below")
    assert "file" in line and "choose another folder with --cache" in line


def test_a_full_disk_while_extracting(folder: Path, command: Any) -> None:
    words = ("compare", A, B, "--n", "300", "--sigmas", "0.5,2.5", "--cache", "cache")
    done = command(*words, cwd=folder, path=folder, limit=2_000)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "cache/make-" in done.stderr and "file size limit was reached" in done.stderr
    assert list((folder / "cache").iterdir()) == []


def test_a_file_that_does_not_fit_stops_before_a_model_runs(call: Any, extract: Any) -> None:
    one = extract("a.h5", "--n", "8", "--sigmas", "0.5")
    two = extract("b.h5", "--n", "8", "--sigmas", "0.5", "--seed", "1")
    _, said = call(one, two, A, code=1)
    assert "other samples or other noise" in said
    assert not os.path.exists("xdg/featlens") or not cached()  # noqa: PTH110
    _, said = call(one, "missing.h5", A, code=1)
    assert "missing.h5: there is no such file" in said and not cached()
