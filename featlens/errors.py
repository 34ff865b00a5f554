"""Errors that featlens raises on purpose: one line that says what was expected, what came and what to do.

The command line prints the line without a traceback and leaves with ``exit_code``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FeatlensError", "FeatlensWarning", "SiteError", "StoreError", "UsageError", "choices_hint"]


class FeatlensError(Exception):
    """Work failed for a reason the user can act on; the message is one line."""

    exit_code = 1


class FeatlensWarning(UserWarning):
    """The work goes on, but the user should know something; the message is one line."""


class UsageError(FeatlensError):
    """The request itself is wrong: unknown name, contradictory or impossible settings."""

    exit_code = 2


class StoreError(FeatlensError):
    """A feature file cannot be used: not a feature file, damaged, incomplete or of another sample set."""


class SiteError(UsageError, KeyError):
    """A site was asked for that the network or the file does not have.

    A KeyError, so that ``in`` and ``get`` of mappings work; KeyError alone prints its message through repr.
    """

    __str__ = Exception.__str__


def choices_hint(name: str, choices: Iterable[str], most: int = 8) -> str:
    """Nearest matches of ``name`` among ``choices``, or the choices themselves, ready to end a message.

    >>> choices_hint("reverse_lk", ["reverse_kl", "js"])
    "did you mean 'reverse_kl'?"
    >>> choices_hint("zzz", ["reverse_kl", "js"])
    'choose from reverse_kl, js'
    """
    import difflib

    known = list(choices)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.55)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    if not known:
        return "there are none"
    shown = ", ".join(known[:most])
    return f"choose from {shown}" + (f", ... ({len(known)} in all)" if len(known) > most else "")
