"""Calibrates the step sizes of a run during the run, by the signal of hypergradient descent."""

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
LEAST, MOST = -4.0, 1.5  # limits of the logarithm of the factor of a single tensor


class Calibration(nn.Module):
    r"""A common factor :math:`\gamma` on all updates, and a factor for each tensor, by hypergradient descent.

    With the last update u and the gradient g after it, the promise :math:`m_t = -\langle g_t, u_{t-1} \rangle` is the
    first-order decrease of the loss if the last update were repeated. A promise above 0 means that the step was too
    short; a promise well below 0 means that it was too long. Promises are divided by their running sum R, in which
    early promises count less and less; R is about the decrease of the loss so far:

    .. math::
        R \leftarrow \frac{t}{t + 1} R + \max(m_t, 0), \qquad
        a = \mathrm{clip}(m_t / R, \pm 0.3), \qquad
        \log \gamma \leftarrow \log \gamma + \beta_- \min(a + \tau, 0) + \beta_+ \max(a, 0)

    So a compares the decrease that one more such step promises with the decrease so far. It has no unit: a constant
    that multiplies the loss cancels, and a constant added to the loss has no effect, since the loss is never read.
    Where gradients are noise, R grows with the number of steps, so a falls with that number, as the gain of a
    stochastic approximation does. R at most doubles in a step, so a single wrong gradient does not fix R for the run.

    The share :math:`a_i` of tensor i of n in a, multiplied by n and then clipped, changes the factor :math:`\gamma_i`
    of the tensor:

    .. math:: \log \gamma_i \leftarrow \log \gamma_i + \beta (a_i - a)

    The signal is the hypergradient (Baydin et al. 2018, https://arxiv.org/abs/1703.04782), divided by the sum of
    earlier promises.

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
        """The factors on this step, and the memory for the next step.

        Args:
            memory: logarithm of the common factor and R, shape ``(2,)``; zeros before the first step.
            log_factors: logarithm of the factor of each of n tensors, shape ``(n,)``; zeros before the first step.
            promises: :func:`promise` of each tensor, shape ``(n,)``.
            step: steps made before this one, 0-dim.

        Returns:
            the logarithm of the common factor, the new memory, and the new logarithms of the tensors' factors.
        """
        log_common, promise_sum = memory.unbind()
        promises = promises.to(memory.dtype)
        memory_decay = step.to(memory.dtype) / (step + 1).to(memory.dtype)
        step_promise = promises.sum()
        promise_sum = _sum_with(memory_decay * promise_sum, step_promise)
        # While R is 0, promises are divided by the size of the promise of this step.
        promises = promises / torch.where(promise_sum > 0, promise_sum, step_promise.abs() + TINY)
        share = promises.sum().clamp(-PROMISE_LIMIT, PROMISE_LIMIT)
        shrink = torch.exp(self.log_shrink) * (share + torch.exp(self.log_tolerance)).clamp(max=0.0)
        grow = torch.exp(self.log_grow) * share.clamp(min=0.0)
        common = (log_common + (shrink + grow).to(memory.dtype)).clamp(LOWEST, HIGHEST)
        difference = (len(promises) * promises).clamp(-PROMISE_LIMIT, PROMISE_LIMIT) - share
        new_factors = (log_factors + torch.exp(self.log_balance) * difference).clamp(LEAST, MOST)
        return common, torch.stack([common, promise_sum]), new_factors.to(log_factors.dtype)


def promise(grad: Tensor, last_update: Tensor) -> Tensor:
    r"""The first-order decrease of the loss if the last update of one tensor were repeated, 0-dim.

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


def _sum_with(promise_sum: Tensor, step_promise: Tensor) -> Tensor:
    """The sum of the promises after one more promise, which at most doubles the sum; 0-dim."""
    gain = step_promise.clamp(min=0.0)
    return promise_sum + torch.where(promise_sum > 0, torch.minimum(gain, promise_sum), gain)
