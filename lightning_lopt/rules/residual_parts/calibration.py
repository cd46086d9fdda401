"""Factors on the steps of a run, calibrated during the run by the signal of hypergradient descent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_lopt.rules.base import THETA_DTYPE
from lightning_lopt.rules.residual_parts.gradient_unit import in_unit
from lightning_lopt.rules.shared.arithmetic import TINY, sum_of_squares
from lightning_lopt.rules.shared.blocks import in_blocks

PROMISE_LIMIT = 0.3  # limit of the promise of one gradient
LOWEST, HIGHEST = math.log(1e-3), 1.0  # limits of the logarithm of the common factor
LEAST, MOST = -4.0, 1.5  # limits of the logarithm of one tensor's own factor


class Calibration(nn.Module):
    r"""A factor :math:`\gamma` on all updates and one on the update of each tensor, from promises of the last update.

    With u the last update and g the gradient after it, :math:`m_t = -\langle g_t, u_{t-1} \rangle` is the decrease of
    the loss that repeating the last update promises, to first order. Above 0 the step stopped short, well below 0 it
    went past the valley. Its unit is the sum R of the promises so far, in which early promises count less and less;
    R is about the decrease of the loss so far:

    .. math::
        R \leftarrow \frac{t}{t + 1} R + \max(m_t, 0), \qquad
        a = \mathrm{clip}(m_t / R, \pm 0.3), \qquad
        \log \gamma \leftarrow \log \gamma + \beta_- \min(a + \tau, 0) + \beta_+ \max(a, 0)

    So a is the share of the run's own progress that one more step of this kind would add. It has no unit: multiplying
    the loss by a constant changes nothing, and neither does a constant added to the loss, whose value is never read.
    Where gradients are noise, R grows with the steps and a falls with their number, as the gain of a stochastic
    approximation does. R at most doubles in a step, so one wrong gradient does not set it for the run.

    What tensor i of n contributes, :math:`a_i` (clipped after multiplying it by n), changes the factor
    :math:`\gamma_i` of the tensor by the difference from a:

    .. math:: \log \gamma_i \leftarrow \log \gamma_i + \beta (a_i - a)

    The signal is that of hypergradient descent (Baydin et al. 2018, https://arxiv.org/abs/1703.04782), in the unit of
    its earlier promises.

    Args:
        shrink: initial :math:`\beta_-`, > 0.
        grow: initial :math:`\beta_+`, > 0.
        tolerance: initial :math:`\tau`, > 0.
        balance: initial :math:`\beta`, > 0.
    """

    def __init__(self, shrink: float = 0.3, grow: float = 0.1, tolerance: float = 0.03, balance: float = 0.2) -> None:
        super().__init__()
        self.log_shrink = nn.Parameter(torch.tensor(math.log(shrink), dtype=THETA_DTYPE))
        self.log_grow = nn.Parameter(torch.tensor(math.log(grow), dtype=THETA_DTYPE))
        self.log_tolerance = nn.Parameter(torch.tensor(math.log(tolerance), dtype=THETA_DTYPE))
        self.log_balance = nn.Parameter(torch.tensor(math.log(balance), dtype=THETA_DTYPE))

    def forward(
        self, memory: Tensor, log_factors: Tensor, promises: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The logarithm of the common factor, and the memory for the next step.

        Args:
            memory: logarithm of the common factor and R, shape ``(2,)``; zeros before the first step.
            log_factors: logarithm of the factor of each of n tensors, shape ``(n,)``; zeros before the first step.
            promises: of each tensor, :func:`promise`, shape ``(n,)``.
            step: steps made before this one, 0-dim.

        Returns:
            the logarithm of the common factor, the new memory, and the new logarithms of the tensors' factors.
        """
        log_common, promised = memory.unbind()
        promises = promises.to(memory.dtype)
        memory_decay = step.to(memory.dtype) / (step + 1).to(memory.dtype)
        total = promises.sum()
        promised = _promised(memory_decay * promised, total)
        # While R is 0, the unit is the sum of the promises of this step.
        promises = promises / torch.where(promised > 0, promised, total.abs() + TINY)
        share = promises.sum().clamp(-PROMISE_LIMIT, PROMISE_LIMIT)
        shrink = torch.exp(self.log_shrink) * (share + torch.exp(self.log_tolerance)).clamp(max=0.0)
        grow = torch.exp(self.log_grow) * share.clamp(min=0.0)
        common = (log_common + (shrink + grow).to(memory.dtype)).clamp(LOWEST, HIGHEST)
        difference = (len(promises) * promises).clamp(-PROMISE_LIMIT, PROMISE_LIMIT) - share
        moved = (log_factors + torch.exp(self.log_balance) * difference).clamp(LEAST, MOST)
        return common, torch.stack([common, promised]), moved.to(log_factors.dtype)


def promise(grad: Tensor, last_update: Tensor) -> Tensor:
    r"""The decrease of the loss that repeating the last update of one tensor promises, 0-dim.

    >>> promise(torch.tensor([1.0, 2.0]), torch.tensor([-0.5, 0.0]))
    tensor(0.5000)
    """
    return -torch.dot(grad.reshape(-1), last_update.reshape(-1))


def power_and_promises(grad: Tensor, per_unit: Tensor, last_updates: Sequence[Tensor]) -> list[Tensor]:
    """The sum of the squares of a gradient in the unit of its run, and its :func:`promise` for each last update.

    Args:
        grad: of shape s.
        per_unit: 1 / unit, 0-dim.
        last_updates: tensors of shape s.
    """

    def sums(grad: Tensor, *last_updates: Tensor) -> tuple[Tensor, ...]:
        grad = in_unit(grad, per_unit)
        return sum_of_squares(grad), *(promise(grad, last_update) for last_update in last_updates)

    return in_blocks(sums, grad, *last_updates, sums=1 + len(last_updates))


def _promised(promised: Tensor, promise: Tensor) -> Tensor:
    """The sum of the promises after one more promise, which at most doubles the sum; 0-dim."""
    gain = promise.clamp(min=0.0)
    return promised + torch.where(promised > 0, torch.minimum(gain, promised), gain)
