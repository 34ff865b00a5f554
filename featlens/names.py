"""Patterns over dotted names: ``*`` stays inside one level, ``**`` crosses levels, ``re:`` begins a regex."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from featlens.errors import SiteError, UsageError, choices_hint

__all__ = ["compile_pattern", "match_names"]


@lru_cache(maxsize=256)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Expression for a glob or, after ``re:``, for a regex; both have to match the whole name.

    In a glob only ``*``, ``**`` and ``?`` are special: ``[``, ``]``, ``@`` and ``#`` stand for themselves.

    >>> bool(compile_pattern("lstm[*]").fullmatch("lstm[0]")), bool(compile_pattern("a[0]").fullmatch("a0"))
    (True, False)
    """
    if pattern.startswith("re:"):
        try:
            return re.compile(pattern[3:])
        except re.error as error:
            raise UsageError(
                f"{pattern!r} is no regular expression: {error}; mend it, or use a glob"
            ) from None
    pieces = re.split(r"(\*\*|\*|\?)", pattern)
    special = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return re.compile("".join(special.get(piece, re.escape(piece)) for piece in pieces))


def match_names(names: Iterable[str], patterns: str | Sequence[str], where: str) -> list[str]:
    """Names that match any pattern, in the order of ``names``.

    A name given verbatim always matches itself, whatever characters are in it.

    Raises
    ------
    SiteError
        If a pattern matches nothing; lists the nearest names. ``where`` says where was looked.
    UsageError
        If a regular expression is malformed.

    Examples
    --------
    >>> match_names(["enc.a", "enc.a.conv", "dec.b"], "enc.*", "the network")
    ['enc.a']
    >>> match_names(["enc.a", "enc.a.conv", "dec.b"], ["**.conv", "dec.?"], "the network")
    ['enc.a.conv', 'dec.b']
    >>> match_names(["lstm[0]", "lstm[1][0]#1", "lstm@in"], ["lstm[0]", "re:.*#1"], "the file")
    ['lstm[0]', 'lstm[1][0]#1']
    """
    known = list(names)
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    if not wanted:
        raise SiteError(f"no site was asked for in {where}: {choices_hint('', known)}")
    chosen: set[str] = set()
    for pattern in wanted:
        found = {name for name in known if name == pattern}
        if not (found and pattern.startswith("re:")):
            found |= {name for name in known if compile_pattern(pattern).fullmatch(name)}
        if not found:
            raise SiteError(f"no site {pattern!r} in {where}: {choices_hint(pattern, known)}")
        chosen |= found
    return [name for name in known if name in chosen]
