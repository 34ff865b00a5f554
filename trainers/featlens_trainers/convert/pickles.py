"""A file of EDM taken apart: modules, attributes and where tensors lie, without running any of its code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from featlens.errors import FeatlensError, UsageError
from featlens.files import explain_os_error, human_bytes
from featlens_trainers.convert.machine import Inspection, Instance, Machine, shown
from featlens_trainers.convert.meanings import edm_meanings
from featlens_trainers.convert.storages import StoredTensor

__all__ = ["Module", "is_pickle", "modules", "read_pickle", "sha256_of"]

LARGEST = 16 * 2**30
"""Bytes of a file; the largest released network has a third of it."""

MODULES = 10_000
ENTRIES = 1_000
PATH_LENGTH = 300
"""A network of a thousand blocks stays below all of these."""

UNKNOWN_SHOWN = 20

_TORCH_FILE = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of a file of ``torch.save`` that is no zip archive."""

_TRAINING_STATE = (
    "this is a file of torch.save, such as training-state-*.pt with the optimiser in it; give the "
    "network-snapshot-*.pkl of the same run instead"
)


class _Bounded:
    """Stream that never asks the system for more bytes than the file has left."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size
        self.readline = file.readline
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self._size)) if count else b""


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle of EDM's kind, by its first bytes.

    Raises
    ------
    UsageError
        It is what ``torch.save`` wrote, which holds no network of EDM's kind.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_TORCH_FILE))
    except OSError:
        return False
    if start == _TORCH_FILE or _is_torch_zip(path, start):
        raise UsageError(f"{path}: {_TRAINING_STATE}")
    return len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5


def _is_torch_zip(path: Path, start: bytes) -> bool:
    import zipfile

    if not start.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def read_pickle(path: Path) -> Any:
    """What the pickle describes; nothing in it is imported or called.

    Raises
    ------
    FeatlensError
        The file is damaged, too large, or refers to anything beyond what a network of EDM needs; then all
        such names are listed.
    """
    failure: FeatlensError | None = None
    root: Any = None
    inspection = Inspection(0)
    try:
        size = path.stat().st_size
        inspection.size = 2 * size
        if size > LARGEST:
            raise FeatlensError(f"expected at most {human_bytes(LARGEST)}, got {human_bytes(size)}")
        with path.open("rb") as file:
            root = Machine(edm_meanings(inspection), inspection).read(_Bounded(file, size))
    except OSError as error:
        raise explain_os_error(error, path) from error
    except FeatlensError as error:
        failure = error
    if inspection.unknown:
        raise FeatlensError(f"{path}: {_unknown(list(inspection.unknown), failure)}")
    if failure is not None:
        raise FeatlensError(f"{path}: {failure}")
    return root


def _unknown(names: list[str], failure: FeatlensError | None) -> str:
    listed = ", ".join(sorted(names)[:UNKNOWN_SHOWN])
    more = f", ... ({len(names)} in all)" if len(names) > UNKNOWN_SHOWN else ""
    cut = f"; reading stopped there: {failure}" if failure is not None else ""
    return (
        f"the pickle refers to what no network of EDM needs: {listed}{more}. None of it was run and nothing "
        f"was read further; convert only files from whom you trust, written by EDM's own training code{cut}"
    )


@dataclass(frozen=True, eq=False)
class Module:
    """One module of the network in the file.

    Attributes
    ----------
    path
        Its name in the network, empty for the network itself.
    class_name
        Name of its class.
    attributes
        Whatever it holds.
    """

    path: str
    class_name: str
    attributes: dict[str, Any]

    def tensors(self) -> Iterator[tuple[str, StoredTensor]]:
        """Its own parameters and buffers by their full names."""
        for part in ("_parameters", "_buffers"):
            for name, value in _mapping(self, part).items():
                full = _joined(self.path, name)
                if isinstance(value, StoredTensor):
                    yield full, value
                elif value is not None:
                    raise FeatlensError(f"expected a tensor at {shown(full)}, got a {_what(value)}")

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was constructed with by name, as far as the file says."""
        return _mapping(self, "_init_kwargs")


def _mapping(module: Module, name: str) -> dict[str, Any]:
    found = module.attributes.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise FeatlensError(f"expected {name} of {shown(module.path)!r} to be a dict, got a {_what(found)}")
    if len(found) > ENTRIES or not all(isinstance(key, str) for key in found):
        raise FeatlensError(f"expected up to {ENTRIES} names in {name} of {shown(module.path)!r}, got others")
    return found


def _what(value: Any) -> str:
    return shown(value.kind.dotted) if isinstance(value, Instance) else type(value).__name__


def module_of(value: Any, path: str = "") -> Module:
    """Module that a record describes."""
    if not isinstance(value, Instance) or not isinstance(value.state, dict):
        raise FeatlensError(f"expected a module at {shown(path) or 'the top'!r}, got a {_what(value)}")
    return Module(path, value.class_name, value.state)


def modules(network: Any) -> dict[str, Module]:
    """Every module of a network by name, itself under the empty name."""
    found: dict[str, Module] = {}
    seen: set[int] = set()
    waiting = [("", network)]
    while waiting:
        path, value = waiting.pop()
        # A module in two places could be in two places of a module in two places, and so on.
        if id(value) in seen or len(found) >= MODULES:
            raise FeatlensError(f"module {shown(path)!r} occurs twice, or there are more than {MODULES}")
        seen.add(id(value))
        found[path] = module_of(value, path)
        for name, child in _mapping(found[path], "_modules").items():
            if child is not None:
                waiting.append((_joined(path, name), child))
    return found


def _joined(path: str, name: str) -> str:
    if len(path) + len(name) > PATH_LENGTH:
        raise FeatlensError(f"expected names of up to {PATH_LENGTH} letters, got {shown(path + name[:100])}")
    return f"{path}.{name}" if path else name
