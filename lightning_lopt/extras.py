"""How to get the optional packages."""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """The middle of a sentence: what to run for the packages of an extra of ``pyproject.toml``.

    >>> how_to_install("cli")
    'run pip install -e ".[cli]" in the checkout of lightning_lopt'
    """
    return f'run pip install -e ".[{extra}]" in the checkout of lightning_lopt'
