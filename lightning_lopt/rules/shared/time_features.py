"""Features of the time: in steps, and as a share of the horizon."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_lopt.rules.base import StepContext
from lightning_lopt.rules.shared.arithmetic import constants

TIMES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)  # times τ in steps
SHARES = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)  # shares s of the horizon


def elapsed(step: Tensor, like: Tensor) -> Tensor:
    r""":math:`\tanh(t / \tau - 1)` for each of ``TIMES``, shape (11,), in the type of ``like``."""
    return torch.tanh(step.to(like.dtype) / constants(TIMES, like) - 1)


def waves(step: Tensor, like: Tensor) -> Tensor:
    r""":math:`\sin(t / (\pi \tau))` for each of ``TIMES``, shape (11,), in the type of ``like``."""
    return torch.sin(step.to(like.dtype) / (constants(TIMES, like) * math.pi))


def progress(context: StepContext, like: Tensor) -> Tensor:
    r""":math:`\tanh(10 (t / T - s))` for each of ``SHARES``, shape (9,); it holds its last value past the horizon T."""
    share = context.scheduled_step.to(like.dtype) / context.total_steps.to(like.dtype)
    return torch.tanh(10 * (share - constants(SHARES, like)))
