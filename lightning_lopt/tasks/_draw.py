"""Random draws of settings from an explicit generator, and checks of what is drawn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

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


def check_sizes(sizes: Sequence[int], what: str, low: int = 1) -> tuple[int, ...]:
    """``sizes`` as a tuple, or ``ValueError`` if there is none or one is not an integer >= ``low``."""
    checked = tuple(sizes)
    if not checked or not all(type(size) is int and size >= low for size in checked):
        kind = "positive integers" if low == 1 else f"integers >= {low}"
        raise ValueError(f"{what} must be a sequence of {kind}, at least one of them, got {sizes!r}.")
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


def split_indices(
    count: int, valid_fraction: float, generator: torch.Generator, max_valid: int | None = None, what: str = "data"
) -> tuple[Tensor, Tensor]:
    """Disjoint random parts (train, valid) of ``range(count)``, drawn from ``generator`` alone; neither is empty.

    Args:
        count: number of examples, at least two.
        valid_fraction: share of them that goes to validation, in (0, 1).
        generator: random generator on the CPU.
        max_valid: upper bound on the number of validation examples.
        what: the data's name, for messages.

    Raises:
        ValueError: if one of these does not hold.
    """
    if not 0 < valid_fraction < 1:
        raise ValueError(f"valid_fraction must lie in (0, 1), got {valid_fraction!r}.")
    if max_valid is not None and max_valid < 1:
        raise ValueError(f"max_valid must be 1 or more, got {max_valid!r}.")
    if count < 2:
        raise ValueError(f"{what}: one example cannot be split into train and valid; use at least two.")
    valid = min(max(round(valid_fraction * count), 1), count - 1)
    valid = valid if max_valid is None else min(valid, max_valid)
    order = torch.randperm(count, generator=generator)
    return order[valid:], order[:valid]
