"""Adam's direction: what it is divided by, how coherent it is, and how it heeds the sign of the gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lopt.rules.shared.arithmetic import TINY, rms

TYPICAL_COHERENCE, LEAST_COHERENCE = 0.3, 0.01
NULL = 1e-10  # second moments below this share of a tensor's largest may be rounding: such entries take no step
OPPOSED = 0.01  # direction times gradient, both by inverse_root, at which caution is in full force: less may be noise


def inverse_root(moment: Tensor) -> Tensor:
    r"""What Adam's direction is multiplied with: :math:`\sqrt{v} / (v + \epsilon \max v)`.

    That is :math:`1 / \sqrt{v}`, but falls to 0 where v is null beside the tensor's largest: float32 rounds to 1e-7 of
    the largest gradient, and rounding must not become an entry of full size.
    """
    largest = moment.amax() if moment.numel() else moment.new_zeros(())
    # TINY: the root has a derivative where no gradient has been
    return torch.sqrt(moment + TINY) / (moment + (NULL * largest + TINY))


def coherence_factor(direction: Tensor, unbiased: Tensor, power: Tensor) -> Tensor:
    r"""The factor on the length of a step that the coherence of the gradients sets: :math:`(r / 0.3)^\omega`, 0-dim.

    The coherence r is the RMS of Adam's direction: 1 where gradients agree, and small where they are noise. It is
    clamped to [0.01, 1], since a value above 1 is momentum of a time of larger gradients, which the second moment has
    forgotten.

    Args:
        direction: momentum times :func:`inverse_root`, of any shape.
        unbiased: what corrects the bias of the two averages, 0-dim.
        power: :math:`\omega`, 0-dim.

    >>> coherence_factor(torch.tensor([0.6, -0.6]), torch.tensor(1.0), torch.tensor(1.0))
    tensor(2.)
    """
    unbiased = unbiased / TYPICAL_COHERENCE
    coherence = (rms(direction) * unbiased).clamp(LEAST_COHERENCE / TYPICAL_COHERENCE, 1 / TYPICAL_COHERENCE)
    return torch.pow(coherence, power)


def cautious(direction: Tensor, gradient: Tensor, caution: Tensor) -> Tensor:
    """The direction with its entries of another sign than the gradient times 1 - ``caution`` (Liang et al. 2024,
    https://arxiv.org/abs/2411.16085); entries whose product with the gradient is close to 0 less so.

    Args:
        direction: of any shape.
        gradient: times :func:`inverse_root`, of the same shape.
        caution: 0-dim, from 0 to 1.

    >>> cautious(torch.tensor([1.0, 1.0]), torch.tensor([2.0, -2.0]), torch.tensor(0.75))
    tensor([1.0000, 0.2500])
    """
    opposed = (direction * gradient).clamp(-OPPOSED, 0.0)
    return torch.addcmul(direction, opposed * (caution / OPPOSED), direction)
