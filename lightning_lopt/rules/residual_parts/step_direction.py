"""The direction of a step of :class:`ResidualRule`, and the length of the step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_lopt.rules.contract.roles import Role
from lightning_lopt.rules.residual_parts.adam_direction import cautious, coherence_factor, inverse_root, largest_entry
from lightning_lopt.rules.residual_parts.direction import DirectionMLP
from lightning_lopt.rules.residual_parts.eigenbasis import out_evened, out_of_bases
from lightning_lopt.rules.residual_parts.role_constants import Constants
from lightning_lopt.rules.residual_parts.running_averages import momentum_of
from lightning_lopt.rules.shared.arithmetic import orthogonalise, rms, sum_of_squares
from lightning_lopt.rules.shared.blocks import Output, in_blocks


def has_role(param: Tensor, role: Role, roles: frozenset[str]) -> bool:
    """Whether a tensor is treated as a matrix of one of these roles."""
    return param.ndim >= 2 and role in roles


def direction_of(
    param: Tensor,
    grad: Tensor,
    basis_grad: Tensor,
    state: Mapping[str, Tensor],
    constants: Constants,
    *,
    evened: bool,
    orthogonal: bool,
    correction: DirectionMLP | None,
) -> tuple[Tensor, Tensor]:
    """The direction of the step of a tensor of shape s, and the multiplier of the direction.

    Args:
        param: the tensor before the step, s.
        grad: gradient in the unit of the run, s.
        basis_grad: the gradient in the coordinates of the eigenbases for a rotated tensor, else ``grad``; s.
            Without a correction, the direction of a large tensor is written to this memory.
        state: state of the tensor after this gradient.
        constants: constants of the tensor.
        evened: whether the direction of a rotated tensor with one basis is orthogonalised (:func:`out_evened`).
        orthogonal: whether the direction is the orthogonalised momentum instead of Adam's direction.
        correction: network whose output is added to the direction.

    Returns:
        the direction, s; and the length of the step divided by the RMS of the direction, 0-dim.
    """
    is_rotated = "rotated_moment" in state
    dtype, length = grad.dtype, constants.step_size
    momentum_share, caution = constants.momentum_share.to(dtype), constants.caution.to(dtype)
    momentum = state["rotated_momentum" if is_rotated else "momentum"]
    overwrites = correction is None  # a correction still reads the gradient
    if orthogonal:
        direction = torch.lerp(basis_grad, momentum, momentum_share)
    else:
        moment = state["rotated_moment" if is_rotated else "second_moment"]
        largest = largest_entry(moment).to(dtype)

        def adam_direction(grad: Tensor, momentum: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
            scale = inverse_root(moment, largest)
            direction = torch.lerp(grad, momentum, momentum_share) * scale
            return cautious(direction, grad * scale, caution), sum_of_squares(direction)

        outputs = {0: Output(basis_grad)} if overwrites else {}
        direction, squares = in_blocks(adam_direction, basis_grad, momentum, moment, outputs=outputs, sums=1)
        unbiased = (constants.rotated_root if is_rotated else constants.moment_root) * constants.mix_factor
        length = length * coherence_factor(squares / max(grad.numel(), 1), unbiased, constants.coherence_power)
    if is_rotated:
        direction = (out_evened if evened else out_of_bases)(direction, state, overwrites=overwrites)
    if correction is not None:
        scale = inverse_root(state["second_moment"], largest_entry(state["second_moment"]))
        adam = torch.lerp(grad, momentum_of(state), momentum_share) * scale
        direction = correction.corrected(direction, adam, grad * scale, param)
    if orthogonal:
        direction = orthogonalise(direction)
    return direction, length / rms(direction)


def update_of(direction: Tensor, length: Tensor, param: Tensor, decay: Tensor) -> Tensor:
    """The update of a tensor of shape s: a step against the direction, and weight decay.

    Args:
        direction: s; the update of a large tensor is written to the memory of its direction.
        length: length of the step divided by the RMS of the direction, 0-dim.
        param: the tensor before the step, s.
        decay: share of ``param`` that is subtracted, 0-dim.
    """
    decay = decay.to(param.dtype)

    def scaled_and_decayed(direction: Tensor, param: Tensor) -> tuple[Tensor]:
        return (torch.addcmul(direction * -length, param, decay, value=-1).to(param.dtype),)

    return in_blocks(scaled_and_decayed, direction, param, outputs={0: Output(direction)})[0]
