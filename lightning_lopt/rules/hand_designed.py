"""Hand-designed optimizers as rules: simple examples of the interface, and baselines with learnable constants."""

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
from lightning_lopt.rules.shared.arithmetic import TINY
from lightning_lopt.rules.shared.averages import bias_correction
from lightning_lopt.rules.shared.schedules import SCHEDULES, schedule_factor


def init_adam(param: Tensor) -> dict[str, Tensor]:
    """The state of :func:`adam_direction` for a tensor, before its first gradient."""
    return {
        "momentum": torch.zeros_like(param),
        "second_moment": torch.zeros_like(param),
        "count": param.new_zeros(()),
    }


def adam_direction(
    state: Mapping[str, Tensor], grad: Tensor, betas: tuple[float, float], eps: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Adam's bias-corrected direction, of the shape of ``grad``, and the new state."""
    beta1, beta2 = betas
    count = state["count"] + 1
    momentum = beta1 * state["momentum"] + (1 - beta1) * grad
    second_moment = beta2 * state["second_moment"] + (1 - beta2) * grad.square()
    # TINY: the root has no finite derivative at 0, where all gradients were 0; the direction is 0 there.
    denominator = (second_moment / bias_correction(beta2, count) + TINY).sqrt() + eps
    direction = momentum / bias_correction(beta1, count) / denominator
    return direction, {"momentum": momentum, "second_moment": second_moment, "count": count}


@register_rule("sgd")
class SGDRule(UpdateRule):
    r"""Stochastic gradient descent with (Nesterov) momentum; θ is the logarithm of the learning rate.

    .. math:: m \leftarrow \mu m + g + \lambda p, \qquad \Delta p = -\eta\, m

    The numbers are those of ``torch.optim.SGD(dampening=0)``.

    Args:
        lr: initial learning rate η, > 0; learnable through its logarithm.
        momentum: μ, in [0, 1).
        nesterov: step along :math:`g + \mu m` instead of :math:`m`.
        weight_decay: coupled weight decay λ, >= 0; ``context.weight_decay`` is added to it.
        schedule: schedule of the learning rate, see :func:`~lightning_lopt.rules.shared.schedules.schedule_factor`.

    Raises:
        ValueError: if a constant lies outside its range.

    Example:
        >>> from lightning_lopt import StepContext
        >>> rule = SGDRule(lr=0.1, momentum=0.9)
        >>> params, grads = {"w": torch.ones(2)}, {"w": torch.tensor([1.0, -2.0])}
        >>> context = StepContext(step=torch.tensor(0), total_steps=torch.tensor(10))
        >>> updates, state = rule(params, grads, rule.init_state(params, roles={}), context)
        >>> updates["w"].detach()  # the update to add to the parameter
        tensor([-0.1000,  0.2000])
    """

    def __init__(
        self,
        lr: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        schedule: str = "constant",
    ) -> None:
        super().__init__()
        check_positive(lr=lr)
        check_unit_interval(momentum=momentum)
        check_numbers(0.0, weight_decay=weight_decay)
        check_choice("schedule", schedule, SCHEDULES)
        self.schedule = schedule
        self.reads_horizon = schedule != "constant"
        self.log_lr = nn.Parameter(torch.tensor(math.log(lr), dtype=THETA_DTYPE))
        self.initial_lr = lr
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay

    @property
    def config(self) -> dict[str, Any]:
        return {
            "lr": self.initial_lr,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self.weight_decay,
            "schedule": self.schedule,
        }

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        return {"momentum": torch.zeros_like(param)}

    def step(self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: StepContext) -> tuple[Tensor, TensorState]:
        grad = inputs.grad + (self.weight_decay + inputs.weight_decay) * inputs.param
        momentum = self.momentum * inputs.state["momentum"] + grad
        direction = grad + self.momentum * momentum if self.nesterov else momentum
        lr = torch.exp(self.log_lr) * schedule_factor(self.schedule, at)
        return -lr * direction, {"momentum": momentum}


@register_rule("adam")
class AdamRule(UpdateRule):
    r"""Adam with decoupled weight decay; θ is the logarithm of the learning rate.

    .. math::
        m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
        \Delta p = -\eta \Big( \frac{m / (1-\beta_1^{t})}{\sqrt{v / (1-\beta_2^{t})} + \epsilon} + \lambda p \Big)

    with the number :math:`t` of gradients of the parameter. The numbers are those of ``torch.optim.AdamW``.

    Args:
        lr: initial learning rate η, > 0; learnable through its logarithm.
        betas: decay of the two averages, each in [0, 1).
        eps: ε, > 0.
        weight_decay: decoupled weight decay λ, >= 0; ``context.weight_decay`` is added to it.
        schedule: schedule of the learning rate, see :func:`~lightning_lopt.rules.shared.schedules.schedule_factor`.

    Raises:
        ValueError: if a constant lies outside its range.

    References: Kingma and Ba 2015, https://arxiv.org/abs/1412.6980; Loshchilov and Hutter 2019,
    https://arxiv.org/abs/1711.05101.

    Example:
        >>> from lightning_lopt import LearnedOptimizer
        >>> model = nn.Linear(4, 2)
        >>> optimizer = LearnedOptimizer(model, AdamRule(lr=0.01, weight_decay=0.1, schedule="cosine"), total_steps=100)
        >>> model(torch.ones(3, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[model.weight])
        ['count', 'momentum', 'second_moment']
    """

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        schedule: str = "constant",
    ) -> None:
        super().__init__()
        check_positive(lr=lr, eps=eps)
        check_betas(betas)
        check_numbers(0.0, weight_decay=weight_decay)
        check_choice("schedule", schedule, SCHEDULES)
        self.schedule = schedule
        self.reads_horizon = schedule != "constant"
        self.log_lr = nn.Parameter(torch.tensor(math.log(lr), dtype=THETA_DTYPE))
        self.initial_lr = lr
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.weight_decay = weight_decay

    @property
    def config(self) -> dict[str, Any]:
        return {
            "lr": self.initial_lr,
            "betas": list(self.betas),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "schedule": self.schedule,
        }

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        return init_adam(param)

    def step(self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: StepContext) -> tuple[Tensor, TensorState]:
        direction, state = adam_direction(inputs.state, inputs.grad, self.betas, self.eps)
        lr = torch.exp(self.log_lr) * schedule_factor(self.schedule, at)
        return -lr * (direction + (self.weight_decay + inputs.weight_decay) * inputs.param), state
