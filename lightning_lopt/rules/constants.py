"""What hand-designed rules have in common: checks of their constants, and the schedule of a learning rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_lopt.rules.base import StepContext

SCHEDULES = ("constant", "cosine")


def positive(value: float, what: str) -> float:
    """``value`` if it is a number above 0, else ``ValueError``."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{what} must be a positive number, got {value!r}.")
    return value


def not_negative(value: float, what: str) -> float:
    """``value`` if it is a number of 0 or more, else ``ValueError``."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{what} must be a number >= 0, got {value!r}.")
    return value


def unit_interval(value: float, what: str) -> float:
    """``value`` if it lies in [0, 1), else ``ValueError``."""
    if not 0 <= value < 1:
        raise ValueError(f"{what} must lie in [0, 1), got {value!r}.")
    return value


def schedule_name(name: str) -> str:
    """``name`` if it is one of :data:`SCHEDULES`, else ``ValueError``."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be 'constant' or 'cosine', got {name!r}.")
    return name


def schedule_factor(name: str, context: StepContext) -> Tensor | float:
    """Factor on the learning rate: 1, or half a cosine from 1 at the first step towards 0 after the last."""
    if name == "constant":
        return 1.0
    return 0.5 * (1 + torch.cos(math.pi * context.scheduled_step / context.total_steps))
