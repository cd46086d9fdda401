"""Instructions for the installation of optional packages."""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """A clause for messages: the command that installs the packages of one extra of ``pyproject.toml``.

    >>> how_to_install("cli")
    'run pip install -e ".[cli]" in the checkout of lightning_lopt'
    """
    return f'run pip install -e ".[{extra}]" in the checkout of lightning_lopt'
