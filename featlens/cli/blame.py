"""Say which file, package or extra is to blame when a command cannot be imported."""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["explain_import"]

OURS = ("featlens", "featlens_probes", "featlens_trainers")
INSTALL_NAMES = {"sklearn": "scikit-learn", "PIL": "pillow", "umap": "umap-learn", "yaml": "PyYAML"}


def explain_import(error: BaseException, what: str, value: str) -> str:
    """One line for an exception while importing ``value`` (``module:attribute``) for ``what``."""
    shadow = _shadow(error, value)
    if shadow:
        name, path = shadow
        return (
            f"{what} cannot be loaded: {path} is found before the package {name!r} and hides it; "
            "rename that file or run from another folder (the other commands are not affected)"
        )
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.split(".")[0]
        if package == value.split(":")[0].split(".")[0] or package in OURS:
            return (
                f"{what} cannot be loaded: no module {error.name!r}; "
                "reinstall the distribution that provides it"
            )
        install = INSTALL_NAMES.get(package, package)
        extra = _extra_of(install)
        how = f"pip install 'featlens[{extra}]'" if extra else f"pip install {install}"
        return (
            f"{what} needs the package {install!r}, which is not installed: {how} "
            "(the other commands are not affected)"
        )
    text = " ".join(str(error).split())
    where = _last_file(error)
    return (
        f"{what} cannot be loaded: {type(error).__name__}: {text[:200]}{where}; "
        "run with --debug for the traceback"
    )


def _shadow(error: BaseException, value: str) -> tuple[str, Path] | None:
    """A module of ours, of a dependency or of the standard library that another file on the path hides."""
    suspects = list(OURS)
    named = (getattr(error, "name", None), value.split(":")[0], _module_in_text(str(error)))
    suspects.extend(module.split(".")[0] for module in named if module)
    home = Path(__file__).resolve().parents[1].parent
    expected = {home, home / "probes", home / "trainers"}
    for name in dict.fromkeys(suspects):
        path = _location(name)
        if path is None:
            continue
        folder = path.parent.parent if path.name == "__init__.py" else path.parent
        if name in OURS:
            if folder not in expected and not (folder / name / "_version.py").exists():
                return name, path
        elif folder in _local_folders() and (name in sys.stdlib_module_names or _is_dependency(name)):
            return name, path
    return None


def _location(name: str) -> Path | None:
    module = sys.modules.get(name)
    origin = getattr(module, "__file__", None)
    if origin is None:
        import importlib.util

        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
        origin = spec.origin if spec is not None and spec.has_location else None
    return Path(origin).resolve() if origin else None


def _local_folders() -> set[Path]:
    """Folders on the path that hold a user's own files: the working folder and the script's folder."""
    return {Path.cwd().resolve(), Path(sys.path[0] or ".").resolve()} if sys.path else {Path.cwd().resolve()}


def _module_in_text(text: str) -> str | None:
    found = re.search(r"(?:module|from) '([\w.]+)'", text)
    return found[1] if found else None


def _is_dependency(module: str) -> bool:
    install = INSTALL_NAMES.get(module, module).lower().replace("_", "-")
    return any(re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") == install for line in _requirements())  # type: ignore[index]


def _extra_of(package: str) -> str | None:
    wanted = package.lower().replace("_", "-")
    for line in _requirements():
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"""extra == ['"]([\w-]+)['"]""", line)
        if name and extra and name[0].lower().replace("_", "-") == wanted:
            return extra[1]
    return None


def _requirements() -> list[str]:
    from importlib.metadata import PackageNotFoundError, requires

    try:
        return requires("featlens") or []
    except PackageNotFoundError:
        return []


def _last_file(error: BaseException) -> str:
    trace = error.__traceback__
    path = None
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        trace = trace.tb_next
    return f" (in {path})" if path and not path.startswith("<") else ""
