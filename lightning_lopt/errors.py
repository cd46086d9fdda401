"""The error for files of rules, and the texts of its message: values and other errors from outside, on one line."""

from __future__ import annotations

import reprlib

from lightning_lopt.terminal import printable

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlong = 30
_SHORT.maxlevel = 2
_LONGEST = 160  # characters of a shown value


class RuleFileError(ValueError):
    """A rule's file is missing, damaged, foreign or newer.

    The message is one sentence on one line: which file, what is wrong with it, what arrived and what to do.

    Example:
        >>> from lightning_lopt import load_rule
        >>> try:
        ...     load_rule("bose")
        ... except RuleFileError as error:
        ...     print(error)
        'bose' is neither a folder nor an embedded rule; use a folder or one of: base.
    """

    def __init__(self, message: str) -> None:
        # Names and paths from outside may contain terminal escapes, or surrogates that cannot be printed.
        super().__init__(printable(" ".join(message.split())))


def show(value: object) -> str:
    """A value from outside for a message: its ``repr``, on one line, shortened if it is long."""
    text = _SHORT.repr(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def cause(error: BaseException) -> str:
    """Another exception's text for the middle of a sentence."""
    text = " ".join(str(error).split())[:200].rstrip(". ").replace(". ", "; ")
    return text or type(error).__name__
