"""Parsers of commands: one-line errors, nearest matches, and the options that mean the same everywhere."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any, NoReturn, Protocol

from featlens.errors import choices_hint

__all__ = [
    "Command",
    "Parser",
    "add_json",
    "make_parser",
    "measure_list",
    "number_list",
    "selection_list",
    "size",
    "terminable",
]


class Command(Protocol):
    """What the module of a command offers."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work; the exit code."""


class Parser(argparse.ArgumentParser):
    """Parser whose errors are one line, with the nearest option for a misspelled one."""

    def error(self, message: str) -> NoReturn:
        """Print ``prog: message`` and leave with 2."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            options = [option for action in self._actions for option in action.option_strings]
            first = unknown.split()[0].split("=")[0]
            if first.startswith("-"):
                message += f" ({choices_hint(first, options)})"
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)  # noqa: T201
        raise SystemExit(2)


def make_parser(name: str, command: Command) -> argparse.ArgumentParser:
    """Parser of a command, as ``featlens NAME --help`` shows it."""
    parser = Parser(
        prog=f"featlens {name}",
        description=(command.__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.add_arguments(parser)
    return parser


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does: workers are stopped and files closed."""
    import signal
    import threading

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    own = threading.current_thread() is threading.main_thread()
    own = own and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if own:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if own:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Option ``--json`` as it means everywhere: machine-readable data on stdout."""
    parser.add_argument("--json", action="store_true", help="print JSON to stdout")


NAMES = {float: "numbers", int: "whole numbers", str: "names"}


def number_list(kind: type[Any]) -> Any:
    """Argument type for comma-separated numbers or names."""

    def parse(text: str) -> list[Any]:
        wanted = f"expected {NAMES[kind]} separated by commas, got {text!r}"
        try:
            found = [kind(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError:
            raise argparse.ArgumentTypeError(wanted) from None
        if not found:
            raise argparse.ArgumentTypeError(wanted)
        return found

    parse.__name__ = f"{kind.__name__} list"
    return parse


def selection_list(text: str, kind: str = "site names or patterns") -> list[str]:
    """Site selectors separated by commas; commas inside brackets belong to a selector."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    found = [part.strip() for part in parts if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"expected {kind} separated by commas, got {text!r}")
    return found


def measure_list(text: str) -> list[str]:
    """Measures separated by commas; commas inside parentheses belong to a measure."""
    return selection_list(text, "measures such as cka or 'rsa(distance=cosine)'")


UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size(text: str) -> float:
    """Bytes of a size such as ``500MB`` or ``1.5 GiB``."""
    number = text.strip().rstrip("bBkKmMgGtTiI ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        value = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"expected a size such as 500MB or 10GB, got {text!r}") from None
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a size above 0, got {text!r}")
    return value
