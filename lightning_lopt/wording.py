"""Texts of messages and reports: numbers with their nouns, lists of names, lines of foreign text, and tables."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["win", "tie", "loss"]
SIGNS: dict[Outcome, tuple[str, str]] = {"win": ("✔", "lower"), "tie": ("=", "equal"), "loss": ("✘", "higher")}
"""Sign and word of each outcome; colour alone does not show an outcome."""


def counted(number: int, noun: str) -> str:
    """``number`` with ``noun`` in the singular or plural.

    >>> counted(1, "seed"), counted(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(names: Sequence[str]) -> str:
    """The first three names, in quotation marks, and the number of further names.

    >>> listed(["a", "b"]), listed(["a", "b", "c", "d"])
    ("'a', 'b'", "'a', 'b', 'c' and 1 more")
    """
    suffix = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + suffix


def one_line(text: str) -> str:
    """A text of at most 120 characters on one line; a character that cannot be printed becomes a question mark."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= 120 else line[:117] + "..."


def escaped(text: str) -> str:
    """A text as HTML, for attributes and for the space between tags; unprintable characters become question marks.

    >>> escaped("a < b")
    'a &lt; b'
    """
    printable = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    return html.escape(printable, quote=True)


def short(value: float) -> str:
    """A loss with three significant digits and at most five decimals; a loss that is not finite is "diverged"."""
    if not math.isfinite(value):
        return "diverged"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.5f}"


@dataclass(frozen=True)
class TextTable:
    """Rows of texts under headings.

    Attributes:
        heads: headings of the columns.
        rows: cells of each row.
        marks: outcomes of a rule, by row and column; a page shows them after the text of the cell.
        words: word of each outcome.
    """

    heads: list[str]
    rows: list[list[str]]
    marks: Mapping[tuple[int, int], Sequence[Outcome]] = field(default_factory=dict)
    words: Mapping[Outcome, str] = field(default_factory=lambda: {mark: word for mark, (_, word) in SIGNS.items()})

    def markdown(self) -> str:
        """The table in markdown, without outcomes."""
        lines = [self.heads, ["---"] * len(self.heads), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)

    def html(self, empty: str = "") -> str:
        """The table in HTML, which scrolls separately in a narrow window; without rows, the text ``empty``."""
        if not self.rows:
            return f"<p>{escaped(empty)}</p>"
        heads = "".join(f"<th>{escaped(head)}</th>" for head in self.heads)
        rows = []
        for i, row in enumerate(self.rows):
            cells = [f"<td>{escaped(cell)}{self._signs(i, j)}</td>" for j, cell in enumerate(row)]
            rows.append(f"<tr>{''.join(cells)}</tr>")
        body = "\n".join(rows)
        return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>'

    def _signs(self, row: int, column: int) -> str:
        """Each outcome of a cell as a coloured sign with a word as its title."""
        marks = self.marks.get((row, column), ())
        return "".join(f'<span class="{mark}" title="{self.words[mark]}"> {SIGNS[mark][0]}</span>' for mark in marks)
