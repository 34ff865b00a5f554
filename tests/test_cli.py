"""The front of the command line: overview, lazy loading, misspellings, one-line errors, broken pipes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from featlens import __version__
from featlens.cli import build_parser, command_names, main
from featlens.cli.dispatch import SUMMARIES
from featlens.plugins import EntryPoint, load_entry_point

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Run = Callable[..., CompletedProcess[str]]
PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
DECLARED = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["entry-points"][
    "featlens.commands"
]

HEAVY = ("torch", "numpy", "scipy", "sklearn", "pandas", "xarray", "h5py", "plotly", "rich", "jinja2")

WHAT_IS_IMPORTED = """
import json, sys
before = set(sys.modules)
from featlens.cli import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted(set(sys.modules) - before)]))
"""


def imported_by(python: Run, *arguments: str) -> tuple[int, set[str]]:
    done = python(WHAT_IS_IMPORTED, *arguments)
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(done.stdout.splitlines()[-1])
    return code, set(modules)


def roots(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules}


# --- overview -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], ["--version"], ["studdy"]])
def test_the_overview_imports_nothing_heavy(python: Run, words: list[str]) -> None:
    _, modules = imported_by(python, *words)
    assert not roots(modules) & {*HEAVY, "email", "inspect", "zipfile"}
    assert "importlib.metadata" not in modules


def test_the_overview_lists_every_command_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out.splitlines()
    for name in DECLARED:
        assert any(line.split() == [name, *SUMMARIES[name].split()] for line in out), name
    assert [name for name in command_names() if name in SUMMARIES] == list(SUMMARIES)


def test_without_arguments_the_overview_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: featlens" in capsys.readouterr().out


def test_every_declared_command_has_a_summary_and_the_other_way_round() -> None:
    assert set(DECLARED) == set(SUMMARIES)


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_every_declared_command_loads_and_is_documented(name: str) -> None:
    module = load_entry_point(EntryPoint(name, DECLARED[name], "featlens"))
    assert module.__doc__ and module.__doc__.splitlines()[0].endswith((".", ":"))
    assert f"featlens {name}" in module.__doc__, "an example is missing"
    assert callable(module.add_arguments) and callable(module.run)


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_every_option_is_explained(name: str) -> None:
    unexplained = [action.dest for action in build_parser(name)._actions if not action.help]
    assert unexplained == []


def test_help_of_every_command_imports_no_torch(python: Run) -> None:
    code = """
import contextlib, io, sys
from featlens.cli import command_names, main
for name in command_names():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([name, "--help"]) == 0, name
    assert f"usage: featlens {name}" in out.getvalue(), name
    heavy = [module for module in sys.argv[1:] if module in sys.modules]
    assert not heavy, (name, heavy)
"""
    done = python(code, *HEAVY)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"featlens {__version__}\n"


# --- misspellings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["studdy"], "featlens studdy: unknown command 'studdy': did you mean 'study'?"),
        (["zzz"], "choose from study, train, distill"),
        (["--verzion"], "featlens: unknown option '--verzion': a command comes first"),
        (["compare", "a", "b", "--permutation", "3"], "did you mean '--permutations'"),
        (["compare", "a", "b", "--permutation=3"], "did you mean '--permutations'"),
        (["study", "digits", "--job", "1"], "did you mean '--jobs'"),
        (["inspect", "a", "b"], "unrecognized arguments: b"),
        (["inspect"], "the following arguments are required: FILE.h5|MODEL"),
        (["compare", "a", "b", "--permutations", "many"], "invalid int value: 'many'"),
        (
            ["compare", "a", "b", "--sigmas", "0.5,high"],
            "expected numbers separated by commas, got '0.5,high'",
        ),
        (["train", "digits", "--what", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_wrong_usage_is_one_line_with_the_nearest_match(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1 and said in err


def test_an_option_is_never_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a", "b", "--perm", "3"]) == 2
    assert "unrecognized arguments: --perm 3" in capsys.readouterr().err


# --- errors -------------------------------------------------------------------------------------------------


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes the command ``inspect`` raise something."""

    def install(error: BaseException) -> None:
        import featlens.cli.inspect

        def run(args: Any) -> int:
            raise error

        monkeypatch.setattr(featlens.cli.inspect, "run", run)

    return install


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RuntimeError("two\nlines"), 1, "internal error, RuntimeError: two lines; run again with --debug"),
        (MemoryError(), 1, "out of memory"),
        (KeyboardInterrupt(), 1, "interrupted; run the same command again"),
        (OSError(28, "No space left on device", "x.h5"), 1, "x.h5: the disk is full"),
        (OSError(30, "Read-only file system", "x.h5"), 1, "x.h5: the file system is read-only"),
        (ModuleNotFoundError("No module named 'submitit'", name="submitit"), 1, "featlens[slurm]"),
    ],
)
def test_whatever_a_command_raises_is_one_line(
    stub: Callable[[BaseException], None],
    error: BaseException,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub(error)
    assert main(["inspect", "x"]) == code
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and said in err
    assert err.startswith("featlens inspect: ")


@pytest.mark.parametrize("words", [["--debug", "inspect", "x"], ["inspect", "--debug", "x"]])
def test_debug_lets_the_error_through(stub: Callable[[BaseException], None], words: list[str]) -> None:
    stub(RuntimeError("boom"))
    with pytest.raises(RuntimeError, match="boom"):
        main(words)


def test_a_signal_to_end_is_heard(python: Run) -> None:
    code = """
import os, signal, sys, time
import featlens.cli.inspect
from featlens.cli import main

def run(args):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    finally:
        print("cleaned up")

featlens.cli.inspect.run = run
sys.exit(main(["inspect", "x"]))
"""
    done = python(code)
    assert (done.returncode, done.stdout) == (1, "cleaned up\n")
    assert done.stderr == "featlens inspect: interrupted; run the same command again to continue\n"


def test_the_traceback_is_shown_with_debug_only(command: Run) -> None:
    words = ("compare", "a.h5", "b.h5", "-o", "page.pdf")
    quiet, loud = command(*words), command(*words, "--debug")
    assert quiet.returncode == 2 and "Traceback" not in quiet.stderr
    assert loud.returncode != 0 and "Traceback" in loud.stderr


# --- stdout that does not take it ---------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["compare", "--help"], []])
def test_a_reader_that_has_gone_is_not_an_error_worth_a_word(command: Run, words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = command(*words, stdout=write)
    finally:
        os.close(write)
    assert done.stderr == ""
    assert done.returncode in (1, 2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("words", [["--version"], ["compare", "--help"]])
def test_a_full_disk_behind_stdout_is_one_line(command: Run, words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = command(*words, stdout=full)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "the disk is full" in done.stderr
