"""Cost of a step of the learned optimizer and of AdamW on the user's module: seconds and bytes."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.evaluation.step_cost import synchronised_clock, time_in_turns
from lightning_lopt.optim import LearnedOptimizer
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.lightning_module import TrainingStep

Tree = Any
ROUNDS = 20
LEAST_SECONDS = 0.1  # least time for measuring, because a single step may be slow by chance


@dataclass(frozen=True)
class ModuleStepCost:
    """Seconds of the fastest of several training steps outside a Trainer, and bytes of state per trained parameter.

    The fastest step is used, because other work on the machine only makes steps slower.

    Attributes:
        gradient: seconds of the forward and backward pass.
        learned: seconds of ``LearnedOptimizer.step``.
        adamw: seconds of ``torch.optim.AdamW(foreach=True).step``.
        learned_bytes: state of ``LearnedOptimizer``, bytes per parameter.
        adamw_bytes: state of AdamW, bytes per parameter.
        parameters: number of trained parameters.
    """

    gradient: float
    learned: float
    adamw: float
    learned_bytes: float
    adamw_bytes: float
    parameters: int

    def slowdown(self, data: float) -> float:
        """Time of a whole training step with the learned optimizer, divided by the time with AdamW.

        Args:
            data: seconds to get a batch.
        """
        return (data + self.gradient + self.learned) / (data + self.gradient + self.adamw)


def module_step_cost(
    step: TrainingStep,
    batches: list[Tree],
    rule: UpdateRule,
    total_steps: int,
    seconds: Callable[[float], float],
) -> ModuleStepCost:
    """Time training steps of a module; the two optimizers take turns.

    :func:`~lightning_lopt.evaluation.step_cost.time_in_turns` times the steps, as in
    :func:`~lightning_lopt.evaluation.step_cost.step_costs`, whose results are means over the horizon of a problem. In
    this function each step has another batch, the clock counts waiting, the time is limited, and the result is the time
    of the fastest step.

    For a rule with a ``period`` (:attr:`UpdateRule.period`), the result is the mean over a period.

    Args:
        step: training step of a copy of the module, whose parameters change.
        batches: at least one batch.
        rule: the rule; it is not changed.
        total_steps: steps of the planned run.
        seconds: function from the seconds of one training step to the seconds for this measurement. Each optimizer
            makes at least one period of steps after the first step, which does not count.
    """
    params = [param for param in step.module.parameters() if param.requires_grad]
    start = [param.detach().clone() for param in params]
    following_batches = itertools.cycle(batches)
    period = min(rule.period, ROUNDS)
    loss: Tensor

    @torch.no_grad()
    def put_back() -> None:
        torch._foreach_copy_(params, start)

    def prepare() -> None:
        put_back()
        adamw.zero_grad()

    def gradient() -> None:
        nonlocal loss
        loss = step.loss_in(step(next(following_batches)))
        loss.backward()  # type: ignore[no-untyped-call]

    def is_enough(gradient_seconds: list[float], step_seconds: dict[str, list[float]]) -> bool:
        turns = len(gradient_seconds)
        elapsed = sum(gradient_seconds) + sum(map(sum, step_seconds.values()))
        training_step = (sum(gradient_seconds) + sum(map(sum, step_seconds.values())) / len(step_seconds)) / turns
        return turns > period and elapsed > LEAST_SECONDS and elapsed * (1 + 1 / turns) > seconds(training_step)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about skipped steps are not needed: pilots show their effect
        learned = LearnedOptimizer(step.module, copy.deepcopy(rule), total_steps=max(total_steps, ROUNDS + 1))
        adamw = torch.optim.AdamW(params, foreach=True)
        gradient_seconds, step_seconds = time_in_turns(
            gradient,
            {"learned": lambda: learned.step(loss=loss.detach()), "adamw": adamw.step},
            ROUNDS + 1,
            synchronised_clock(params[0].device, counts_waiting=True),
            prepare=prepare,
            put_back=put_back,
            is_enough=is_enough,
        )
    count = sum(param.numel() for param in params)
    return ModuleStepCost(
        min(gradient_seconds[1:]),  # the first step allocates memory, so it does not count
        _mean_of_period(step_seconds["learned"][1:], period),
        min(step_seconds["adamw"][1:]),
        _state_bytes(learned) / count,
        _state_bytes(adamw) / count,
        count,
    )


def _mean_of_period(times: list[float], period: int) -> float:
    """The mean over all positions in the period of the time of the fastest step at the position.

    >>> _mean_of_period([1.0, 1.0, 1.0, 9.0, 2.0, 1.0, 1.0, 5.0], 4)
    2.0
    """
    return sum(min(times[place::period]) for place in range(period)) / period


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = [v for tensor_state in optimizer.state.values() for v in tensor_state.values() if isinstance(v, Tensor)]
    shared = [group.get("shared", {}) for group in optimizer.param_groups]
    tensors += [value for tensor_state in shared for value in tensor_state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
