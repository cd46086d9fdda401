"""Printing of untrusted texts (cards, names, paths) without control sequences for the terminal."""

from __future__ import annotations

import sys
from typing import TextIO


def printable(text: str) -> str:
    """``text`` without characters that move a cursor, clear a screen, write to a clipboard or reverse text direction.

    Line breaks and tabs stay. Other white space becomes a blank. Other characters that cannot be printed become a
    question mark.

    >>> printable("a\\x1b[2Jb\\r\\nc\\u202ed")
    'a?[2Jb \\nc?d'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else " " if c.isspace() else "?" for c in text)


def say(text: str) -> None:
    """Print the :func:`printable` text; characters that the terminal's encoding lacks become question marks."""
    _write(text, sys.stdout)


def complain(text: str) -> None:
    """Print ``text`` to standard error, in the way of :func:`say`."""
    _write(text, sys.stderr)


def _write(text: str, stream: TextIO) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(printable(text).encode(encoding, "replace").decode(encoding), file=stream, flush=True)
