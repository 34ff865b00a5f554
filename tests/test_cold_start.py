"""What ``featlens compare`` imports for its answer: numpy and h5py, and nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

HEAVY = {"torch", "xarray", "pandas", "sklearn", "plotly", "umap", "rich", "matplotlib"}

CODE = """
import json, sys
from featlens.cli import main
code = main(["compare", *sys.argv[1:]])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
sys.exit(code)
"""


@pytest.fixture
def loaded(
    tmp_path: Path, make_store: Callable[..., Any], python: Callable[..., CompletedProcess[str]]
) -> Any:
    """Packages that are imported when a comparison of two files is done."""
    widths = {f"enc.block{i}": 8 for i in range(4)}
    for seed, name in enumerate("ab"):
        make_store(tmp_path / f"{name}.h5", widths=widths, sigmas=(0.5, 2.5), n=200, seed=seed)

    def run(*words: str) -> set[str]:
        done = python(CODE, tmp_path / "a.h5", tmp_path / "b.h5", *words)
        assert done.returncode == 0, done.stderr
        return set(json.loads(done.stdout.splitlines()[-1]))

    return run


@pytest.mark.parametrize("words", [(), ("--json",), ("--explain",), ("--measure", "cka(estimator=biased)")])
def test_an_answer_needs_no_heavy_package(loaded: Any, words: tuple[str, ...]) -> None:
    found = loaded(*words)
    assert {"numpy", "h5py"} <= found
    assert not found & HEAVY


def test_help_and_wrong_usage_need_not_even_numpy(python: Any) -> None:
    for words in (("--help",), ("a.h5",), ("a.h5", "b.h5", "-o", "x.pdf")):
        done = python(CODE.replace("sys.exit(code)", ""), *words)
        assert not {"numpy", "h5py", *HEAVY} & set(json.loads(done.stdout.splitlines()[-1])), words
