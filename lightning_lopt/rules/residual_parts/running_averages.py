"""Running averages of the gradients of a tensor: momentum, second moment and eigenbases."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_lopt.rules.residual_parts.eigenbasis import follow, into_bases, out_of_bases
from lightning_lopt.rules.residual_parts.role_constants import Constants


def accumulate(
    grad: Tensor, state: Mapping[str, Tensor], at: Constants, *, turn: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Update the running averages of a tensor of shape s with a gradient.

    Args:
        grad: in the unit of the run, s.
        state: the tensor's state before the step; only averages in it are updated.
        at: constants of the tensor's role.
        turn: whether the eigenbases are turned in this step.

    Returns:
        the state after the gradient; and the gradient in the coordinates of the direction, s: those of the eigenbases
        for a rotated tensor.
    """
    moment_rate = at.moment_rate.to(grad.dtype)
    new_state, basis_grad = dict(state), grad
    momentum_rate = at.momentum_rate.to(grad.dtype)
    if "momentum" in state:
        new_state["momentum"] = torch.lerp(state["momentum"], grad, momentum_rate)
    if "second_moment" in state:
        new_state["second_moment"] = torch.lerp(state["second_moment"], grad.square(), moment_rate)
    if "rotated_moment" in state:
        rate = at.rotated_rate.to(grad.dtype)
        new_state |= follow(state, grad, rate, turn=turn)
        basis_grad = into_bases(grad, new_state)
        new_state["rotated_momentum"] = torch.lerp(new_state["rotated_momentum"], basis_grad, momentum_rate)
        new_state["rotated_moment"] = torch.lerp(state["rotated_moment"], basis_grad.square(), rate)
    if "gradient_power" in state:
        new_state["gradient_power"] = gradient_power(state, grad, at)
    return new_state, basis_grad


def momentum_of(state: Mapping[str, Tensor]) -> Tensor:
    """The momentum of a tensor in the tensor's own coordinates, of its shape."""
    return out_of_bases(state["rotated_momentum"], state) if "rotated_momentum" in state else state["momentum"]


def gradient_power(state: Mapping[str, Tensor], grad: Tensor, at: Constants) -> Tensor:
    """The running mean of the squared gradient with this gradient, 0-dim."""
    return torch.lerp(state["gradient_power"], grad.square().mean(), at.moment_rate.to(grad.dtype))
