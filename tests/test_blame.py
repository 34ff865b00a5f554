"""A command that cannot be loaded: the line names what is to blame, and the other commands work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from featlens.cli import main
from featlens.cli.blame import explain_import

Run = Callable[..., CompletedProcess[str]]

RUNS = '''"""Say hello.

  featlens hello
"""


def add_arguments(parser):
    parser.add_argument("--name", default="you", help="whom to greet")


def run(args):
    print(f"hello {args.name}")
    return 0
'''


def distribution(folder: Path, body: str, name: str = "hello", value: str = "hello_plugin") -> Path:
    """A distribution ``hello-plugin`` in ``folder`` with one command."""
    info = folder / "hello_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hello-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[featlens.commands]\n{name} = {value}\n")
    (folder / "hello_plugin.py").write_text(body)
    return folder


def one_line(done: CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


# --- plugins ------------------------------------------------------------------------------------------------


def test_a_command_of_another_distribution_works(tmp_path: Path, command: Run) -> None:
    folder = distribution(tmp_path / "site", RUNS)
    done = command("hello", "--name", "world", path=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello world\n", "")
    listed = command("--help", path=folder)
    assert any(line.split() == ["hello", "from", "hello_plugin"] for line in listed.stdout.splitlines())


def test_a_plugin_cannot_take_the_place_of_a_command_of_ours(tmp_path: Path, command: Run) -> None:
    folder = distribution(tmp_path / "site", RUNS, name="inspect")
    assert "feature file" in command("inspect", "--help", path=folder).stdout


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import no_such_package_xyz", "needs the package 'no_such_package_xyz', which is not installed"),
        ("import hello_plugin_missing.part", "pip install hello_plugin_missing"),
        ("import os\nos.no_such_thing", "AttributeError: module 'os' has no attribute 'no_such_thing'"),
        ("def broken(:\n", "SyntaxError: "),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("from os import no_such_thing", "cannot import name 'no_such_thing' from 'os'"),
    ],
)
def test_a_broken_plugin_is_named_and_the_rest_works(
    tmp_path: Path, command: Run, body: str, said: str
) -> None:
    folder = distribution(tmp_path / "site", body)
    line = one_line(command("hello", path=folder))
    assert line.startswith("featlens hello: command 'hello' ") and said in line
    if "package" not in line:
        assert "hello_plugin.py" in line
    assert command("compare", "--help", path=folder).returncode == 0
    assert "  hello" in command("--help", path=folder).stdout


def test_a_plugin_without_its_module_or_attribute(tmp_path: Path, command: Run) -> None:
    gone = distribution(tmp_path / "a", RUNS, value="hello_gone")
    assert "no module 'hello_gone'; reinstall" in one_line(command("hello", path=gone))
    attribute = distribution(tmp_path / "b", RUNS, value="hello_plugin:greet")
    assert "has no attribute 'greet'" in one_line(command("hello", path=attribute))


def test_debug_shows_the_traceback_of_the_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(distribution(tmp_path / "site", "raise ValueError('boom')")))
    with pytest.raises(ValueError, match="boom"):
        main(["hello", "--debug"])


# --- packages that are not installed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("submitit", "pip install 'featlens[slurm]'"),
        ("submitit.core.utils", "pip install 'featlens[slurm]'"),
        ("diffusers", "pip install 'featlens[diffusers]'"),
        ("kaleido", "pip install 'featlens[export]'"),
        ("sklearn", "pip install scikit-learn"),
        ("PIL.Image", "pip install pillow"),
        ("umap", "pip install umap-learn"),
    ],
)
def test_a_missing_package_comes_with_the_way_to_install_it(module: str, advice: str) -> None:
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    line = explain_import(error, "command 'study'", "featlens_trainers.cli.study")
    assert advice in line and "not installed" in line and "\n" not in line


def test_a_missing_module_of_ours_is_a_broken_installation() -> None:
    error = ModuleNotFoundError("No module named 'featlens.gone'", name="featlens.gone")
    assert "reinstall" in explain_import(error, "command 'compare'", "featlens.cli.compare")


# --- files that hide a package ------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["", "raise RuntimeError('host')\n", "import torch_of_the_host\n"])
def test_a_host_module_that_hides_ours_is_named(tmp_path: Path, command: Run, body: str) -> None:
    file = tmp_path / "featlens_trainers.py"
    file.write_text(body)
    for words in (("study", "digits"), ("train", "digits")):
        line = one_line(command(*words, cwd=tmp_path))
        assert str(file) in line and "hides it" in line and "'featlens_trainers'" in line
    assert command("compare", "--help", cwd=tmp_path).returncode == 0
    assert command("probe", "--help", cwd=tmp_path).returncode == 0
    assert "study" in command("--help", cwd=tmp_path).stdout


def test_a_host_package_that_hides_ours_is_named(tmp_path: Path, command: Run) -> None:
    package = tmp_path / "featlens_probes"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert str(package / "__init__.py") in one_line(command("probe", "a.h5", cwd=tmp_path))
    assert command("study", "--help", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("h5py", ("inspect", "a.h5")),  # AttributeError where it is used
        ("array_api_compat", ("compare", "a.h5", "a.h5")),  # ImportError, later
        ("plotly", ("compare", "a.h5", "a.h5", "-o", "page.html", "--permutations", "0")),  # not a package
        ("random", ("inspect", "a.h5")),  # the standard library
    ],
)
def test_a_host_module_that_hides_a_dependency_is_named(
    tmp_path: Path,
    command: Run,
    make_store: Callable[..., object],
    name: str,
    words: tuple[str, ...],
) -> None:
    make_store(tmp_path / "a.h5", n=8)
    file = tmp_path / f"{name}.py"
    file.write_text("")
    line = one_line(command(*words, cwd=tmp_path))
    assert str(file) in line and "rename that file" in line
    assert command("--help", cwd=tmp_path).returncode == 0


def test_a_harmless_file_of_the_host_is_not_blamed(tmp_path: Path, command: Run) -> None:
    (tmp_path / "helper.py").write_text("")
    folder = distribution(tmp_path / "site", "from helper import nothing")
    line = one_line(command("hello", cwd=tmp_path, path=folder))
    assert "cannot import name 'nothing' from 'helper'" in line and "hides" not in line
