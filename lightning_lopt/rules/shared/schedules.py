"""Schedules of the learning rate of hand-designed rules over the horizon."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_lopt.rules.base import StepContext

SCHEDULES = ("constant", "cosine")


def schedule_factor(name: str, context: StepContext) -> Tensor | float:
    """Factor on the learning rate: 1, or half a cosine that falls from 1 at the first step to 0 after the last step."""
    if name == "constant":
        return 1.0
    return 0.5 * (1 + torch.cos(math.pi * context.scheduled_step / context.total_steps))
