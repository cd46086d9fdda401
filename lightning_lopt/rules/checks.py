"""Checks of the arguments of rules; each raises ``ValueError`` that names the argument and its value.

>>> check_positive(lr=0.1, eps=1e-8)
>>> check_unit_interval(momentum=1.0)
Traceback (most recent call last):
ValueError: momentum must lie in [0, 1), got 1.0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_lopt.rules.contract.roles import ROLES, Role


def check_sizes(**sizes: int) -> None:
    """Every size is at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")


def check_numbers(least: float = -math.inf, *, or_none: bool = False, **numbers: float | None) -> None:
    """Every number is finite, and not below ``least``; with ``or_none`` it may be ``None`` instead."""
    for name, number in numbers.items():
        if or_none if number is None else math.isfinite(number) and number >= least:
            continue
        bound = "" if least == -math.inf else f" >= {least:g}"
        raise ValueError(f"{name} must be a number{bound}{' or None' if or_none else ''}, got {number!r}.")


def check_positive(**numbers: float) -> None:
    """Every number is finite, and above 0."""
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name} must be a positive number, got {number!r}.")


def check_unit_interval(**numbers: float) -> None:
    """Every number lies in [0, 1)."""
    for name, number in numbers.items():
        if not 0 <= number < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {number!r}.")


def check_betas(betas: Sequence[float]) -> None:
    """The decays of Adam's two averages lie in [0, 1)."""
    check_unit_interval(**{"betas[0]": betas[0], "betas[1]": betas[1]})


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}.")


def check_averages(name: str, decays: Sequence[float]) -> None:
    """There is at least one decay, and all lie in [0, 1)."""
    if not decays or not all(0 <= decay < 1 for decay in decays):
        raise ValueError(f"{name} must be numbers in [0, 1), at least one, got {list(decays)}.")


def check_decays(momentum: Sequence[float], second_moment: float, factored: Sequence[float]) -> None:
    """As many momenta as factored second moments, at least one, and all decays in [0, 1)."""
    decays = (*momentum, second_moment, *factored)
    if len(momentum) != len(factored) or not momentum or not all(0 <= decay < 1 for decay in decays):
        raise ValueError(
            "momentum_decays and factored_decays must be equally many and all decays lie in [0, 1), got "
            f"{list(momentum)}, {second_moment!r}, {list(factored)}."
        )


def check_role(role: object, source: str) -> Role:
    """Return ``role`` if it is one of ``ROLES``; otherwise raise ``ValueError`` that names its ``source``."""
    if role not in ROLES:
        raise ValueError(f"{source} has role {role!r}; use one of {', '.join(map(repr, ROLES))}.")
    return role
