"""Drawing settings from an explicit generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch

_Option = TypeVar("_Option")


def choice(options: Sequence[_Option], generator: torch.Generator) -> _Option:
    """One of ``options``, each equally likely."""
    return options[integer(0, len(options), generator)]


def integer(low: int, high: int, generator: torch.Generator) -> int:
    """An integer in [low, high)."""
    return int(torch.randint(low, high, (), generator=generator, device=generator.device))


def chance(probability: float, generator: torch.Generator) -> bool:
    """True with this probability."""
    return uniform(0.0, 1.0, generator) < probability


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """A number in [low, high), uniformly."""
    return low + (high - low) * float(torch.rand((), generator=generator, device=generator.device))


def log_uniform(low: float, high: float, generator: torch.Generator) -> float:
    """A number in [low, high), uniformly in its logarithm; both bounds > 0."""
    return math.exp(uniform(math.log(low), math.log(high), generator))


def check_sizes(sizes: Sequence[int], what: str) -> tuple[int, ...]:
    """``sizes`` as a tuple, or ``ValueError`` if there is none or one is not a positive integer."""
    checked = tuple(sizes)
    if not checked or not all(type(size) is int and size > 0 for size in checked):
        raise ValueError(f"{what} must be a sequence of positive integers, at least one of them, got {sizes!r}.")
    return checked


def check_names(names: Sequence[str], what: str, known: Sequence[str]) -> tuple[str, ...]:
    """``names`` as a tuple, or ``ValueError`` if there is none or one is not ``known``."""
    checked = tuple(names)
    if isinstance(names, str) or not checked or not set(checked) <= set(known):
        raise ValueError(f"{what} must be a sequence of some of {', '.join(map(repr, known))}, got {names!r}.")
    return checked


def check_numbers(numbers: Sequence[float], what: str, low: float = 0.0) -> tuple[float, ...]:
    """``numbers`` as a tuple of floats, or ``ValueError`` if there is none or one is not finite and >= ``low``."""
    checked = tuple(float(number) for number in numbers)
    if not checked or not all(math.isfinite(number) and number >= low for number in checked):
        raise ValueError(f"{what} must be numbers >= {low:g}, at least one of them, got {numbers!r}.")
    return checked
