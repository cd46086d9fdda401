"""Checks of the arguments that rules share; each raises ``ValueError`` naming the argument and what it got."""

from __future__ import annotations

import math
from collections.abc import Sequence


def check_sizes(**sizes: int) -> None:
    """Every size is at least 1."""
    for what, size in sizes.items():
        if size < 1:
            raise ValueError(f"{what} must be at least 1, got {size}.")


def check_numbers(least: float = -math.inf, **numbers: float) -> None:
    """Every number is finite, and not below ``least``."""
    for what, number in numbers.items():
        if not least <= number < math.inf:
            bound = "" if least == -math.inf else f" >= {least:g}"
            raise ValueError(f"{what} must be a number{bound}, got {number!r}.")


def check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    """``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{what} must be {' or '.join(map(repr, choices))}, got {value!r}.")


def check_decays(momentum: Sequence[float], second_moment: float, factored: Sequence[float]) -> None:
    """As many momenta as factored second moments, at least one, and all decays in [0, 1)."""
    decays = (*momentum, second_moment, *factored)
    if len(momentum) != len(factored) or not momentum or not all(0 <= decay < 1 for decay in decays):
        raise ValueError(
            "momentum_decays and factored_decays must be equally many and all decays lie in [0, 1), got "
            f"{list(momentum)}, {second_moment!r}, {list(factored)}."
        )
