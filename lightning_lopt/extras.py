"""Optional packages: how to install them, and figures of matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_lopt.wording import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def how_to_install(extra: str) -> str:
    """A clause for messages: the command that installs the packages of one extra of ``pyproject.toml``.

    >>> how_to_install("cli")
    'run pip install -e ".[cli]" in the checkout of lightning_lopt'
    """
    return f'run pip install -e ".[{extra}]" in the checkout of lightning_lopt'


def empty_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches; it opens no window.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"pictures need matplotlib; {how_to_install('examples')}.") from error
    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure) -> bytes:
    """The bytes of a PNG file of a figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def share_axes(axis: Any, title: str, xlabel: str, limits: tuple[float, float], ticks: Sequence[float]) -> None:
    """Axes of a distribution: a logarithmic one with these ticks, and the share of runs."""
    axis.set(xscale="log", xlim=limits, ylim=(0, 1.02), xlabel=xlabel, title=title, ylabel="share of runs")
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def figure_text(text: str) -> str:
    """A text that matplotlib shows unchanged: ``$`` would begin a formula, a first ``_`` would hide a legend entry."""
    line = one_line(text).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line
