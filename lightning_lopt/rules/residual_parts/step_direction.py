"""The direction of a step of :class:`ResidualRule`, and the length of the step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_lopt.rules.contract.roles import Role
from lightning_lopt.rules.residual_parts.adam_direction import cautious, coherence_factor, inverse_root
from lightning_lopt.rules.residual_parts.direction import DirectionMLP
from lightning_lopt.rules.residual_parts.eigenbasis import out_evened, out_of_bases
from lightning_lopt.rules.residual_parts.role_constants import Constants
from lightning_lopt.rules.residual_parts.running_averages import momentum_of
from lightning_lopt.rules.shared.arithmetic import orthogonalise, rms


def has_role(param: Tensor, role: Role, roles: frozenset[str]) -> bool:
    """Whether a tensor is treated as a matrix of one of these roles."""
    return param.ndim >= 2 and role in roles


def direction_of(
    param: Tensor,
    grad: Tensor,
    basis_grad: Tensor,
    state: Mapping[str, Tensor],
    at: Constants,
    *,
    evened: bool,
    orthogonal: bool,
    correction: DirectionMLP | None,
) -> tuple[Tensor, Tensor]:
    """The direction of the step of a tensor of shape s, and its multiplier.

    Args:
        param: the tensor before the step, s.
        grad: in the unit of the run, s.
        basis_grad: the gradient in the coordinates of the eigenbases where the tensor has them, else ``grad``; s.
        state: the tensor's state after this gradient.
        at: constants of the tensor.
        evened: whether a rotated tensor with one basis is orthogonalised along its other side.
        orthogonal: whether the direction is the orthogonalised momentum instead of Adam's direction.
        correction: network whose correction is added to the direction.

    Returns:
        the direction, s; and the length of the step divided by the RMS of the direction, 0-dim.
    """
    is_rotated = "rotated_moment" in state
    dtype, length = grad.dtype, at.step_size
    momentum = state["rotated_momentum" if is_rotated else "momentum"]
    direction = torch.lerp(basis_grad, momentum, at.momentum_share.to(dtype))
    if not orthogonal:
        scale = inverse_root(state["rotated_moment" if is_rotated else "second_moment"])
        direction = direction * scale
        unbiased = (at.rotated_root if is_rotated else at.moment_root) * at.mix_factor
        length = length * coherence_factor(direction, unbiased, at.coherence_power)
        direction = cautious(direction, basis_grad * scale, at.caution.to(dtype))
    if is_rotated:
        direction = (out_evened if evened else out_of_bases)(direction, state)
    if correction is not None:
        scale = inverse_root(state["second_moment"])
        adam = torch.lerp(grad, momentum_of(state), at.momentum_share.to(dtype)) * scale
        direction = correction.corrected(direction, adam, grad * scale, param)
    if orthogonal:
        direction = orthogonalise(direction)
    return direction, length / rms(direction)
