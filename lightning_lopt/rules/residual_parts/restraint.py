"""Shortens fine-tuning steps on few repeated examples, by the planned epochs and by the fall of the gradient norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_lopt.rules.base import THETA_DTYPE, Columns
from lightning_lopt.rules.residual_parts.structure import Signs, depth_of, trained
from lightning_lopt.rules.shared.arithmetic import TINY

TYPICAL_EPOCHS = 12.0  # passes over the training data at which the epoch factor is 1
TYPICAL_DEPTH = 3.0  # largest number of matrices without a depth factor
FEWEST, MOST = math.log(1.5 / TYPICAL_EPOCHS), math.log(30.0 / TYPICAL_EPOCHS)  # limits of log(epochs / TYPICAL_EPOCHS)
RATE = 0.05  # rate of the running average of the logarithm of the gradient norm
FIRST = 20  # number of gradients at the start of a run whose norms are not limited
LIMIT = 7.0  # limit of the difference between the logarithm of one gradient norm and the mean of the logarithms


class Restraint(nn.Module):
    r"""The logarithm of a factor on the steps of trained tensors, from the gradient norm and the plan of the run.

    The gradient norm, divided by its geometric mean so far, gives a factor f of at most 1. With the norm n of all
    gradients together, a running average a and the mean b of its logarithm are

    .. math::
        a_t = a_{t-1} + \max(1/t, 0.05) (\log n_t - a_{t-1}), \qquad
        b_t = b_{t-1} + (\log n_t - b_{t-1}) / t, \qquad
        \log f = \rho \min(a_t - b_t, 0)

    The size of a direction does not depend on the size of the gradient. Once a pretrained network has memorised the
    few examples of fine-tuning, gradients vanish, and steps of full size only move the network away from its pretrained
    weights. Gradients that are noise, or that fall by a power of the number of steps, shorten steps little or not at
    all, since the mean falls too. Multiplying the loss by a constant changes nothing, and a step without a gradient is
    ignored. After 20 gradients, a norm is clipped to at most 1,000 times and at least 1/1,000 of the mean.

    A known number E of planned epochs, clipped to [1.5, 30], gives the further factor :math:`(E / 12)^{-\psi}`: the
    more often examples are repeated, the less a step improves unseen examples. A network of k > 3 matrices gives the
    factor :math:`(k / 3)^{-\delta}`, since the changes of the matrices add up in the output of the network.

    Args:
        power: initial :math:`\rho`, >= 0.
        epoch_power: initial :math:`\psi`, >= 0; ``None`` for a factor that does not depend on the epochs.
        depth_power: initial :math:`\delta`, >= 0; ``None`` for a factor that does not depend on the depth.

    Example:
        >>> restraint, memory = Restraint(power=1.0), torch.zeros(3)
        >>> for size in [1.0, 1.0, 1.0, 1.0]:
        ...     log_factor, memory = restraint(memory, torch.tensor(size).log())
        >>> log_factor.item()
        0.0
    """

    def __init__(self, power: float = 3.0, epoch_power: float | None = None, depth_power: float | None = None) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(power, dtype=THETA_DTYPE))
        self.epoch_power = None if epoch_power is None else nn.Parameter(torch.tensor(epoch_power, dtype=THETA_DTYPE))
        self.depth_power = None if depth_power is None else nn.Parameter(torch.tensor(depth_power, dtype=THETA_DTYPE))

    def forward(
        self, memory: Tensor, log_norm: Tensor, epochs: Tensor | None = None, depth: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The logarithm of the factor, 0-dim, and the memory for the next step.

        Args:
            memory: the number of gradients so far, the average and the mean of the logarithm of their norm, shape
                ``(3,)``; zeros before the first gradient.
            log_norm: logarithm of the norm of all gradients, 0-dim; minus infinity if all gradients are 0.
            epochs: planned passes over the training data, 0-dim; ``None`` or NaN if the number is unknown.
            depth: number of matrices, 0-dim; see :func:`~lightning_lopt.rules.residual_parts.structure.depth_of`.
        """
        count, average, mean = memory.unbind()
        has_gradient = log_norm.abs() < torch.inf
        log_size = torch.where(has_gradient, log_norm, 0.0).to(memory.dtype)
        limited = torch.minimum(torch.maximum(log_size, mean - LIMIT), mean + LIMIT)
        log_size = torch.where(count > FIRST, limited, log_size)
        count = count + has_gradient
        weight = 1 / count.clamp(min=1.0)
        average = torch.where(has_gradient, torch.lerp(average, log_size, weight.clamp(min=RATE)), average)
        mean = torch.where(has_gradient, torch.lerp(mean, log_size, weight), mean)
        log_factor = self.power.to(memory.dtype) * (average - mean).clamp(max=0.0)
        return log_factor + self.planned_factor(epochs, depth), torch.stack([count, average, mean])

    def factors(
        self,
        memory: Tensor,
        columns: Columns,
        per_unit: Tensor,
        epochs: Tensor | None,
        log_growth: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """The factor on the steps of each of n tensors, (n,), and the memory for the next step.

        Args:
            memory: as in :meth:`forward`.
            columns: ``"structure"`` holds the signs of training of n tensors, (n, 10). ``"power"`` holds the sums of
                squares of their gradients in a unit, (n,). ``"careful"`` holds the logarithms of the divisors of the
                steps of trained tensors, (n,).
            per_unit: 1 / unit, 0-dim.
            epochs: as in :meth:`forward`.
            log_growth: logarithm of a factor by which the steps of a trained tensor lengthen, up to full steps.
        """
        signs = Signs(*columns["structure"].unbind(-1))
        log_norm = log_norm_of(columns["power"].sum(), per_unit)
        log_restraint, memory = self(memory, log_norm, epochs, depth_of(signs))
        degrees = trained(signs, self.repetition(epochs))
        log_factors = log_restraint - columns["careful"]
        log_factors = torch.maximum(log_factors, (log_factors + log_growth).clamp(max=0.0))
        return torch.exp(log_factors * degrees), memory

    def planned_factor(self, epochs: Tensor | None, depth: Tensor | None) -> Tensor | float:
        """The logarithm of the product of the epoch and depth factors, 0-dim; an unknown number gives the factor 1.

        >>> rule = Restraint(epoch_power=1.0, depth_power=1.0)
        >>> round(float(rule.planned_factor(torch.tensor(3.0), torch.tensor(6.0)).exp()), 2)  # 12 / 3, 3 / 6
        2.0
        """
        log_factor: Tensor | float = 0.0
        if self.epoch_power is not None and epochs is not None:
            log_factor = log_factor - self.epoch_power.to(epochs.dtype) * torch.nan_to_num(_log_epochs(epochs))
        if self.depth_power is not None and depth is not None:
            log_excess_depth = torch.log(depth / TYPICAL_DEPTH).clamp(min=0.0)
            log_factor = log_factor - self.depth_power.to(depth.dtype) * log_excess_depth
        return log_factor

    def repetition(self, epochs: Tensor | None) -> Tensor | float:
        """Degree of repetition of examples, 0-dim: 0 up to 1.5 epochs or for an unknown number, 1 from 30 epochs on.

        >>> [round(float(Restraint(epoch_power=1.0).repetition(torch.tensor(x))), 2) for x in (1.0, 6.7, 50.0)]
        [0.0, 0.5, 1.0]
        """
        if self.epoch_power is None or epochs is None:
            return 0.0
        return torch.nan_to_num((_log_epochs(epochs) - FEWEST) / (MOST - FEWEST))


def _log_epochs(epochs: Tensor) -> Tensor:
    """The logarithm of epochs / TYPICAL_EPOCHS, clipped to its limits; NaN stays NaN."""
    return torch.log(epochs / TYPICAL_EPOCHS).clamp(FEWEST, MOST)


def log_norm_of(power: Tensor, per_unit: Tensor) -> Tensor:
    """The logarithm of the norm of gradients, 0-dim; minus infinity, with a derivative of 0, for gradients of 0.

    Args:
        power: sum of the squares of the gradients in a unit, 0-dim.
        per_unit: 1 / unit, 0-dim.

    >>> log_norm_of(torch.tensor(16.0), torch.tensor(0.5))  # 4 units of 2
    tensor(2.0794)
    """
    return torch.where(power > 0, 0.5 * torch.log(power.clamp(min=TINY)) - torch.log(per_unit), -torch.inf)
