"""The AdamW that a guard switches to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.rules.base import Role, State, StepContext, TensorInputs, TensorState, UpdateRule
from lightning_lopt.rules.hand_designed import adam_direction, init_adam

SWITCHED = "guard_switched"  # key in the diagnostics of a step: 1 while AdamW trains, else 0
WARM_UP = 10  # steps
FALL = 0.2  # last share of the horizon, over which the rate falls to 0
LONGEST_CATCH_UP = 1.25
BETAS, EPS = (0.9, 0.999), 1e-8  # defaults of torch.optim.AdamW


class SafeAdamW(UpdateRule):
    r"""AdamW with torch's constants, a warm-up of ten steps and, if the horizon is known, a linear fall to 0.

    .. math::
        \Delta p = -\eta \min(k / 10, 1)\, \min\big((1 - t/T) / 0.2, 1\big)\, (\mathrm{Adam}(g) + \lambda p)

    with the number k of gradients of the parameter since the switch, t the step and T the horizon.

    Args:
        rate: :math:`\eta`.
        falls: whether the horizon is known.

    State bytes per parameter (float32): 8.
    """

    def __init__(self, rate: float, falls: bool) -> None:
        super().__init__()
        self.rate, self.falls = rate, falls
        self.reads_horizon = falls

    @property
    def config(self) -> dict[str, Any]:
        return {"rate": self.rate, "falls": self.falls}

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        return init_adam(param)

    def step(self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: StepContext) -> tuple[Tensor, TensorState]:
        remaining_share = 1 - at.scheduled_step / at.total_steps
        rate = (
            self.rate * (remaining_share / FALL).clamp(max=1.0)
            if self.falls
            else torch.full_like(remaining_share, self.rate)
        )
        direction, state = adam_direction(inputs.state, inputs.grad, BETAS, EPS)
        warm_up = (state["count"] / WARM_UP).clamp(max=1.0)
        return -(rate * warm_up).to(direction.dtype) * (direction + inputs.weight_decay * inputs.param), state

    def diagnostics(self, state: State) -> dict[str, Tensor]:
        return {SWITCHED: torch.ones(())}


def caught_up_rate(lr: float, step: int, back_to: int, total: int | None) -> float:
    r"""The rate :math:`\eta` whose sum over the remaining steps is that of a constant rate ``lr`` from ``back_to`` on.

    The rates of the remaining steps add up to :math:`\eta\, (0.9\, T - t)`; the rates of a constant ``lr`` from step
    :math:`t_0` on add up to ``lr`` :math:`(T - t_0)`. The result is at least ``lr``, and at most 1.25 ``lr``.

    Args:
        lr: learning rate of AdamW.
        step: number t of the step of the switch.
        back_to: number :math:`t_0` of the step to which the parameters were restored.
        total: the horizon T, if known.

    >>> round(caught_up_rate(1e-3, 20, 0, 1000), 6)
    0.001136
    """
    if total is None or total <= back_to:
        return lr
    remaining_rates = max((1 - FALL / 2) * total - step, 1e-9)
    return lr * min(max((total - back_to) / remaining_rates, 1.0), LONGEST_CATCH_UP)
