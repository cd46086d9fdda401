"""What ResidualRule's hand-designed part has for constants: one of each kind for every role."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_lopt.rules.base import ROLES, StepContext

TYPICAL, BEND = 500.0, 1000.0  # horizons, in steps: of meta-training, and where a dependence on it sets in


class RoleConstants(nn.Module):
    """The constants of the hand-designed part, one entry per role in the order of ``ROLES``, all learnable.

    Stored in the space in which they are learned: positive constants by their logarithm, those between 0 and 1 by
    their logit.

    Args:
        step_size: initial step size for all roles, > 0, in units of a tensor's initial RMS.
        weight_decay: initial weight decay for all roles, > 0, in units of the step size, as in AdamW.
        rotated: whether any role is, which takes one constant more.
        horizon_power: initial power for all roles with which step sizes fall with the horizon; ``None`` for no such
            constant.
    """

    def __init__(
        self, step_size: float, weight_decay: float, *, rotated: bool = False, horizon_power: float | None = None
    ) -> None:
        super().__init__()

        def table(matrix: float, other: float) -> nn.Parameter:
            return nn.Parameter(torch.tensor([matrix if role == "matrix" else other for role in ROLES]))

        def logit(value: float) -> float:
            return math.log(value / (1 - value))

        self.log_step_size = table(math.log(step_size), math.log(step_size))
        self.log_rms_floor = table(math.log(0.03), math.log(0.03))
        self.logit_warmup = table(logit(0.05), logit(0.05))  # as a fraction of the horizon
        self.log_decay_power = table(0.0, 0.0)  # 1 is linear
        self.logit_momentum = table(logit(0.95), logit(0.9))
        self.momentum_mix = table(0.95, 1.0)  # weight of the momentum against the bare gradient (Nesterov)
        self.logit_second_moment = table(logit(0.99), logit(0.99))
        self.log_weight_decay = table(math.log(weight_decay), math.log(weight_decay))
        if rotated:
            self.logit_rotated_moment = table(logit(0.95), logit(0.95))  # and of the covariances whose bases it is in
        self.horizon_power = None if horizon_power is None else table(horizon_power, horizon_power)

    def schedule(self, context: StepContext, index: int) -> Tensor:
        """Linear warm-up, then decay to 0 at the horizon, as a factor on the step size of role number ``index``.

        With a horizon power h it is multiplied by ((T + 1000) / 1500)^-h for a horizon of T steps.
        """
        step, total = context.scheduled_step, context.total_steps
        warmup = torch.sigmoid(self.logit_warmup[index]) * total
        rise = torch.clamp((step + 1) / torch.clamp(warmup, min=1.0), max=1.0)
        left = torch.clamp((total - step) / (total - warmup), 1e-6, 1.0)
        factor = rise * left ** torch.exp(self.log_decay_power[index])
        if self.horizon_power is not None:
            factor = factor * ((total + BEND) / (TYPICAL + BEND)) ** -self.horizon_power[index]
        return factor
