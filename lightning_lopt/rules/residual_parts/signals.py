"""Inputs of the controller: progress of the run, history of the loss, and statistics of the gradients of a tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_lopt.rules.base import ROLES, Role, StepContext
from lightning_lopt.rules.shared.arithmetic import TINY, constants, matrix_shape

LOSS_DECAYS = (0.9, 0.99)  # decays of the fast and the slow average of the loss
AVERAGES = len(LOSS_DECAYS)
SIGNALS = 11 + len(ROLES)


def average_loss(averages: Tensor, context: StepContext) -> Tensor:
    """Exponential averages of the loss, shape (2,), not corrected for their start at zero."""
    if context.loss is None:
        raise ValueError("ResidualRule with a controller reads the loss, but StepContext.loss is None; pass the loss.")
    loss = context.loss.to(averages.dtype)
    pairs = zip(LOSS_DECAYS, averages.unbind(-1), strict=True)
    return torch.stack([decay * average + (1 - decay) * loss for decay, average in pairs])


def shared_signals(loss_averages: Tensor, context: StepContext) -> Tensor:
    """The inputs that are the same for all tensors, shape (5,), each within about ±1.

    Their order is: progress; share of the warm-up that has passed; log horizon; contrast of the fast and the slow
    average of the loss; contrast of the loss and the fast average.
    """
    dtype = loss_averages.dtype
    step, total = context.scheduled_step.to(dtype), context.total_steps.to(dtype)
    assert context.loss is not None
    count = context.step.to(dtype) + 1
    fast, slow = (average / (1 - decay**count) for decay, average in zip(LOSS_DECAYS, loss_averages, strict=True))
    signals = [
        step / total,
        torch.clamp((step + 1) / (0.05 * total), max=1.0),
        torch.log(total) / 10,
        _contrast(fast, slow),
        _contrast(context.loss.to(dtype), fast),
    ]
    return torch.stack(signals)


def tensor_signals(
    param: Tensor, grad: Tensor, momentum: Tensor, gradient_power: Tensor, initial_rms: Tensor, role: Role
) -> Tensor:
    """The inputs that describe one tensor, shape (10,), each within about ±1.

    Their order is: log ratio of gradient power to its average; cosine of gradient and momentum; log ratio of momentum
    power to gradient power (signal-to-noise); log growth of the tensor since initialisation; log rows; log columns;
    role, one-hot. A constant that multiplies the loss changes none of them.
    """
    power, momentum_power = grad.square().mean(), momentum.square().mean()
    cosine = (grad * momentum).mean() * torch.rsqrt(power * momentum_power + TINY)
    growth = (param.square().mean() + TINY) / initial_rms.square()
    temporal = [
        _log_ratio(power, gradient_power),
        cosine,
        _log_ratio(momentum_power, gradient_power),
        torch.clamp(torch.log(growth) / 4, -2.0, 2.0),
    ]
    height, width = matrix_shape(param.shape)
    fixed = [math.log2(max(height, 1)) / 10, math.log2(max(width, 1)) / 10]
    return torch.cat(
        [torch.stack(temporal), constants([*fixed, *(float(role == other_role) for other_role in ROLES)], param)]
    )


def _contrast(a: Tensor, b: Tensor) -> Tensor:
    """(a - b) relative to |a| + |b|, within ±1, for losses of any sign."""
    return torch.clamp(4 * (a - b) / (a.abs() + b.abs() + TINY), -1.0, 1.0)


def _log_ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.clamp(torch.log((a + TINY) / (b + TINY)) / 4, -2.0, 2.0)
