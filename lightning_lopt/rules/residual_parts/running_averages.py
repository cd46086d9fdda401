"""Running averages of the gradients of a tensor: momentum, second moment and eigenbases."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_lopt.rules.contract.stacks import Store
from lightning_lopt.rules.residual_parts.eigenbasis import follow, free_axis, into_bases, out_of_bases, turned_over
from lightning_lopt.rules.residual_parts.role_constants import Constants
from lightning_lopt.rules.shared.blocks import Output, in_blocks


def accumulate(
    grad: Tensor,
    state: Mapping[str, Tensor],
    constants: Constants,
    *,
    turn: bool,
    overwrites: bool = False,
    store: Store | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Update the running averages of a tensor of shape s with a gradient.

    Args:
        grad: gradient in the unit of the run, s.
        state: state of the tensor before the step; only the averages in this state are updated.
        constants: constants of the role of the tensor.
        turn: whether the eigenbases are turned in this step.
        overwrites: whether the gradient in other coordinates may be written to the memory of ``grad``.
        store: as in :class:`TensorInputs`; averages of a large tensor are then written to the memory of ``state``.

    Returns:
        the state after the gradient; and the gradient, s, in the coordinates of the direction, which are those of the
        eigenbases for a rotated tensor.
    """
    new_state, basis_grad = dict(state), grad
    momentum_rate, moment_rate = constants.momentum_rate.to(grad.dtype), constants.moment_rate.to(grad.dtype)
    if "momentum" in state:
        new_state["momentum"] = _averaged(state["momentum"], grad, momentum_rate, store)
    if "second_moment" in state:
        new_state["second_moment"] = _averaged(state["second_moment"], grad, moment_rate, store, of_squares=True)
    if "gradient_power" in state:
        new_state["gradient_power"] = gradient_power(state, grad, constants)
    if "rotated_moment" in state:
        rate = constants.rotated_rate.to(grad.dtype)
        new_state |= follow(state, grad, rate, turn=turn)

        def in_new_bases(grad: Tensor, momentum: Tensor, moment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            grad = into_bases(grad, new_state)
            momentum = turned_over(momentum, state, new_state) if turn else momentum
            return grad, torch.lerp(momentum, grad, momentum_rate), torch.lerp(moment, grad.square(), rate)

        averages = state["rotated_momentum"], state["rotated_moment"]
        outputs = {0: Output(grad)} if overwrites else {}
        outputs |= {} if store is None else {index: Output(x, store) for index, x in enumerate(averages, 1)}
        basis_grad, momentum, moment = in_blocks(in_new_bases, grad, *averages, axis=free_axis(state), outputs=outputs)
        new_state |= {"rotated_momentum": momentum, "rotated_moment": moment}
    return new_state, basis_grad


def _averaged(average: Tensor, grad: Tensor, rate: Tensor, store: Store | None, *, of_squares: bool = False) -> Tensor:
    """The running mean of gradients, or of squares, after ``grad``, whose weight is ``rate``, 0-dim."""

    def with_gradient(average: Tensor, grad: Tensor) -> tuple[Tensor]:
        return (torch.lerp(average, grad.square() if of_squares else grad, rate),)

    return in_blocks(with_gradient, average, grad, outputs={} if store is None else {0: Output(average, store)})[0]


def momentum_of(state: Mapping[str, Tensor]) -> Tensor:
    """The momentum of a tensor in the coordinates of the tensor, of the same shape."""
    return out_of_bases(state["rotated_momentum"], state) if "rotated_momentum" in state else state["momentum"]


def gradient_power(state: Mapping[str, Tensor], grad: Tensor, constants: Constants) -> Tensor:
    """The running mean of the squared gradient after this gradient, 0-dim."""
    return torch.lerp(state["gradient_power"], grad.square().mean(), constants.moment_rate.to(grad.dtype))
