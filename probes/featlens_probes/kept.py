"""Values of a long computation, kept one by one, so that the same command goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from featlens.errors import FeatlensError
from featlens.files import explain_os_error, lock_file, make_folder

__all__ = ["Kept", "kept_path"]


def kept_path(out: os.PathLike[str] | str) -> Path:
    """Where the values for a result that will be written to ``out`` are kept.

    >>> kept_path("a/probes.json").as_posix()
    'a/probes.json.parts.jsonl'
    """
    return Path(f"{out}.parts.jsonl")


class Kept:
    """Mapping from keys to JSON values in a file that a kill at any moment leaves readable.

    Parameters
    ----------
    path
        File of JSON lines; None keeps in memory only.
    identity
        Everything that decides what the values are (settings, digests of inputs). Values that were kept under
        another identity are not used: the file is begun anew.

    Raises
    ------
    FeatlensError
        If another process writes the same file, or it cannot be written.

    Examples
    --------
    >>> with Kept(None, {"seed": 0}) as kept:
    ...     first, again = kept.get("a", lambda: 1.5), kept.get("a", lambda: 2.5)
    >>> first, again
    (1.5, 1.5)
    """

    def __init__(self, path: os.PathLike[str] | str | None, identity: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        plain = json.dumps(identity, sort_keys=True, default=str)
        self.identity = hashlib.sha256(plain.encode()).hexdigest()[:16]
        self.values: dict[str, Any] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Kept:
        if self.path is not None:
            make_folder(self.path.parent)
            try:
                self._file = self.path.open("a+b")
                if lock_file(self._file.fileno()) is False:
                    self._file.close()
                    raise FeatlensError(
                        f"{self.path} is in use by another process; wait for it or choose another output"
                    )
                self._read(self._file)
            except OSError as error:
                self.__exit__(None, None, None)
                raise explain_os_error(error, self.path) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self, file: IO[bytes]) -> None:
        file.seek(0)
        good = 0
        for number, line in enumerate(file):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            wanted = {"key", "value"} if number else {"identity"}
            if not isinstance(entry, dict) or set(entry) != wanted:
                break
            if not number and entry["identity"] != self.identity:
                break
            if number:
                self.values[str(entry["key"])] = entry["value"]
            good += len(line)
        # Half a line is what a kill leaves, and values of another request are of no use.
        file.truncate(good)
        file.seek(good)
        if not good:
            self._append({"identity": self.identity})

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self._file is None or self.path is None:
            return
        try:
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def __contains__(self, key: object) -> bool:
        return key in self.values

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """The value kept under ``key``, made and kept now if there is none."""
        if key not in self.values:
            self.put(key, make())
        return self.values[key]

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON value; NaN and infinities are kept as Python's JSON writes them."""
        self.values[key] = value
        self._append({"key": key, "value": value})

    def remove(self) -> None:
        """Delete the file, once the result is written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
