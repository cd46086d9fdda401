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
    """A file of a rule is missing, damaged, foreign or newer.

    The message is one sentence on one line: it names the file, the error, the value that was read, and a remedy.

    Example:
        >>> from lightning_lopt import load_rule
        >>> try:
        ...     load_rule("bose")
        ... except RuleFileError as error:
        ...     print(error)
        'bose' is neither a folder nor an embedded rule; use a folder or one of: base, celo2.
    """

    def __init__(self, message: str) -> None:
        # Untrusted names and paths may contain terminal escapes, or surrogates that cannot be printed.
        super().__init__(printable(" ".join(message.split())))


def show(value: object) -> str:
    """An untrusted value for a message: its ``repr`` on one line, shortened if it is long."""
    text = _SHORT.repr(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def cause(error: BaseException) -> str:
    """The text of an exception as a clause for the middle of a sentence."""
    text = " ".join(str(error).split())[:200].rstrip(". ").replace(". ", "; ")
    return text or type(error).__name__
