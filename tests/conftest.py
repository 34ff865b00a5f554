"""Fixtures that several test modules share."""

from __future__ import annotations

import contextlib
import hashlib
import html.parser
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from featlens.store import FeatureWriter, SiteInfo

with contextlib.suppress(ImportError):  # The array rung is tested without torch, too.
    import torch

    torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts this in the background has its children ignore what the tests send.
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY_STUDY = """
seeds = [0]
inits = ["teacher", "single_sigma", "random"]
network = {channels = 8}
teacher = {images = 640, ramp_images = 64}
distill = {images = 256}
classifier = {images = 1280}
evaluation = {images = 64, times = 2, heun_steps = 3, grid = 4}
features = {sigmas = [0.5, 2.5], permutations = 10, probe_splits = 2}
"""

# The same examples in every run: a red build is a changed build.
settings.register_profile("featlens", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("featlens")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240501)


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script in a fresh interpreter that imports the same featlens."""

    def run(code: str, *arguments: Any, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def make_store() -> Callable[..., dict[tuple[str, float], np.ndarray]]:
    """Writes a feature file of random features and returns them by (site, sigma)."""

    def make(
        path: Path,
        widths: dict[str, int] | None = None,
        sigmas: Sequence[float] = (0.5,),
        n: int = 60,
        seed: int = 0,
        sample_digest: str = "d1",
        rows: int | None = None,
        **options: Any,
    ) -> dict[tuple[str, float], np.ndarray]:
        numbers = np.random.default_rng(seed)
        widths = widths or {"enc.conv": 8, "dec.conv": 5}
        sites = [SiteInfo(name, order, width) for order, (name, width) in enumerate(widths.items())]
        manifest = {"model": path.stem, "sample_digest": sample_digest, "sample_set": "made", "noise_seed": 0}
        written = {}
        with FeatureWriter.create(path, sites, sigmas, np.arange(n), manifest, **options) as writer:
            for index, sigma in enumerate(sigmas):
                block = {name: numbers.normal(size=(n, width)) for name, width in widths.items()}
                block = {name: values.astype(np.float32) for name, values in block.items()}
                written |= {(name, sigma): values for name, values in block.items()}
                stop = n if rows is None else rows
                if stop:
                    writer.append(index, {name: values[:stop] for name, values in block.items()})
        return written

    return make


@pytest.fixture
def make_denoiser() -> Callable[..., Any]:
    """Small convolutional denoisers in EDM coordinates, random but equal for equal seeds."""
    import torch
    from torch import nn

    from featlens.denoiser import EDMDenoiser

    class Net(nn.Module):
        def __init__(self, num_labels: int) -> None:
            super().__init__()
            self.enc = nn.ModuleDict({"conv": nn.Conv2d(1, 6, 3, padding=1), "norm": nn.GroupNorm(2, 6)})
            self.mid = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.SiLU(), nn.Dropout(0.5))
            self.told = nn.Linear(1 + num_labels, 8)
            self.out = nn.ConvTranspose2d(8, 1, 2, stride=2)

        def forward(self, x: Any, c_noise: Any, labels: Any) -> Any:
            told = c_noise[:, None] if labels is None else torch.cat([c_noise[:, None], labels], dim=1)
            inner = self.mid(torch.relu_(self.enc["norm"](self.enc["conv"](x))))
            return self.out(inner + self.told(told)[:, :, None, None])

    def make(num_labels: int = 0, seed: int = 0) -> EDMDenoiser:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return EDMDenoiser(Net(num_labels), (1, 8, 8), num_labels)

    return make


LIMITED = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
runpy.run_module("featlens", run_name="__main__")
"""


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``python -m featlens ARGUMENTS`` in its own process.

    ``path`` comes before all other packages; no file may grow beyond ``limit`` bytes, as on a full disk.
    """

    def run(
        *arguments: Any,
        cwd: Path = tmp_path,
        path: Path | None = None,
        limit: int | None = None,
        stdout: Any = subprocess.PIPE,
    ) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        env |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        if path is not None:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(path), os.environ.get("PYTHONPATH"))))
        start = ["-m", "featlens"] if limit is None else ["-c", LIMITED.format(limit)]
        return subprocess.run(
            [sys.executable, *start, *map(str, arguments)],
            cwd=cwd,
            env=env,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def tiny_toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of :func:`tiny_study`."""
    path = tmp_path_factory.mktemp("settings") / "tiny.toml"
    path.write_text(TINY_STUDY)
    return path


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory, tiny_toml: Path) -> Path:
    """Folder of a finished study of a few seconds, one for all workers; copy it before changing it."""
    import fcntl

    from featlens_trainers import Study, resolve_study

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with (root / "tiny-study.lock").open("w") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        folder = root / "tiny-study"
        if not (folder / "report.html").exists():
            Study.open(folder, resolve_study(str(tiny_toml))).run(jobs=0)
    return folder


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail with the given exit code and one line, which it returns."""
    from featlens.cli import main

    def run(code: int, *words: Any) -> str:
        left = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert (left, out) == (code, ""), err
        assert "Traceback" not in err and "internal error" not in err, err
        assert len(err.splitlines()) == 1, err
        assert err.startswith(f"featlens {words[0]}: ")
        return err

    return run


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must succeed and returns its stdout."""
    from featlens.cli import main

    def run(*words: Any) -> str:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert "Traceback" not in err
        return out

    return run


@pytest.fixture
def a(tmp_path: Path, make_store: Callable[..., Any]) -> Path:
    """A good feature file with labels."""
    path = tmp_path / "a.h5"
    make_store(path, sigmas=(0.5, 2.5), labels=np.arange(60) % 3)
    return path


@pytest.fixture
def file_digests() -> Callable[[Path], dict[str, str]]:
    """Digest of every file below a folder."""

    def digests(folder: Path) -> dict[str, str]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return digests


class ParsedPage(html.parser.HTMLParser):
    """A page taken apart: elements, visible text, scripts, and the data of its figures."""

    VOID = ("meta", "img", "br", "hr", "input", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        # A paragraph, row or cell could be left open in HTML; our templates close everything.
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self._open[-1:] != ["style"] and data.strip():
            self.words.append(data.strip())

    @property
    def text(self) -> str:
        """Everything a reader sees outside figures."""
        return " ".join(self.words)

    def attributes(self, *names: str) -> list[str]:
        """Values of the given attributes, in order."""
        return [value or "" for _, found in self.elements for key, value in found.items() if key in names]

    def figures(self, kind: str) -> list[Any]:
        """Data of the calls of ``featlensPlot`` or ``featlensExplorer``, as strict JSON."""

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        calls = (re.fullmatch(rf"{kind}\('(\w+)', (.*)\);", script, re.DOTALL) for script in self.scripts)
        return [json.loads(call[2], parse_constant=refuse) for call in calls if call]


@pytest.fixture
def parse_page() -> Callable[[Path | str], ParsedPage]:
    """Parses a page and checks what holds for all: well formed, unique anchors, nothing from elsewhere."""

    def parse(source: Path | str) -> ParsedPage:
        page = ParsedPage(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)
        names = page.attributes("id")
        assert len(names) == len(set(names)), "an anchor is there twice"
        places = page.attributes("href", "src", "srcset", "data", "action", "poster")
        assert all(place.startswith(("#", "data:image/png;base64,")) for place in places), places
        assert {place[1:] for place in places if place.startswith("#")} <= set(names)
        assert not {tag for tag, _ in page.elements} & {"link", "iframe", "object", "embed", "base"}
        assert sum("plotly.js v" in script for script in page.scripts) == 1
        return page

    return parse
