"""Random draws of settings from an explicit generator."""

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


def split_indices(
    count: int, valid_fraction: float, generator: torch.Generator, max_valid: int | None = None, label: str = "data"
) -> tuple[Tensor, Tensor]:
    """Disjoint random parts (train, valid) of ``range(count)``, drawn from ``generator`` alone; neither is empty.

    Args:
        count: number of examples, at least two.
        valid_fraction: share of the examples for validation, in (0, 1).
        generator: random generator on the CPU.
        max_valid: upper bound on the number of validation examples.
        label: name of the data, for messages.

    Raises:
        ValueError: if an argument is out of range.
    """
    if not 0 < valid_fraction < 1:
        raise ValueError(f"valid_fraction must lie in (0, 1), got {valid_fraction!r}.")
    if max_valid is not None and max_valid < 1:
        raise ValueError(f"max_valid must be 1 or more, got {max_valid!r}.")
    if count < 2:
        raise ValueError(f"{label}: one example cannot be split into train and valid; use at least two.")
    valid = min(max(round(valid_fraction * count), 1), count - 1)
    valid = valid if max_valid is None else min(valid, max_valid)
    order = torch.randperm(count, generator=generator)
    return order[valid:], order[:valid]
