"""Adam's direction: denominator, coherence and caution."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lopt.rules.shared.arithmetic import TINY

TYPICAL_COHERENCE, LEAST_COHERENCE = 0.3, 0.01
NULL = 1e-10  # second moments below this share of the largest in a tensor may be rounding errors and cause no step
OPPOSED = 0.01  # caution is full if direction times gradient, both scaled, is below -OPPOSED; less may be noise


def largest_entry(moment: Tensor) -> Tensor:
    """The largest entry, 0-dim; 0 for an empty tensor."""
    return moment.amax() if moment.numel() else moment.new_zeros(())


def inverse_root(moment: Tensor, largest: Tensor) -> Tensor:
    r"""Multiplier of the momentum in Adam's direction: :math:`\sqrt{v} / (v + \epsilon \max v)`.

    The multiplier is close to :math:`1 / \sqrt{v}`, but falls to 0 where v is negligible next to the largest v of the
    tensor: float32 rounds to 1e-7 of the largest gradient, and rounding must not become an entry of full size.

    Args:
        moment: v, or some of its entries.
        largest: the largest entry of the tensor's v (:func:`largest_entry`), 0-dim.
    """
    # TINY keeps the derivative of the root finite where all gradients were 0.
    return torch.sqrt(moment + TINY) / (moment + (NULL * largest + TINY))


def coherence_factor(mean_of_squares: Tensor, unbiased: Tensor, power: Tensor) -> Tensor:
    r"""Factor on the length of a step, from the coherence of the gradients: :math:`(r / 0.3)^\omega`, 0-dim.

    The coherence r is the RMS of Adam's direction: 1 where gradients agree, and small where they are noise. It is
    clamped to [0.01, 1]: a value above 1 comes from earlier, larger gradients that are still part of the momentum but
    not of the second moment.

    Args:
        mean_of_squares: mean square of the entries of momentum times :func:`inverse_root`, 0-dim.
        unbiased: factor that corrects the bias of the two averages, 0-dim.
        power: :math:`\omega`, 0-dim.

    >>> coherence_factor(torch.tensor(0.36), torch.tensor(1.0), torch.tensor(1.0))
    tensor(2.)
    """
    unbiased = unbiased / TYPICAL_COHERENCE
    coherence = torch.sqrt(mean_of_squares + TINY) * unbiased
    coherence = coherence.clamp(LEAST_COHERENCE / TYPICAL_COHERENCE, 1 / TYPICAL_COHERENCE)
    return torch.pow(coherence, power)


def cautious(direction: Tensor, gradient: Tensor, caution: Tensor) -> Tensor:
    """Multiply entries of a direction whose sign differs from the gradient's by 1 - ``caution`` (Liang et al. 2024,
    https://arxiv.org/abs/2411.16085); entries whose product with the gradient is close to 0 change less.

    Args:
        direction: of any shape.
        gradient: the gradient times :func:`inverse_root`, of the same shape.
        caution: 0-dim, from 0 to 1.

    >>> cautious(torch.tensor([1.0, 1.0]), torch.tensor([2.0, -2.0]), torch.tensor(0.75))
    tensor([1.0000, 0.2500])
    """
    opposed = (direction * gradient).clamp(-OPPOSED, 0.0)
    return torch.addcmul(direction, opposed * (caution / OPPOSED), direction)
