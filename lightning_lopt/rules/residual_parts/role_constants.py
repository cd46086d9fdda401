"""The constants of the hand-designed part of ResidualRule: every role has a constant of each kind."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_lopt.rules.base import ROLES, THETA_DTYPE, Role, StepContext

TYPICAL, BEND = 500.0, 1000.0  # steps: typical horizon of meta-training; horizon at which its influence begins


class Constants(NamedTuple):
    """The constants of the tensors of one role at one step, 0-dim each.

    Attributes:
        step_size: in units of the tensor's scale, schedule included.
        rms_floor: least scale of a tensor.
        weight_decay: in units of the step size.
        momentum_mix: weight of the momentum against the bare gradient.
        momentum_rate: weight of a new gradient in the momentum.
        momentum_weight: sum of the weights of all gradients in the momentum, as if the rate had not changed.
        momentum_share: s such that ``mix_factor`` ((1 - s) g + s m) is the mix of the gradient g and the
            bias-corrected momentum, where m is the momentum before the correction.
        mix_factor: see ``momentum_share``.
        moment_rate: weight of a new square in the second moment.
        moment_root: square root of the sum of the weights in the second moment, for the bias correction.
        rotated_rate: ``moment_rate`` of the second moment in the eigenbases, and of the covariances.
        rotated_root: ``moment_root`` of the second moment in the eigenbases.
        caution: share that is subtracted from entries of a direction whose sign differs from the gradient's.
        coherence_power: power of the coherence of a direction in the length of its step.
    """

    step_size: Tensor
    rms_floor: Tensor
    weight_decay: Tensor
    momentum_mix: Tensor
    momentum_rate: Tensor
    momentum_weight: Tensor
    momentum_share: Tensor
    mix_factor: Tensor
    moment_rate: Tensor
    moment_root: Tensor
    rotated_rate: Tensor
    rotated_root: Tensor
    caution: Tensor
    coherence_power: Tensor

    def with_momentum(self, mix: Tensor, weight: Tensor) -> Constants:
        """A copy of these constants with a different mix of momentum and gradient."""
        share, factor = momentum_share(mix, weight)
        return self._replace(momentum_mix=mix, momentum_weight=weight, momentum_share=share, mix_factor=factor)


def momentum_share(mix: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """``momentum_share`` and ``mix_factor`` of :class:`Constants`, from ``momentum_mix`` and ``momentum_weight``.

    >>> momentum_share(torch.tensor(0.5), torch.tensor(0.25))  # (g + 4 m) / 2 = 2.5 (0.2 g + 0.8 m)
    (tensor(0.8000), tensor(2.5000))
    """
    unbiased = mix / weight
    factor = 1 - mix + unbiased
    return unbiased / factor, factor


class RoleConstants(nn.Module):
    """The constants of the hand-designed part, one entry per role in the order of ``ROLES``, all learnable.

    Constants are stored in the space in which they are learned: positive constants as logarithms, constants between
    0 and 1 as logits.

    Args:
        step_size: initial step size for all roles, > 0, in units of a tensor's initial RMS.
        weight_decay: initial weight decay for all roles, > 0, in units of the step size, as in AdamW.
        rotated: whether any role has a second moment in eigenbases, which adds one kind of constant.
        horizon_power: initial power for all roles with which step sizes fall with the horizon; the weight decay
            has a separate power. ``None`` for no dependence on the horizon.
    """

    def __init__(
        self, step_size: float, weight_decay: float, *, rotated: bool = False, horizon_power: float | None = None
    ) -> None:
        super().__init__()

        def table(matrix: float, other_roles: float) -> nn.Parameter:
            return nn.Parameter(
                torch.tensor([matrix if role == "matrix" else other_roles for role in ROLES], dtype=THETA_DTYPE)
            )

        def logit(value: float) -> float:
            return math.log(value / (1 - value))

        self.log_step_size = table(math.log(step_size), math.log(step_size))
        self.log_rms_floor = table(math.log(0.03), math.log(0.03))
        self.logit_warmup = table(logit(0.05), logit(0.05))  # as a fraction of the horizon
        self.log_decay_power = table(0.0, 0.0)  # 1 is linear
        self.logit_momentum = table(logit(0.95), logit(0.9))
        self.momentum_growth = table(0.0, 0.0)
        self.momentum_mix = table(0.95, 1.0)  # weight of the momentum against the bare gradient (Nesterov)
        self.caution = table(0.0, 0.0)
        self.coherence_power = table(0.0, 0.0)
        self.logit_second_moment = table(logit(0.99), logit(0.99))
        self.log_weight_decay = table(math.log(weight_decay), math.log(weight_decay))
        if rotated:
            self.logit_rotated_moment = table(logit(0.95), logit(0.95))  # also of the covariances of the eigenbases
        self.rotated = rotated
        self.moment_growth = table(0.0, 0.0)
        self.horizon_power = None if horizon_power is None else table(horizon_power, horizon_power)
        self.decay_horizon_power = None if horizon_power is None else table(1.0, 1.0)

    def at(self, context: StepContext) -> dict[Role, Constants]:
        """The constants of each role at a step, computed for all roles at once."""
        logit_rotated = self.logit_rotated_moment if self.rotated else self.logit_second_moment
        logits = torch.stack([self.logit_momentum, self.logit_second_moment, logit_rotated])
        logits = _grown(logits, torch.stack([self.momentum_growth, self.moment_growth, self.moment_growth]), context)
        momentum_rate, moment_rate, rotated_rate = torch.sigmoid(-logits).unbind()
        weights = _weight(logits, context)
        momentum_weight, roots = weights[0], weights[1:].sqrt()
        share, factor = momentum_share(self.momentum_mix, momentum_weight)
        constants = Constants(
            step_size=torch.exp(self.log_step_size) * self.schedule(context),
            rms_floor=torch.exp(self.log_rms_floor),
            weight_decay=_scaled_by_horizon(torch.exp(self.log_weight_decay), self.decay_horizon_power, context),
            momentum_mix=self.momentum_mix,
            momentum_rate=momentum_rate,
            momentum_weight=momentum_weight,
            momentum_share=share,
            mix_factor=factor,
            moment_rate=moment_rate,
            moment_root=roots[0],
            rotated_rate=rotated_rate,
            rotated_root=roots[1],
            caution=self.caution,
            coherence_power=self.coherence_power,
        )
        rows = zip(*(constant.unbind() for constant in constants), strict=True)
        return {role: Constants(*row) for role, row in zip(ROLES, rows, strict=True)}

    def schedule(self, context: StepContext) -> Tensor:
        """Linear warm-up, then decay to 0 at the horizon, as factors on the step sizes of the roles, shape (4,).

        With a horizon power h the factors are multiplied by ((T + 1000) / 1500)^-h for a horizon of T steps.
        """
        step, total = context.scheduled_step, context.total_steps
        warmup = torch.sigmoid(self.logit_warmup) * total
        rise = torch.clamp((step + 1) / torch.clamp(warmup, min=1.0), max=1.0)
        remaining_share = torch.clamp((total - step) / (total - warmup), 1e-6, 1.0)
        decay = remaining_share ** torch.exp(self.log_decay_power)
        return _scaled_by_horizon(rise * decay, self.horizon_power, context)


def _grown(logit_beta: Tensor, growth: Tensor, context: StepContext) -> Tensor:
    r"""Logit of the decay :math:`\beta` of an average at a step.

    The average covers :math:`\tau = \beta / (1 - \beta)` steps at the start and :math:`\tau (1 + t / \tau)^g` at step
    t, with the growth g: gradients change quickly at first, and averages over more steps are better later.
    """
    return logit_beta + growth * torch.log1p(context.step * torch.exp(-logit_beta))


def _scaled_by_horizon(value: Tensor, power: Tensor | None, context: StepContext) -> Tensor:
    """``value`` times ((T + 1000) / 1500)^-power for a horizon of T steps, or ``value`` without a power."""
    return value if power is None else value * ((context.total_steps + BEND) / (TYPICAL + BEND)) ** -power


def _weight(logit_beta: Tensor, context: StepContext) -> Tensor:
    """1 - beta^(step + 1)."""
    return -torch.expm1((context.step + 1) * F.logsigmoid(logit_beta))
