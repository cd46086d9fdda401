"""Progress of long commands: one bar on a terminal, or a line at most every 15 seconds in a file or pipe."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from lightning_lopt.terminal import printable

if TYPE_CHECKING:
    from typing_extensions import Self

LINE_SECONDS = 15.0
"""Least time between two lines if standard error is not a terminal."""
_BAR = "{desc} |{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}]"
_LINE = "{desc} {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}]"
_WITHOUT_TOTAL = "{desc} [{elapsed}]"


class Progress:
    """Display of the progress of a long piece of work on standard error, from its start.

    On a terminal the display is one bar. In a file, a pipe or a log the display is one line at the beginning, one line
    at the end, and one line at most every 15 seconds in between.

    Args:
        work: the work, in a few words.
        total: amount of work; ``None`` if the amount is not known.
        unit: unit of ``total``.
        stream: output stream; ``None`` for standard error.

    >>> with Progress("training", total=2, unit="runs", stream=sys.stdout) as progress:  # doctest: +ELLIPSIS
    ...     for name in ("a", "b"):
    ...         progress.doing(name)
    ...         progress.advance()
    training 0/2 runs [00:00<?]
    training: b 2/2 runs [00:00<00:00]
    """

    def __init__(
        self, work: str, total: int | None = None, unit: str = "steps", *, stream: TextIO | None = None
    ) -> None:
        self.work, self.total, self.unit, self.finished = work, total, unit, 0
        self._stream = sys.stderr if stream is None else stream
        self._text, self._began, self._closed = printable(work), time.monotonic(), False
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty():
            size_is_known = all(shutil.get_terminal_size((0, 0)))  # tqdm shows nothing if the size is 0
            size: dict[str, Any] = {"dynamic_ncols": True} if size_is_known else {"ncols": 80, "nrows": 24}
            self._bar = tqdm(
                total=total, unit=unit, desc=self._text, file=self._stream, bar_format=self._form(_BAR), **size
            )
        else:
            self._line()

    def doing(self, activity: str) -> None:
        """Show the present activity."""
        self._text = printable(f"{self.work}: {activity}")
        self._show()

    def advance(self, amount: int = 1) -> None:
        """Add ``amount`` to the finished amount."""
        self.finished += amount
        self._show()

    def line(self, text: str) -> None:
        """Show the present or the last activity; without a terminal, print a separate line for it."""
        self.doing(text)
        if self._bar is None and text not in self._last_line:
            self._line()

    def to(self, finished: int, total: int | None, activity: str) -> None:
        """Set the finished amount and the total amount, and show the present or the last activity."""
        self.finished, self.total = finished, total
        self.doing(activity)

    def clear(self) -> None:
        """Remove the bar until the next update, so that other output begins on an empty line."""
        if self._bar is not None:
            self._bar.clear()

    def close(self) -> None:
        """Show the last state, and end the display."""
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._bar.close()
        else:
            self._line()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.n, self._bar.total, self._bar.bar_format = self.finished, self.total, self._form(_BAR)
            self._bar.set_description_str(self._text, refresh=True)
        elif time.monotonic() - self._shown >= LINE_SECONDS:
            self._line()

    def _line(self) -> None:
        self._shown = time.monotonic()
        elapsed, form = self._shown - self._began, self._form(_LINE)
        line = tqdm.format_meter(self.finished, self.total, elapsed, prefix=self._text, unit=self.unit, bar_format=form)
        self._last_line = line
        print(line.strip(), file=self._stream, flush=True)

    def _form(self, with_total: str) -> str:
        return _WITHOUT_TOTAL if self.total is None else with_total

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
