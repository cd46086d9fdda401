"""What commands print: texts from outside (cards, names, paths) must not command the terminal."""

from __future__ import annotations

import sys
from typing import TextIO


def printable(text: str) -> str:
    """``text`` without what moves a cursor, clears a screen, writes to a clipboard or turns the reading direction.

    Line breaks and tabs stay; other white space becomes a blank, whatever else cannot be printed a question mark.

    >>> printable("a\\x1b[2Jb\\r\\nc\\u202ed")
    'a?[2Jb \\nc?d'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else " " if c.isspace() else "?" for c in text)


def say(text: str) -> None:
    """Print ``text``, made printable, in what the terminal's encoding has."""
    _write(text, sys.stdout)


def complain(text: str) -> None:
    """Print ``text`` as :func:`say` does, to standard error."""
    _write(text, sys.stderr)


def _write(text: str, stream: TextIO) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(printable(text).encode(encoding, "replace").decode(encoding), file=stream, flush=True)
