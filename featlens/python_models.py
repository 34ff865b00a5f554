"""Functions by location from Python: ``python:module:function`` and ``python:./file.py:function``."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from featlens.errors import FeatlensError, UsageError, choices_hint
from featlens.options import require_options

if TYPE_CHECKING:
    from featlens.denoiser import Denoiser

__all__ = ["PythonFunction", "load_python", "python_function"]

_ATTRIBUTES = ("sample_shape", "num_labels", "sigma_data", "network")


def load_python(location: str, device: str, /, **options: Any) -> Denoiser | None:
    """What the function of ``module:function`` or ``file.py:function`` returns, given the options.

    Modules are also looked up in the working folder, first of all; beside a file its own folder is looked in.

    Raises
    ------
    UsageError
        No such module, file, function or option, or a needed option is missing.
    FeatlensError
        The module or the function raised an exception, or what came back is no denoiser.
    """
    found = python_function(location, "a function that returns a denoiser")
    if found is None:
        return None
    require_options(found.function, options, found.what)
    return _denoiser(found(**options), found.what, device)


@dataclass(frozen=True)
class PythonFunction:
    """A function of the user's: called like it, its exceptions come as one line that says where from.

    Attributes
    ----------
    what
        Beginning of messages, such as ``python:models:build``.
    folder
        Where modules that it imports are looked up first.
    function
        The function itself.
    """

    what: str
    folder: Path
    function: Callable[..., Any]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """What the function returns."""
        name = self.what.rpartition(":")[2]
        with _found_first(self.folder), _explained(self.what, f"{name}()"):
            return self.function(*arguments, **options)


def python_function(location: str, expected: str = "a function") -> PythonFunction | None:
    """The function of ``module:function`` or ``file.py:function``; None if that is not what is written.

    Parameters
    ----------
    location
        What follows ``python:``.
    expected
        What the function should be, for the message where it is something else.

    Raises
    ------
    UsageError
        No such module, file or function.
    FeatlensError
        The module raised an exception.
    """
    module_name, _, attribute = location.rpartition(":")
    if not module_name or not attribute:
        return None
    what = f"python:{location}"
    path = Path(module_name) if module_name.endswith(".py") or "/" in module_name else None
    if path is not None and not path.is_file():
        raise UsageError(f"{what}: no file {module_name!r}; expected the path of a Python file")
    if path is None and ":" in module_name:
        return None
    folder = Path.cwd() if path is None else path.resolve().parent
    with _found_first(folder):
        with _explained(what, "importing it"):
            module = _imported(module_name, what) if path is None else _imported_file(path.resolve())
        return PythonFunction(what, folder, _attribute(module, attribute, what, expected))


@contextlib.contextmanager
def _found_first(folder: Path) -> Iterator[None]:
    """Modules of ``folder`` win over installed ones of the same name, inside this block only."""
    here = str(folder)
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


@contextlib.contextmanager
def _explained(what: str, doing: str) -> Iterator[None]:
    """Exceptions of the user's code as one line that says where they come from."""
    try:
        yield
    except FeatlensError:
        raise
    except SystemExit as error:
        raise FeatlensError(
            f"{what}: {doing} ended the program (SystemExit: {error.code}); put what a script does under "
            "if __name__ == '__main__':"
        ) from error
    except Exception as error:
        text = " ".join(str(error).split())
        said = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        raise FeatlensError(f"{what}: {doing} raised {said}{where}; --debug shows the traceback") from error


def _imported(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(f"{what}: no module {error.name!r}; run from its folder or install it") from None


def _imported_file(path: Path) -> ModuleType:
    """Module of a file, under its own name unless another module has or could have that name."""
    name = path.stem
    if name in sys.modules and _comes_from(sys.modules[name], path):
        return sys.modules[name]
    if not name.isidentifier() or name in sys.modules or _named_by_another(name, path):
        name = f"{name}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        if name in sys.modules:
            return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file; expected a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _comes_from(module: ModuleType, path: Path) -> bool:
    origin = getattr(module, "__file__", None)
    return origin is not None and Path(origin).resolve() == path


def _named_by_another(name: str, path: Path) -> bool:
    """Whether ``import name`` elsewhere in the program would mean something else than this file."""
    folder = str(path.parent)
    kept = sys.path
    sys.path = [entry for entry in kept if str(Path(entry).resolve()) != folder]
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
    finally:
        sys.path = kept


def _attribute(module: ModuleType, attribute: str, what: str, expected: str) -> Any:
    if not hasattr(module, attribute):
        known = [name for name, value in vars(module).items() if not name.startswith("_") and callable(value)]
        hint = choices_hint(attribute, known)
        raise UsageError(f"{what}: {module.__name__} has no {attribute!r}: {hint}")
    found = getattr(module, attribute)
    if not callable(found):
        raise UsageError(f"{what}: {attribute!r} is a {type(found).__name__}; expected {expected}")
    return found


def _denoiser(model: Any, what: str, device: str) -> Denoiser:
    from torch import nn

    missing = [name for name in _ATTRIBUTES if not hasattr(model, name)]
    if missing or not callable(model):
        raise FeatlensError(
            f"{what} returned a {type(model).__name__} without "
            f"{', '.join(missing) or '__call__'}; a denoiser is expected (see featlens.Denoiser)"
        )
    model.network.to(device)
    if isinstance(model, nn.Module):
        model.to(device)
    denoiser: Denoiser = model
    return denoiser
