"""Muon for hidden matrices, together with AdamW for all other tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lopt.checks import check_betas, check_choice, check_numbers, check_positive, check_unit_interval
from lightning_lopt.rules.base import (
    THETA_DTYPE,
    Role,
    StepContext,
    TensorInputs,
    TensorState,
    UpdateRule,
    register_rule,
)
from lightning_lopt.rules.hand_designed import adam_direction, init_adam
from lightning_lopt.rules.shared.arithmetic import matrix_shape, orthogonalise
from lightning_lopt.rules.shared.schedules import SCHEDULES, schedule_factor

ADJUSTMENTS = ("match_rms_adamw", "original")


@register_rule("muon")
class MuonRule(UpdateRule):
    r"""Orthogonalised Nesterov momentum; θ is the logarithm of the learning rate.

    .. math::
        m \leftarrow \mu m + (1-\mu) g, \qquad
        \Delta W = -\eta \big( s\, \text{orth}((1-\mu) g + \mu m) + \lambda W \big)

    is the step of tensors of role ``"matrix"`` and rank >= 2, as matrices (out, everything else), with orth as in
    :func:`~lightning_lopt.rules.shared.arithmetic.orthogonalise`. The factor s is 0.2 √max(rows, columns), which gives
    the step the RMS of an AdamW step, so that one learning rate suits both, or √max(1, rows / columns). Every other
    tensor is stepped as by :class:`~lightning_lopt.AdamRule`. The numbers are those of ``torch.optim.Muon`` (except for
    its bfloat16 products) and ``torch.optim.AdamW``.

    Args:
        lr: initial learning rate η of Muon and AdamW, > 0; learnable through its logarithm.
        momentum: μ, in [0, 1).
        weight_decay: decoupled weight decay λ of Muon and AdamW, >= 0; ``context.weight_decay`` is added to it.
        adjustment: choice of s, ``"match_rms_adamw"`` or ``"original"``, with the names of ``torch.optim.Muon``.
        betas, eps: constants of AdamW.
        schedule: schedule of the learning rate, see :func:`~lightning_lopt.rules.shared.schedules.schedule_factor`.

    Raises:
        ValueError: if a constant lies outside its range.

    References: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025,
    https://arxiv.org/abs/2502.16982 (the RMS of the step).

    Example:
        >>> from lightning_lopt import LearnedOptimizer
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = LearnedOptimizer(model, MuonRule(lr=0.01, schedule="cosine"), total_steps=100)
        >>> model(torch.ones(3, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[model[0].weight]), sorted(optimizer.state[model[2].weight])  # a matrix, and the head
        (['momentum'], ['count', 'momentum', 'second_moment'])
    """

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        adjustment: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        schedule: str = "constant",
    ) -> None:
        super().__init__()
        check_positive(lr=lr, eps=eps)
        check_unit_interval(momentum=momentum)
        check_betas(betas)
        check_numbers(0.0, weight_decay=weight_decay)
        check_choice("adjustment", adjustment, ADJUSTMENTS)
        check_choice("schedule", schedule, SCHEDULES)
        self.schedule = schedule
        self.reads_horizon = schedule != "constant"
        self.log_lr = nn.Parameter(torch.tensor(math.log(lr), dtype=THETA_DTYPE))
        self.initial_lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.adjustment = adjustment
        self.betas = (betas[0], betas[1])
        self.eps = eps

    @property
    def config(self) -> dict[str, Any]:
        return {
            "lr": self.initial_lr,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "adjustment": self.adjustment,
            "betas": list(self.betas),
            "eps": self.eps,
            "schedule": self.schedule,
        }

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        return {"momentum": torch.zeros_like(param)} if _is_hidden(param, role) else init_adam(param)

    def step(self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: StepContext) -> tuple[Tensor, TensorState]:
        grad = inputs.grad
        if _is_hidden(grad, inputs.role):
            momentum = torch.lerp(grad, inputs.state["momentum"], self.momentum)
            direction = self._scale(grad) * orthogonalise(torch.lerp(grad, momentum, self.momentum))
            state = {"momentum": momentum}
        else:
            direction, state = adam_direction(inputs.state, grad, self.betas, self.eps)
        lr = torch.exp(self.log_lr) * schedule_factor(self.schedule, at)
        return -lr * (direction + (self.weight_decay + inputs.weight_decay) * inputs.param), state

    def _scale(self, grad: Tensor) -> float:
        rows, columns = matrix_shape(grad.shape)
        if self.adjustment == "original":
            return math.sqrt(max(1.0, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))


def _is_hidden(param: Tensor, role: Role) -> bool:
    return param.ndim >= 2 and role == "matrix"
