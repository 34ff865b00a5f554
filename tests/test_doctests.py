"""Every module can be imported, and the examples in its docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = [ROOT / "featlens", ROOT / "probes" / "featlens_probes", ROOT / "trainers" / "featlens_trainers"]
OPTIONAL = {"accelerate", "diffusers", "kaleido", "submitit", "tensorboard"}


def module_names():
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(package.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("name", list(module_names()))
def test_examples_run(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0, "see the captured output"


def test_examples_are_found_in_all_three_packages():
    for package in PACKAGES:
        found = doctest.DocTestFinder(recurse=True)
        names = [name for name in module_names() if name.partition(".")[0] == package.name]
        modules = [importlib.import_module(name) for name in names if ">>>" in source(name)]
        assert sum(len(test.examples) for module in modules for test in found.find(module)) > 0, package.name


def source(name):
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).read_text(encoding="utf-8")
