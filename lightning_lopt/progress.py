"""Progress of long commands: one bar on a terminal, a line now and then elsewhere."""

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
"""Between two lines, where standard error is no terminal."""
_BAR = "{desc} |{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}]"
_LINE = "{desc} {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}]"
_WITHOUT_TOTAL = "{desc} [{elapsed}]"


class Progress:
    """How far a long piece of work is, on standard error, from its first moment.

    On a terminal it is one bar. Elsewhere (a file, a pipe, a log) it is a whole line at the beginning and at the end,
    and one at most every 15 seconds in between.

    Args:
        what: what is being done, in a few words.
        total: how much there is to do; ``None`` where that is not known.
        unit: of ``total``.
        stream: where to; ``None`` for standard error.

    >>> with Progress("training", total=2, unit="runs", stream=sys.stdout) as progress:  # doctest: +ELLIPSIS
    ...     for name in ("a", "b"):
    ...         progress.doing(name)
    ...         progress.advance()
    training 0/2 runs [00:00<?]
    training: b 2/2 runs [00:00<00:00]
    """

    def __init__(
        self, what: str, total: int | None = None, unit: str = "steps", *, stream: TextIO | None = None
    ) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self._stream = sys.stderr if stream is None else stream
        self._text, self._began, self._closed = printable(what), time.monotonic(), False
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty():
            known = all(shutil.get_terminal_size((0, 0)))  # without a size of the terminal, tqdm would show nothing
            size: dict[str, Any] = {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}
            self._bar = tqdm(
                total=total, unit=unit, desc=self._text, file=self._stream, bar_format=self._form(_BAR), **size
            )
        else:
            self._line()

    def doing(self, last: str) -> None:
        """Say what is being done now."""
        self._text = printable(f"{self.what}: {last}")
        self._show()

    def advance(self, amount: int = 1) -> None:
        """So much more is done."""
        self.done += amount
        self._show()

    def line(self, text: str) -> None:
        """Say what is being done, or was done last; a line of its own where there is no terminal."""
        self.doing(text)
        if self._bar is None and text not in self._last:
            self._line()

    def to(self, done: int, total: int | None, last: str) -> None:
        """So much of ``total`` is done; ``last`` is what is being done, or was done last."""
        self.done, self.total = done, total
        self.doing(last)

    def clear(self) -> None:
        """Take the bar away until it is shown again, so that other output begins on an empty line."""
        if self._bar is not None:
            self._bar.clear()

    def close(self) -> None:
        """Show the last state, and end."""
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._bar.close()
        else:
            self._line()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.n, self._bar.total, self._bar.bar_format = self.done, self.total, self._form(_BAR)
            self._bar.set_description_str(self._text, refresh=True)
        elif time.monotonic() - self._shown >= LINE_SECONDS:
            self._line()

    def _line(self) -> None:
        self._shown = time.monotonic()
        elapsed, form = self._shown - self._began, self._form(_LINE)
        line = tqdm.format_meter(self.done, self.total, elapsed, prefix=self._text, unit=self.unit, bar_format=form)
        self._last = line
        print(line.strip(), file=self._stream, flush=True)

    def _form(self, with_total: str) -> str:
        return _WITHOUT_TOTAL if self.total is None else with_total

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
