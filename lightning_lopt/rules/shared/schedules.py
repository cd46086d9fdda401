"""Schedules of the learning rate of hand-designed rules over the horizon."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_lopt.rules.base import StepContext

SCHEDULES = ("constant", "cosine", "warmup_cosine")
WARMUP = 0.05  # share of the horizon


def schedule_factor(name: str, context: StepContext) -> Tensor | float:
    """Factor on the learning rate at a step.

    Args:
        name: ``"constant"`` for 1; ``"cosine"`` for half a cosine that falls from 1 at the first step to 0 after the
            last step; ``"warmup_cosine"`` for a linear rise to 1 over the first 5 % of the horizon, then half a cosine.
        context: the step and the horizon.

    >>> steps = [StepContext(step=torch.tensor(step), total_steps=torch.tensor(100.0)) for step in (0, 4, 52, 99)]
    >>> [round(float(schedule_factor("warmup_cosine", context)), 3) for context in steps]
    [0.2, 1.0, 0.508, 0.0]
    """
    if name == "constant":
        return 1.0
    if name == "warmup_cosine":
        progress = context.scheduled_step / context.total_steps
        fall = 0.5 * (1 + torch.cos(math.pi * ((progress - WARMUP) / (1 - WARMUP)).clamp(min=0.0)))
        return warmup_factor(context.scheduled_step, WARMUP * context.total_steps) * fall
    return 0.5 * (1 + torch.cos(math.pi * context.scheduled_step / context.total_steps))


def warmup_factor(step: Tensor, length: Tensor) -> Tensor:
    """A linear rise over the first ``length`` steps, then 1; ``step`` counts from 0.

    >>> warmup_factor(torch.arange(3), torch.tensor(2.0))
    tensor([0.5000, 1.0000, 1.0000])
    """
    return ((step + 1) / length).clamp(max=1.0)
