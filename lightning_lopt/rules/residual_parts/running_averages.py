"""What a tensor's state remembers of its gradients: momentum, second moment and bases."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_lopt.rules.residual_parts.eigenbasis import follow, into_bases, out_of_bases
from lightning_lopt.rules.residual_parts.role_constants import Constants


def accumulate(
    grad: Tensor, old: Mapping[str, Tensor], at: Constants, *, turn: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Take a gradient into the running averages of a tensor of shape s.

    Args:
        grad: in the unit of the run, s.
        old: the tensor's state before the step; only averages that it has are kept.
        at: constants of the tensor's role.
        turn: whether the eigenbases are turned in this step.

    Returns:
        the state after the gradient; and the gradient in the coordinates of the direction, s: those of the eigenbases
        for a rotated tensor.
    """
    moment_rate = at.moment_rate.to(grad.dtype)
    new, inside = dict(old), grad
    momentum_rate = at.momentum_rate.to(grad.dtype)
    if "momentum" in old:
        new["momentum"] = torch.lerp(old["momentum"], grad, momentum_rate)
    if "second_moment" in old:
        new["second_moment"] = torch.lerp(old["second_moment"], grad.square(), moment_rate)
    if "rotated_moment" in old:
        rate = at.rotated_rate.to(grad.dtype)
        new |= follow(old, grad, rate, turn=turn)
        inside = into_bases(grad, new)
        new["rotated_momentum"] = torch.lerp(new["rotated_momentum"], inside, momentum_rate)
        new["rotated_moment"] = torch.lerp(old["rotated_moment"], inside.square(), rate)
    if "gradient_power" in old:
        new["gradient_power"] = gradient_power(old, grad, at)
    return new, inside


def momentum_of(state: Mapping[str, Tensor]) -> Tensor:
    """The momentum of a tensor in the tensor's own coordinates, of its shape."""
    return out_of_bases(state["rotated_momentum"], state) if "rotated_momentum" in state else state["momentum"]


def gradient_power(old: Mapping[str, Tensor], grad: Tensor, at: Constants) -> Tensor:
    """The running mean of the squared gradient with this gradient, 0-dim."""
    return torch.lerp(old["gradient_power"], grad.square().mean(), at.moment_rate.to(grad.dtype))
