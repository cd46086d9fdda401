"""Values of a step of :class:`ResidualRule` that are the same for all tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from lightning_lopt.rules.contract.roles import Role
from lightning_lopt.rules.residual_parts.role_constants import Constants


class Moment(NamedTuple):
    """Values of a step that are the same for all tensors.

    Attributes:
        constants: constants of each role.
        per_unit: 1 / unit of the gradients before the step, 0-dim.
        loss_averages: averages of the loss that include the loss of this step, (2,); ``None`` without a controller.
        signals: inputs of a controller that describe the run, (5,); ``None`` without a controller.
    """

    constants: Mapping[Role, Constants]
    per_unit: Tensor
    loss_averages: Tensor | None = None
    signals: Tensor | None = None
