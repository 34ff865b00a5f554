"""Find the command, load its module, run it, and say in one line what went wrong.

A command is a module with ``add_arguments(parser)`` and ``run(args) -> int``; its docstring is its
description. It is imported only when it is called, and it imports what is heavy only inside ``run``.
"""

from __future__ import annotations

import os
import sys

from featlens._version import __version__
from featlens.errors import FeatlensError, UsageError, choices_hint
from featlens.plugins import EntryPoint, entry_points, load_entry_point

# The overview has to come at once: argparse, typing and all else is imported when a command runs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from featlens.cli.parser import Command

__all__ = ["SUMMARIES", "build_parser", "command_names", "main"]

SUMMARIES = {
    "study": "run a whole study: train, distil, capture, compare, probe, report",
    "train": "train a teacher, or a control of the same size",
    "distill": "distil a one-step student from an initialisation",
    "sample": "draw images from a trained teacher or student",
    "evaluate": "distances, precision, recall and coverage of generated images, with errors",
    "ema": "reconstruct a weight average of another width from a run's snapshots",
    "extract": "store the activations of a model in a feature file",
    "convert": "networks of EDM to runs of ours, runs to folders of diffusers and back",
    "merge": "make one feature file of the shards of several processes",
    "inspect": "show what a feature file, a model or a set of images holds",
    "compare": "compare feature files or models site by site",
    "geometry": "rank, dimension and dead units of a feature file",
    "probe": "linear probes over site x sigma of a feature file",
    "report": "write the report of a study again",
}
"""One line for each command of ours, so that the overview needs none of their modules."""


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


def _load(name: str, debug: bool = False) -> Command:
    found = _points()
    if name not in found:
        raise UsageError(f"unknown command {name!r}: {choices_hint(name, command_names(), most=12)}")
    point = found[name]
    try:
        command: Command = load_entry_point(point)
    except Exception as error:
        if debug:
            raise
        from featlens.cli.blame import explain_import

        raise FeatlensError(explain_import(error, f"command {name!r}", point.value)) from error
    return command


def build_parser(name: str) -> argparse.ArgumentParser:
    """Parser of one command, as ``featlens NAME --help`` shows it."""
    from featlens.cli.parser import make_parser

    return make_parser(name, _load(name))


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``featlens`` with the given arguments (default: the process' own); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    while arguments[:1] == ["--debug"]:
        arguments.pop(0)
    name = arguments[0] if arguments else "--help"
    try:
        code = _dispatch(name, arguments[1:], debug) if arguments else _say(_overview(), code=2)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _settle_stdout()  # Whoever read our output has gone; nothing is left to say.
        return 1
    except KeyboardInterrupt as end:
        # An end that was asked for and prepared says how it went, and is no failure.
        said = str(end) or "interrupted; run the same command again to continue"
        return _fail(name, said, getattr(end, "exit_code", 1))
    except Exception as error:
        if debug:
            raise
        return _fail(name, *_explained(error, name))


def _dispatch(name: str, arguments: list[str], debug: bool) -> int:
    if name in ("-h", "--help", "help"):
        return _say(_overview())
    if name in ("--version", "-V"):
        return _say(f"featlens {__version__}")
    if name.startswith("-"):
        raise UsageError(f"unknown option {name!r}: a command comes first; see featlens --help")
    command = _load(name, debug)
    from featlens.cli.parser import make_parser, terminable

    try:
        args = make_parser(name, command).parse_args(arguments)
        with terminable():
            return command.run(args)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0


def _explained(error: Exception, name: str) -> tuple[str, int]:
    if isinstance(error, FeatlensError):
        return str(error), error.exit_code
    if isinstance(error, ImportError) or (isinstance(error, AttributeError) and "module '" in str(error)):
        from featlens.cli.blame import explain_import

        return explain_import(error, f"command {name!r}", "featlens"), 1
    if isinstance(error, OSError):
        from featlens.files import explain_os_error

        return str(explain_os_error(error)), 1
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "out of memory; use a smaller --batch, fewer --jobs or fewer samples", 1
    text = " ".join(str(error).split())
    return (
        f"internal error, {type(error).__name__}: {text[:300]}; run again with --debug for the traceback",
        1,
    )


def _say(text: str, code: int = 0) -> int:
    print(text)  # noqa: T201
    return code


def _fail(name: str, message: str, code: int) -> int:
    _settle_stdout()
    said = "featlens" if name.startswith("-") else f"featlens {name}"
    # The library says which function it was, which here is the command itself.
    print(f"{said}: {message.removeprefix(f'{name}: ')}", file=sys.stderr)  # noqa: T201
    return code


def _settle_stdout() -> None:
    """Leave nothing behind that the interpreter would fail to write, and complain about, when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
