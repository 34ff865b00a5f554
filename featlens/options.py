"""Options of a model's location: ``width=32,name="a, b"`` read as TOML reads values; nothing is evaluated."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from featlens.errors import UsageError, choices_hint

__all__ = ["known_options", "read_options", "require_options", "split_options"]

_START = re.compile(r"\s*[A-Za-z_]\w*\s*=")
_INT = re.compile(r"[+-]?(0|[1-9](_?\d)*)")
_FLOAT = re.compile(r"[+-]?(0|[1-9](_?\d)*)((\.\d(_?\d)*)?[eE][+-]?\d+|\.\d(_?\d)*)|[+-]?(inf|nan)")
_BASED = re.compile(r"0x[0-9A-Fa-f]+|0o[0-7]+|0b[01]+")
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}
_CLOSING = {'"': '"', "'": "'", "[": "]"}


def split_options(location: str) -> tuple[str, dict[str, Any]]:
    """A location without its options, and the options.

    They begin after the first colon that a name and an equals sign follow.

    >>> split_options("python:models:build:width=32,act=silu")
    ('python:models:build', {'width': 32, 'act': 'silu'})
    """
    for colon in re.finditer(":", location):
        if _START.match(location, colon.end()):
            return location[: colon.start()], read_options(location[colon.end() :])
    return location, {}


def read_options(text: str) -> dict[str, Any]:
    """Values by name from ``NAME=VALUE,NAME=VALUE``.

    A value is an integer, a float, ``true`` or ``false``, a string in quotes, a list in brackets, or else the
    string it is.

    Raises
    ------
    UsageError
        A part is not ``NAME=VALUE``, a name is there twice, a quote or bracket is not closed.

    Examples
    --------
    >>> read_options("width=32, rate=1e-3, deep=true, sizes=[1, 2], name='a, b'")
    {'width': 32, 'rate': 0.001, 'deep': True, 'sizes': [1, 2], 'name': 'a, b'}
    """
    options: dict[str, Any] = {}
    for part in _parts(text):
        name, equals, raw = part.partition("=")
        name, raw = name.strip(), raw.strip()
        if not equals or not name.isidentifier() or not raw:
            raise UsageError(f"options {text!r}: expected NAME=VALUE between commas, got {part.strip()!r}")
        if name in options:
            raise UsageError(f"options {text!r}: {name!r} is there twice; give each option once")
        options[name] = _value(raw, name)
    return options


def _parts(text: str) -> Iterator[str]:
    """The text between commas outside quotes and brackets."""
    start = at = depth = 0
    # A quote within a bare word, as in it's, opens nothing.
    fresh = True
    while at < len(text):
        sign = text[at]
        if sign in "\"'" and fresh:
            at = _closed(text, at)
            fresh = False
        elif sign == "[" and (fresh or depth):
            depth, fresh = depth + 1, True
        elif sign == "]" and depth:
            depth, fresh = depth - 1, False
        elif sign == "," and not depth:
            yield text[start:at]
            start, fresh = at + 1, True
        else:
            fresh = sign in "=," or (fresh and sign.isspace())
        at += 1
    if depth:
        raise UsageError(f"options {text!r}: a bracket is not closed; add the missing ']'")
    yield text[start:]


def _closed(text: str, at: int) -> int:
    """Position of the quote that closes the one at ``at``."""
    quote, end = text[at], at + 1
    while end < len(text) and text[end] != quote:
        end += 2 if text[end] == "\\" and quote == '"' else 1
    if end >= len(text):
        raise UsageError(f"options {text!r}: a quote is not closed; add the missing {quote}")
    return end


def _value(raw: str, name: str) -> Any:
    closing = _CLOSING.get(raw[0])
    if closing == "]" and raw.endswith("]"):
        inner = raw[1:-1].strip()
        parts = [part.strip() for part in _parts(inner.removesuffix(","))] if inner else []
        if "" in parts:
            raise UsageError(f"option {name!r}: {raw} has an empty place; expected values between commas")
        return [_value(part, name) for part in parts]
    if closing in ("'", '"') and _closed(raw, 0) == len(raw) - 1:
        return raw[1:-1] if closing == "'" else _unescaped(raw[1:-1], name)
    if closing is not None:
        raise UsageError(f"option {name!r}: {raw} goes on after its {closing}; put all of it in quotes")
    if raw in ("true", "false"):
        return raw == "true"
    if _INT.fullmatch(raw):
        return int(raw)
    if _BASED.fullmatch(raw):
        return int(raw, 0)
    return float(raw) if _FLOAT.fullmatch(raw) else raw


def _unescaped(text: str, name: str) -> str:
    def meant(found: re.Match[str]) -> str:
        escape = found[1]
        if escape in _ESCAPES:
            return _ESCAPES[escape]
        if len(escape) > 1:
            code = int(escape[1:], 16)
            if code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF:
                return chr(code)
        raise UsageError(
            f"option {name!r}: \\{escape} means nothing; write \\\\ for a backslash, or single quotes around"
        )

    return re.sub(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", meant, text, flags=re.DOTALL)


def known_options(function: Callable[..., Any], options: Mapping[str, Any], skip: int = 0) -> dict[str, Any]:
    """Those of the options that the function has as parameters after the first ``skip``."""
    parameters = _parameters(function, skip)
    return {
        name: value
        for name, value in options.items()
        if parameters is None or name in parameters[0] or parameters[1]
    }


def require_options(
    function: Callable[..., Any], options: Mapping[str, Any], what: str, skip: int = 0
) -> None:
    """Refuse options that the function does not have, and calls that lack a parameter without default.

    Parameters
    ----------
    function
        What is to be called with the options.
    options
        Values by name.
    what
        Beginning of the message.
    skip
        That many first parameters are given otherwise and are no options.

    Raises
    ------
    UsageError
        Names the option and what there is instead.

    Examples
    --------
    >>> def build(width, depth=2): ...
    >>> require_options(build, {"width": 3}, "build")
    """
    parameters = _parameters(function, skip)
    if parameters is None:
        return
    named, any_name = parameters
    for name in options:
        if name not in named and not any_name:
            there = f"it has {', '.join(named)}" if named else "it has none"
            hint = choices_hint(name, named)
            hint = f"{hint} ({there})" if hint.startswith("did") else there
            raise UsageError(f"{what} has no option {name!r}: {hint}")
    missing = [name for name, needed in named.items() if needed and name not in options]
    if missing:
        listed = ", ".join(repr(name) for name in missing)
        raise UsageError(f"{what} needs {listed}; give options, as in ':{missing[0]}=VALUE'")


def _parameters(function: Callable[..., Any], skip: int) -> tuple[dict[str, bool], bool] | None:
    """Whether each parameter that may be named is needed, and whether any name goes; None if unknown."""
    try:
        found = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = [parameter for parameter in found if parameter.kind in positional][:skip]
    named = {
        parameter.name: parameter.default is parameter.empty
        for parameter in found
        if parameter not in taken
        and parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    return named, any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found)
