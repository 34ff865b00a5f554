"""featlens inside other projects: their packages ``trainers`` and ``probes`` and ours do not meet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = """
import json
import trainers, probes, featlens, featlens_probes, featlens_trainers

assert trainers.OWNER == probes.OWNER == "host"
modules = (trainers, probes, featlens, featlens_probes, featlens_trainers)
print(json.dumps([module.__file__ for module in modules]))
"""

USE = """
import numpy as np
import trainers.loop, probes.linear
from featlens.measures import cka
from featlens_probes import LinearProbe
from featlens_trainers import resolve_study

x = np.random.default_rng(0).normal(size=(60, 4))
assert trainers.loop.OWNER == probes.linear.OWNER == "host"
assert cka(x, x) > 0.99
assert LinearProbe().fit(x, x[:, 0] > 0).score(x, x[:, 0] > 0) > 0.8
assert resolve_study("digits").network.resolution == 8
print("all is well")
"""


def python(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(params=["packages", "modules", "namespace of a package"])
def project(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A project that has its own ``trainers`` and ``probes``."""
    for name, inner in (("trainers", "loop"), ("probes", "linear")):
        if request.param == "modules":
            (tmp_path / f"{name}.py").write_text("OWNER = 'host'\n")
            continue
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text("OWNER = 'host'\n")
        (package / f"{inner}.py").write_text("OWNER = 'host'\n")
        if request.param == "namespace of a package":
            # A folder of our package's name, without __init__.py, is no package of the host's.
            (package / f"featlens_{name}").mkdir()
            (tmp_path / f"featlens_{name}").mkdir()
    (tmp_path / "main.py").write_text(MAIN)
    (tmp_path / "use.py").write_text(USE)
    return tmp_path


@pytest.mark.parametrize("words", [["main.py"], ["-m", "main"], ["-c", MAIN]])
def test_both_sides_get_their_own_packages(project: Path, words: list[str]) -> None:
    done = python(project, *words)
    assert done.returncode == 0, done.stderr
    files = [Path(file).resolve() for file in json.loads(done.stdout)]
    assert all(file.is_relative_to(project.resolve()) for file in files[:2])
    assert not any(file.is_relative_to(project.resolve()) for file in files[2:])
    assert [file.parent.name for file in files[2:]] == ["featlens", "featlens_probes", "featlens_trainers"]


@pytest.mark.parametrize("project", ["packages"], indirect=True)
def test_both_sides_work_in_one_process(project: Path) -> None:
    done = python(project, "use.py")
    assert (done.returncode, done.stdout) == (0, "all is well\n"), done.stderr


@pytest.mark.parametrize("project", ["packages"], indirect=True)
def test_the_command_works_in_such_a_project(project: Path) -> None:
    for name in ("study", "probe"):
        done = python(project, "-m", "featlens", name, "--help")
        assert done.returncode == 0, done.stderr
        assert f"usage: featlens {name}" in done.stdout


def test_the_folders_of_our_packages_are_no_packages() -> None:
    root = Path(__file__).parent.parent
    assert not (root / "trainers" / "__init__.py").exists()
    assert not (root / "probes" / "__init__.py").exists()
