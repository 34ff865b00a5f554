"""Write docs/reference/cli.md from the parsers of the commands themselves.

    python docs/generate_cli.py           write the page
    python docs/generate_cli.py --check   exit 1 if the page is not what the parsers say

Nothing of argparse's own help layout is used: it differs between Python versions and terminal widths.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import Any

from featlens.cli import build_parser, command_names
from featlens.cli.dispatch import SUMMARIES

__all__ = ["PAGE", "render"]

PAGE = Path(__file__).parent / "reference" / "cli.md"

HEAD = """\
<!-- Written by docs/generate_cli.py from the parsers; do not edit. -->

# Command line

Data goes to stdout, progress and messages to stderr. Exit codes: 0 done, 1 the work failed, 2 wrong usage.
An error is one line; `--debug`, which every command takes, shows its traceback. An interrupted command
continues when it is run again.

| command | what it does |
|---|---|
"""


def render() -> str:
    """Markdown of the whole page."""
    names = [name for name in command_names() if name in SUMMARIES]
    table = "".join(f"| [`featlens {name}`](#featlens-{name}) | {SUMMARIES[name]} |\n" for name in names)
    return HEAD + table + "".join(_command(name) for name in names)


def _command(name: str) -> str:
    parser = build_parser(name)
    # argparse offers no public list of its actions.
    actions = [action for action in parser._actions if action.dest not in ("help", "debug")]
    # Spaces inside one argument must not be broken at.
    words = [_usage(action).replace(" ", "\0") for action in actions]
    lines = textwrap.wrap(" ".join(words), width=64, break_long_words=False, break_on_hyphens=False)
    indent = f"\n{' ' * len(f'featlens {name} ')}"
    synopsis = f"featlens {name} {indent.join(lines)}".replace("\0", " ").rstrip()
    rows = "".join(f"| {_flags(action)} | {_meaning(parser, action)} |\n" for action in actions)
    table = f"| argument | meaning |\n|---|---|\n{rows}" if rows else ""
    return f"\n## featlens {name}\n\n{_prose(parser.description or '')}\n```text\n{synopsis}\n```\n\n{table}"


def _prose(text: str) -> str:
    """Markdown of a description; its indented example lines become code blocks."""
    out, inside = [], False
    for line in text.splitlines():
        code = line.startswith("  ")
        if code != inside and (code or line.strip()):
            out.append("```sh" if code else "```")
            inside = code
        out.append(line.strip() if code else _escaped(line))
    if inside:
        out.append("```")
    return "\n".join(out) + "\n"


def _value(action: argparse.Action) -> str:
    """Placeholder of an action's value; empty for a switch."""
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, str):
        name = action.metavar
    elif action.choices:
        name = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        name = action.dest.upper()
    return {"*": f"[{name} ...]", "+": f"{name} [{name} ...]", "?": f"[{name}]"}.get(str(action.nargs), name)


def _usage(action: argparse.Action) -> str:
    if not action.option_strings:
        return _value(action)
    text = f"{action.option_strings[0]} {_value(action)}".strip()
    return text if action.required else f"[{text}]"


def _flags(action: argparse.Action) -> str:
    text = ", ".join(action.option_strings) if action.option_strings else ""
    return f"`{f'{text} {_value(action)}'.strip()}`"


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    default = action.default
    if isinstance(default, bool) or default in (None, argparse.SUPPRESS) or "default" in text:
        return _escaped(text)
    return f"{_escaped(text)} (default: `{_default(default)}`)"


def _escaped(text: str) -> str:
    """Plain text with what Markdown or HTML would read as markup made harmless."""
    for character, safe in (("&", "&amp;"), ("<", "&lt;"), ("*", "\\*"), ("|", "\\|")):
        text = text.replace(character, safe)
    return text


def _default(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def main(arguments: list[str]) -> int:
    """Write or check the page; the exit code."""
    text = render()
    if "--check" not in arguments:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE} is not up to date; run: python docs/generate_cli.py", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
