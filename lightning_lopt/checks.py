"""Checks of arguments; each check raises a ``ValueError`` that names the argument and its value.

>>> check_positive(lr=0.1, eps=1e-8)
>>> check_unit_interval(momentum=1.0)
Traceback (most recent call last):
ValueError: momentum must lie in [0, 1), got 1.0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def check_sizes(**sizes: int) -> None:
    """Check that every size or count is at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size!r}.")


def check_numbers(least: float = -math.inf, *, or_none: bool = False, **numbers: float | None) -> None:
    """Check that every number is finite and at least ``least``; ``or_none`` allows ``None``, too."""
    for name, number in numbers.items():
        if or_none if number is None else math.isfinite(number) and number >= least:
            continue
        bound = "" if least == -math.inf else f" >= {least:g}"
        raise ValueError(f"{name} must be a number{bound}{' or None' if or_none else ''}, got {number!r}.")


def check_positive(**numbers: float) -> None:
    """Check that every number is finite and above 0."""
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name} must be a positive number, got {number!r}.")


def check_unit_interval(**numbers: float) -> None:
    """Check that every number lies in [0, 1)."""
    for name, number in numbers.items():
        if not 0 <= number < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {number!r}.")


def check_betas(betas: Sequence[float]) -> None:
    """Check that the decays of Adam's two averages lie in [0, 1)."""
    check_unit_interval(**{"betas[0]": betas[0], "betas[1]": betas[1]})


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check that ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}.")


def check_averages(name: str, decays: Sequence[float]) -> None:
    """Check that there is at least one decay and that all decays lie in [0, 1)."""
    if not decays or not all(0 <= decay < 1 for decay in decays):
        raise ValueError(f"{name} must be numbers in [0, 1), at least one, got {list(decays)}.")


def check_decays(momentum: Sequence[float], second_moment: float, factored: Sequence[float]) -> None:
    """Check that momenta and factored second moments are equally many (at least one), and all decays in [0, 1)."""
    decays = (*momentum, second_moment, *factored)
    if len(momentum) != len(factored) or not momentum or not all(0 <= decay < 1 for decay in decays):
        raise ValueError(
            "momentum_decays and factored_decays must be equally many and all decays lie in [0, 1), got "
            f"{list(momentum)}, {second_moment!r}, {list(factored)}."
        )


def check_range(low: float, high: float, argument: str) -> None:
    """Check that 0 < low <= high < inf."""
    if not 0 < low <= high < float("inf"):
        raise ValueError(f"{argument}: low and high must be positive numbers in this order, got {low!r} and {high!r}.")


def check_size_options(sizes: Sequence[int], argument: str, low: int = 1) -> tuple[int, ...]:
    """Return ``sizes`` as a tuple, after a check that it has at least one entry and all are integers >= ``low``."""
    checked = tuple(sizes)
    if not checked or not all(type(size) is int and size >= low for size in checked):
        kind = "positive integers" if low == 1 else f"integers >= {low}"
        raise ValueError(f"{argument} must be a sequence of {kind}, at least one of them, got {sizes!r}.")
    return checked


def check_name_options(names: Sequence[str], argument: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """Return ``names`` as a tuple, after a check that it has at least one entry and all are ``allowed``."""
    checked = tuple(names)
    if isinstance(names, str) or not checked or not set(checked) <= set(allowed):
        raise ValueError(f"{argument} must be a sequence of some of {', '.join(map(repr, allowed))}, got {names!r}.")
    return checked


def check_number_options(numbers: Sequence[float], argument: str, low: float = 0.0) -> tuple[float, ...]:
    """Return ``numbers`` as floats, after a check that there is at least one and all are finite and >= ``low``."""
    checked = tuple(float(number) for number in numbers)
    if not checked or not all(math.isfinite(number) and number >= low for number in checked):
        raise ValueError(f"{argument} must be numbers >= {low:g}, at least one of them, got {numbers!r}.")
    return checked
