"""Optional packages: how to install them, and figures of matplotlib."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

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
