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
QUICK = 0.1  # least seconds of measuring, since a single step may be slow by chance


@dataclass(frozen=True)
class ModuleStepCost:
    """Seconds of the fastest of several training steps outside a Trainer, and bytes of state per trained parameter.

    The fastest step is used, because other work on the machine only makes steps slower.

    Attributes:
        gradient: forward and backward pass.
        learned: ``LearnedOptimizer.step``.
        adamw: ``torch.optim.AdamW(foreach=True).step``.
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
        """Time of a whole training step with the learned optimizer, divided by that with AdamW.

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
    """Time training steps of a module, in which the two optimizers take turns.

    The steps are timed by :func:`~lightning_lopt.evaluation.step_cost.time_in_turns`, as those of
    :func:`~lightning_lopt.evaluation.step_cost.step_costs`, whose results are means over the horizon of a problem. Here
    each step has another batch, the clock counts waiting, the time is limited, and the fastest step counts.

    For a rule with a ``period`` (:attr:`UpdateRule.period`), the result is the mean over a period.

    Args:
        step: training step of a copy of the module, whose parameters change.
        batches: at least one.
        rule: the rule; it is not changed.
        total_steps: steps of the planned run.
        seconds: function from seconds of one training step to the seconds for this measurement; each optimizer makes at
            least a period and one step, of which the first does not count.
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

    def is_enough(of_gradient: list[float], of_steps: dict[str, list[float]]) -> bool:
        turns = len(of_gradient)
        spent = sum(of_gradient) + sum(map(sum, of_steps.values()))
        training_step = (sum(of_gradient) + sum(map(sum, of_steps.values())) / len(of_steps)) / turns
        return turns > period and spent > QUICK and spent * (1 + 1 / turns) > seconds(training_step)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of skipped steps; pilots show their effect
        learned = LearnedOptimizer(step.module, copy.deepcopy(rule), total_steps=max(total_steps, ROUNDS + 1))
        adamw = torch.optim.AdamW(params, foreach=True)
        of_gradient, of_steps = time_in_turns(
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
        min(of_gradient[1:]),  # the first step allocates memory, so it does not count
        _mean_of_period(of_steps["learned"][1:], period),
        min(of_steps["adamw"][1:]),
        _state_bytes(learned) / count,
        _state_bytes(adamw) / count,
        count,
    )


def _mean_of_period(times: list[float], period: int) -> float:
    """The mean over the positions in the period of the fastest step at each position.

    >>> _mean_of_period([1.0, 1.0, 1.0, 9.0, 2.0, 1.0, 1.0, 5.0], 4)
    2.0
    """
    return sum(min(times[place::period]) for place in range(period)) / period


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = [v for tensor_state in optimizer.state.values() for v in tensor_state.values() if isinstance(v, Tensor)]
    shared = [group.get("shared", {}) for group in optimizer.param_groups]
    tensors += [value for tensor_state in shared for value in tensor_state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
