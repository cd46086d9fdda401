"""What ResidualRule's hand-designed part has for constants: one of each kind for every role."""

from __future__ import annotations

import math

import torch
from torch import nn

from lightning_lopt.rules.base import ROLES


class RoleConstants(nn.Module):
    """The constants of the hand-designed part, one entry per role in the order of ``ROLES``, all learnable.

    Stored in the space in which they are learned: positive constants by their logarithm, those between 0 and 1 by
    their logit.

    Args:
        step_size: initial step size for all roles, > 0, in units of a tensor's initial RMS.
        weight_decay: initial weight decay for all roles, > 0, in units of the step size, as in AdamW.
        rotated: whether any role is, which takes one constant more.
    """

    def __init__(self, step_size: float, weight_decay: float, *, rotated: bool = False) -> None:
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
