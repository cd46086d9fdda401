"""Schedule-free AdamW: averages of the iterates replace a schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lopt.checks import check_betas, check_numbers, check_positive, check_unit_interval
from lightning_lopt.rules.base import (
    THETA_DTYPE,
    Params,
    Role,
    State,
    StepContext,
    TensorInputs,
    TensorState,
    UpdateRule,
    register_rule,
)
from lightning_lopt.rules.shared.arithmetic import TINY
from lightning_lopt.rules.shared.averages import bias_correction
from lightning_lopt.rules.shared.schedules import warmup_factor


@register_rule("schedule_free_adam")
class ScheduleFreeAdamRule(UpdateRule):
    r"""AdamW without momentum on z, with gradients at y and evaluation weights x; θ is the log learning rate.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1-\beta_2) g_t^2, \qquad
        \gamma_t = \eta \sqrt{1-\beta_2^t}\, \min(1, t / T_w), \qquad
        c_{t+1} = \gamma_t^2 / \sum_{i \le t} \gamma_i^2 \\
        z_{t+1} &= z_t - \gamma_t \big( g_t / (\sqrt{v_t} + \epsilon) + \lambda y_t \big) \\
        x_{t+1} &= (1 - c_{t+1})\, x_t + c_{t+1} z_{t+1}, \qquad y_{t+1} = (1-\beta_1) z_{t+1} + \beta_1 x_{t+1}

    Gradients are computed at the parameters y. The state holds z. The evaluation weights x are
    :math:`(y - (1-\beta_1) z) / \beta_1` (:meth:`evaluation_params`). Each parameter has a separate sum over γ, so a
    step in which it has no gradient does not count for it. Outside Lightning,
    :meth:`LearnedOptimizer.eval <lightning_lopt.LearnedOptimizer.eval>` replaces y by x in the model.

    Args:
        lr: learning rate η after the warm-up, > 0; learnable through its logarithm.
        betas: weight of x in y, in (0, 1), and decay of the second moment, in [0, 1).
        eps: ε, > 0.
        weight_decay: λ, >= 0, at y; ``context.weight_decay`` is added to it.
        warmup: share of the horizon, in [0, 1), over which η grows linearly: T_w = ``warmup`` times ``total_steps``.

    Raises:
        ValueError: if a constant lies outside its range.

    References: Defazio et al. 2024, Algorithm 1, https://arxiv.org/abs/2405.15682

    Example:
        >>> from lightning_lopt import LearnedOptimizer
        >>> model = nn.Linear(4, 2)
        >>> optimizer = LearnedOptimizer(model, ScheduleFreeAdamRule(), total_steps=10)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(3, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> trained = model.weight.detach().clone()
        >>> optimizer.eval()  # the model now holds x, for evaluation; optimizer.train() restores y
        >>> torch.equal(model.weight, trained)
        False
    """

    exact_state = frozenset({"z"})

    def __init__(
        self,
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup: float = 0.05,
    ) -> None:
        super().__init__()
        check_positive(lr=lr, eps=eps)
        check_betas(betas)
        check_numbers(0.0, weight_decay=weight_decay)
        check_unit_interval(warmup=warmup)
        self.log_lr = nn.Parameter(torch.tensor(math.log(lr), dtype=THETA_DTYPE))
        self.initial_lr = lr
        self.betas = (betas[0], betas[1])
        if betas[0] == 0:
            raise ValueError("betas[0] must lie in (0, 1), got 0: the average x could not be computed from y.")
        self.eps = eps
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.reads_horizon = warmup > 0

    @property
    def config(self) -> dict[str, Any]:
        return {
            "lr": self.initial_lr,
            "betas": list(self.betas),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "warmup": self.warmup,
        }

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        return {
            "z": param.clone(),
            "second_moment": torch.zeros_like(param),
            "count": param.new_zeros(()),
            "weight_sum": param.new_zeros(()),
        }

    def step(self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: StepContext) -> tuple[Tensor, TensorState]:
        beta1, beta2 = self.betas
        rate = torch.exp(self.log_lr)
        if self.warmup:
            rate = rate * warmup_factor(at.step, self.warmup * at.total_steps)
        y, grad, state = inputs.param, inputs.grad, inputs.state
        count = state["count"] + 1
        second_moment = beta2 * state["second_moment"] + (1 - beta2) * grad.square()
        gamma = (rate * torch.as_tensor(bias_correction(beta2, count)) ** 0.5).to(grad.dtype)
        weight_sum = state["weight_sum"] + gamma.square()
        share = gamma.square() / weight_sum
        decay = self.weight_decay + inputs.weight_decay
        z_step = gamma * (grad / ((second_moment + TINY).sqrt() + self.eps) + decay * y)
        new_state = {
            "z": (state["z"] - z_step).to(grad.dtype),
            "second_moment": second_moment,
            "count": count,
            "weight_sum": weight_sum,
        }
        # This difference of y is computed without x, so it is exactly 0 where z does not change.
        return share * (state["z"] - y) - (1 - beta1 * (1 - share)) * z_step, new_state

    def evaluation_params(self, params: Params, state: State) -> Params:
        beta = self.betas[0]
        return {name: y + (1 / beta - 1) * (y - state.tensors[name]["z"]) for name, y in params.items()}
