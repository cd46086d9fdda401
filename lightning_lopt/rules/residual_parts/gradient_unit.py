"""Divides the gradients of a run by a unit, so that the scale of the loss does not matter."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lopt.rules.shared.blocks import in_blocks

GRADIENT_LIMIT = 1e15  # entries are clipped here, in the unit of the run, so that squares stay finite in float32
SMALLEST_UNIT = 2.0**-100  # least unit of gradients


def unit_of(largest: Tensor, unit: Tensor) -> Tensor:
    """The unit of the gradients of a run: the largest power of two up to the first largest entry above 0; 0-dim.

    In this unit, squares do not underflow in float32 where the loss is small. Division by a power of two rounds
    nothing.

    Args:
        largest: the largest entry of the present gradients, 0-dim.
        unit: the previous unit; 0 before the first gradient above 0.

    >>> unit_of(torch.tensor(5.0), torch.tensor(0.0)), unit_of(torch.tensor(5.0), torch.tensor(2.0))
    (tensor(4.), tensor(2.))
    """
    largest = largest.detach()
    power = torch.exp2(torch.floor(torch.log2(largest.clamp(SMALLEST_UNIT, 1 / SMALLEST_UNIT))))
    return torch.where((unit == 0) & (largest > 0), power.to(unit.dtype), unit)


def per_unit_of(unit: Tensor) -> Tensor:
    """1 / unit, or 1 for a unit of 0; 0-dim."""
    return 1 / torch.where(unit == 0, 1.0, unit)


def in_unit(grad: Tensor, per_unit: Tensor) -> Tensor:
    """A gradient in the unit of its run, clipped so that squares are finite in float32."""
    per_unit = per_unit.to(grad.dtype)
    return in_blocks(lambda grad: ((grad * per_unit).clamp(-GRADIENT_LIMIT, GRADIENT_LIMIT),), grad)[0]


def extremes_of(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest entry, 0-dim each; 0 for an empty tensor."""
    if not grad.numel():
        return grad.new_zeros(()), grad.new_zeros(())
    low, high = torch.aminmax(grad)
    return low, high


def largest_of(lowest: Tensor, highest: Tensor) -> Tensor:
    """The largest absolute value of all entries of n tensors, 0-dim.

    Args:
        lowest, highest: :func:`extremes_of` each tensor, (n,).

    >>> largest_of(torch.tensor([-3.0, 1.0]), torch.tensor([2.0, 1.0]))
    tensor(3.)
    """
    return torch.maximum(highest.amax(), -lowest.amin())
