"""Find the command, load its module, run it, and say in one line what went wrong.

A command is a module with ``add_arguments(parser)`` and ``run(args) -> int``; its docstring is its description. It is
imported only when it is called, and it imports what is heavy only inside ``run``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol, cast

from featlens._version import __version__
from featlens.cli.blame import explain_import
from featlens.errors import FeatlensError, UsageError, choices_hint
from featlens.plugins import EntryPoint, entry_points, load_entry_point

__all__ = ["SUMMARIES", "Command", "Parser", "build_parser", "command_names", "main"]

SUMMARIES = {
    "study": "run a whole study: train, distil, capture, compare, probe, report",
    "train": "train a teacher, or its single-noise-level control",
    "distill": "distil a one-step student from an initialisation",
    "sample": "draw images from a trained teacher or student",
    "evaluate": "Frechet distance and KID of a run's images to held-out data",
    "extract": "store the activations of a model in a feature file",
    "inspect": "show what a feature file or a model holds",
    "compare": "compare two feature files site by site",
    "probe": "linear probes over site x sigma of a feature file",
    "report": "write the report of a study again",
}
"""One line for each command of ours, so that the overview needs none of their modules."""


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


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points("featlens.commands")}


def command_names() -> list[str]:
    """Names of all installed commands, ours first in the order of the overview."""
    found = _points()
    return [name for name in SUMMARIES if name in found] + sorted(set(found) - set(SUMMARIES))


def _overview() -> str:
    found = _points()
    names = command_names()
    width = max((len(name) for name in names), default=0)
    lines = [
        "usage: featlens [--version] [--debug] COMMAND ...",
        "",
        "Why does initialising a one-step generator from a diffusion teacher work?",
        "",
        "commands:",
        *(f"  {name:<{width}}  {SUMMARIES.get(name, 'from ' + found[name].distribution)}" for name in names),
        "",
        "featlens COMMAND --help shows a command's options. Start with: featlens study digits",
        "Exit codes: 0 done, 1 the work failed, 2 wrong usage. --debug shows the traceback of an error.",
    ]
    if not names:
        lines.insert(5, "  none found: featlens is not installed; run 'pip install .' in its folder")
    return "\n".join(lines)


def _load(name: str) -> Command:
    found = _points()
    if name not in found:
        raise UsageError(f"unknown command {name!r}: {choices_hint(name, command_names(), most=12)}")
    point = found[name]
    try:
        return cast(Command, load_entry_point(point))
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        raise FeatlensError(explain_import(error, f"command {name!r}", point.value)) from error


def build_parser(name: str) -> argparse.ArgumentParser:
    """Parser of one command, as ``featlens NAME --help`` shows it."""
    return _parser(name, _load(name))


def _parser(name: str, command: Command) -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"featlens {name}",
        description=(command.__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``featlens`` with the given arguments (default: the process' own); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    while arguments[:1] == ["--debug"]:
        arguments.pop(0)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return _say(_overview()) if arguments else _say(_overview(), code=2)
    if arguments[0] in ("--version", "-V"):
        return _say(f"featlens {__version__}")
    name = arguments[0]
    try:
        if name.startswith("-"):
            raise UsageError(f"unknown option {name!r}: a command comes first; see featlens --help")
        command = _load(name)
        args = _parser(name, command).parse_args(arguments[1:])
        code = command.run(args)
        sys.stdout.flush()
        return code
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    except BrokenPipeError:
        # Whoever read our output has gone; nothing is left to say, and nothing must be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail(name, "interrupted; run the same command again to continue", 1)
    except Exception as error:
        if debug:
            raise
        return _fail(name, *_explained(error, name))


def _explained(error: Exception, name: str) -> tuple[str, int]:
    if isinstance(error, FeatlensError):
        return str(error), error.exit_code
    if isinstance(error, ImportError):
        return explain_import(error, f"command {name!r}", "featlens"), 1
    if isinstance(error, OSError):
        from featlens.files import explain_os_error

        return str(explain_os_error(error)), 1
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "out of memory; use a smaller --batch, fewer --jobs or fewer samples", 1
    text = " ".join(str(error).split())
    return f"internal error, {type(error).__name__}: {text[:300]}; run again with --debug for the traceback", 1


def _say(text: str, code: int = 0) -> int:
    print(text)  # noqa: T201
    return code


def _fail(name: str, message: str, code: int) -> int:
    print(f"featlens {name}: {message}" if not name.startswith("-") else f"featlens: {message}", file=sys.stderr)  # noqa: T201
    return code


def add_json(parser: argparse.ArgumentParser) -> None:
    """Option ``--json`` as it means everywhere: machine-readable data on stdout."""
    parser.add_argument("--json", action="store_true", help="print JSON to stdout")


def number_list(kind: type[Any]) -> Any:
    """Argument type for comma-separated numbers or names."""

    def parse(text: str) -> list[Any]:
        try:
            return [kind(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {kind.__name__}s separated by commas, got {text!r}") from None

    parse.__name__ = f"{kind.__name__} list"
    return parse
