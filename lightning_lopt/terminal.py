"""Printing of texts from outside (cards, names, paths) without their control sequences for the terminal."""

from __future__ import annotations

import sys
from typing import TextIO


def printable(text: str) -> str:
    """``text`` without characters that move a cursor, clear a screen, write to a clipboard or turn the text direction.

    Line breaks and tabs stay; other white space becomes a blank, other characters that cannot be printed become a
    question mark.

    >>> printable("a\\x1b[2Jb\\r\\nc\\u202ed")
    'a?[2Jb \\nc?d'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else " " if c.isspace() else "?" for c in text)


def say(text: str) -> None:
    """Print ``text`` after :func:`printable`, with the characters that the encoding of the terminal has."""
    _write(text, sys.stdout)


def complain(text: str) -> None:
    """Print ``text`` as :func:`say` does, to standard error."""
    _write(text, sys.stderr)


def _write(text: str, stream: TextIO) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(printable(text).encode(encoding, "replace").decode(encoding), file=stream, flush=True)
