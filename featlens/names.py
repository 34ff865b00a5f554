"""Glob patterns over dotted names: ``*`` stays inside one level, ``**`` crosses levels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from featlens.errors import SiteError, choices_hint

__all__ = ["match_names"]


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"(\*\*|\*|\?)", pattern)
    special = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return re.compile("".join(special.get(piece, re.escape(piece)) for piece in pieces))


def match_names(names: Iterable[str], patterns: str | Sequence[str], where: str) -> list[str]:
    """Names that match any pattern, in the order of ``names``.

    Raises
    ------
    SiteError
        If a pattern matches nothing; lists the nearest names. ``where`` says where was looked.

    Examples
    --------
    >>> match_names(["enc.a", "enc.a.conv", "dec.b"], "enc.*", "the network")
    ['enc.a']
    >>> match_names(["enc.a", "enc.a.conv", "dec.b"], ["**.conv", "dec.?"], "the network")
    ['enc.a.conv', 'dec.b']
    """
    known = list(names)
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    if not wanted:
        raise SiteError(f"no site was asked for in {where}: {choices_hint('', known)}")
    for pattern in wanted:
        if not any(_compiled(pattern).fullmatch(name) for name in known):
            raise SiteError(f"no site {pattern!r} in {where}: {choices_hint(pattern, known)}")
    return [name for name in known if any(_compiled(pattern).fullmatch(name) for pattern in wanted)]
