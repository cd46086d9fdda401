r"""Gradual early stopping: shortens steps if the validation loss rises, and returns to the best parameters.

With the losses :math:`v_1 \dots v_k`, their lowest :math:`b` and their highest :math:`h`, the rise
:math:`r = (v_k - b) / (h - b)` lies between 0 and 1. It has no unit: multiplying losses by a constant, or adding a
constant to them, changes nothing. If most of the range is the progress of the run, noise is a small share of the range.
All steps are multiplied by the factor f, which is 1 at first. Steps of trained tensors, which the rule shortens from
the start, are also multiplied by the factor g, up to full steps. With the decline
:math:`d = \mathrm{clip}((r - 0.05) / 0.2, 0, 1)`,

.. math:: \log f \leftarrow \mathrm{clip}\big(\log f + w\, ([v_k = b] - d),\ -3,\ 0\big), \qquad
    \log g \leftarrow \mathrm{clip}\big(\log g + w\, (0.25\, [v_k = b] - d),\ 0,\ 4\big), \qquad
    w = \min(1, 20\, \Delta)

where :math:`\Delta` is the share of the planned steps since the last loss. If a run has more than 20 losses, each has a
lower weight w; a running average with the weights w replaces the losses in these formulas. If r > 0.05 for consecutive
losses whose weights w add up to 2, training continues from the parameters at the lowest average (a rollback).

A loss can also rise because the loss changes, and not the model: the data change, or the weight of a term grows. Then
a rollback is futile: the next loss has r > 0.75, or r > 0.3 and is not lower than the loss before the rollback (the
latter only in runs of at most 40 losses, since one of frequent losses may be noise). After two consecutive futile
rollbacks, losses have no effect, and f is 1 again, until the next lowest loss.

The memory is a tensor of nine numbers: the number of losses, their running average, the lowest and the highest value
of that average, :math:`\log f`, the progress at the last loss, the sum of w over the last consecutive losses with
r > 0.05, :math:`\log g`, and the number of consecutive futile rollbacks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lopt.rules.contract.context import Rollback

CHECKS = 20.0  # number of losses in a run above which losses are averaged
TOLERANCE, CLEAR = 0.05, 0.25  # largest rise without effect, least rise with full effect; shares of the range of losses
GROWTH, LARGEST_GROWTH = 0.25, 4.0  # increase of log g at a new lowest loss, and its limit
PATIENCE = 2 - 1e-3  # weight of consecutive rises that sets parameters back; a rise after 1/20 of the run has weight 1
FUTILE = 2.0  # number of consecutive futile rollbacks after which losses have no effect
HIGH, VERY_HIGH = 0.3, 0.75  # rises after a rollback that make it futile: without a lower loss, and in any case
LOWEST = -3.0  # lower limit of log f: steps never end, since a loss that has risen may fall again


def blank_memory(like: Tensor) -> Tensor:
    """The memory before the first loss, (9,)."""
    return like.new_zeros(9)


def factor_of(memory: Tensor) -> Tensor:
    """The factor f, 0-dim."""
    return torch.exp(memory[4])


def log_growth_of(memory: Tensor) -> Tensor:
    """The logarithm of the factor g, 0-dim."""
    return memory[7]


def rollback_of(memory: Tensor) -> Rollback:
    """Whether the last loss in the memory is the lowest, and whether consecutive rises make a rollback due.

    >>> memory = blank_memory(torch.zeros(()))
    >>> for check, loss in enumerate([2.0, 1.0, 1.5, 1.4]):
    ...     memory = memory_after(memory, torch.tensor(loss), torch.tensor(0.1 * (check + 1)))
    >>> rollback_of(memory)
    Rollback(is_best=tensor(False), is_due=tensor(True))
    """
    count, average, lowest, _, _, _, rises, *_ = memory.unbind(-1)
    is_due = rises >= PATIENCE
    return Rollback((count > 0) & (average <= lowest) & ~is_due, is_due)


def memory_after(memory: Tensor, loss: Tensor, progress: Tensor) -> Tensor:
    """The memory after a further validation loss.

    Args:
        memory: memory before this loss, (9,).
        loss: 0-dim; a loss that is not finite changes nothing.
        progress: number of steps so far, divided by the number of planned steps, 0-dim.

    >>> memory = blank_memory(torch.zeros(()))
    >>> for check, loss in enumerate([2.0, 1.0, 1.5]):
    ...     memory = memory_after(memory, torch.tensor(loss), torch.tensor(0.1 * (check + 1)))
    >>> factor_of(memory)
    tensor(0.3679)
    """
    count, average, lowest, highest, log_factor, last_progress, rises, growth, futile = memory.unbind()
    loss, progress = loss.to(memory.dtype), progress.to(memory.dtype)
    is_first = count == 0
    weight = torch.where(is_first, 1.0, (CHECKS * (progress - last_progress)).clamp(0.0, 1.0))
    was_due = rises >= PATIENCE  # then the run has gone back to the parameters of the lowest value
    is_above = (loss >= average) & (weight >= 0.5)  # a single one of frequent losses may be noise
    high, very_high = (torch.lerp(lowest, highest, share) for share in (HIGH, VERY_HIGH))
    is_futile = (loss > very_high) | (is_above & (loss > high))
    futile = torch.where(was_due, torch.where(is_futile, futile + 1, 0.0), futile)
    average = torch.where(is_first, loss, torch.lerp(torch.where(was_due, lowest, average), loss, weight))
    is_lowest = is_first | (average < lowest)
    lowest = torch.where(is_lowest, average, lowest)
    highest = torch.where(is_first, average, torch.maximum(highest, average))
    span = torch.where(highest > lowest, highest - lowest, 1.0)
    rise, last_rise = (average - lowest) / span, (loss - lowest) / span
    counted = weight * (last_rise > TOLERANCE)  # a single outlier stays in the average for a while
    rises = torch.where(rise > TOLERANCE, torch.where(was_due, 0.0, rises) + counted, 0.0)
    new_low, decline = is_lowest.to(memory.dtype), ((rise - TOLERANCE) / (CLEAR - TOLERANCE)).clamp(0.0, 1.0)
    log_factor = (log_factor + weight * (new_low - decline)).clamp(LOWEST, 0.0)
    growth = (growth + weight * (GROWTH * new_low - decline)).clamp(0.0, LARGEST_GROWTH)
    futile = torch.where(is_lowest, 0.0, futile)
    is_ignored = futile >= FUTILE
    log_factor, rises = (torch.where(is_ignored, 0.0, number) for number in (log_factor, rises))
    new_memory = torch.stack([count + 1, average, lowest, highest, log_factor, progress, rises, growth, futile])
    return torch.where(loss.isfinite(), new_memory, memory)
