"""Cost of a step of the learned optimizer and of AdamW on the user's module: seconds and bytes."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    steps: Sequence[TrainingStep],
    batches: list[Tree],
    rule: UpdateRule,
    total_steps: int,
    seconds: Callable[[float], float],
) -> ModuleStepCost:
    """Train two copies of a module for a few steps and time them.

    This differs from :func:`~lightning_lopt.evaluation.step_cost.step_costs`, which times a chosen number of steps on
    one mini-batch of a problem and gives means over a horizon. Here the module is the user's, each step has another
    batch, the time is limited, and the fastest step counts.

    For a rule with a ``period`` (:attr:`UpdateRule.period`), the result is the mean over a period.

    Args:
        steps: training steps of two copies of the module, which are trained.
        batches: at least one.
        rule: the rule; it is not changed.
        total_steps: steps of the planned run.
        seconds: function from seconds of one training step to the seconds for this measurement; each optimizer makes at
            least a period and one step, of which the first does not count.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of skipped steps; pilots show their effect
        return _timed(steps[0], steps[1], batches, rule, total_steps, seconds)


def _timed(
    learned: TrainingStep,
    adamw: TrainingStep,
    batches: list[Tree],
    rule: UpdateRule,
    total_steps: int,
    seconds: Callable[[float], float],
) -> ModuleStepCost:
    device = next(learned.module.parameters()).device
    learned_optimizer = LearnedOptimizer(learned.module, copy.deepcopy(rule), total_steps=max(total_steps, ROUNDS + 1))
    adamw_optimizer = torch.optim.AdamW([p for p in adamw.module.parameters() if p.requires_grad], foreach=True)
    rows: dict[str, tuple[TrainingStep, torch.optim.Optimizer]] = {
        "learned": (learned, learned_optimizer),
        "adamw": (adamw, adamw_optimizer),
    }
    times: dict[str, list[float]] = {"gradient": [], "learned": [], "adamw": []}
    period = min(rule.period, ROUNDS)
    began = time.perf_counter()
    for steps_made in range(ROUNDS + 1):
        for name, (step, optimizer) in rows.items():
            optimizer.zero_grad()
            start = _synchronised_time(device)
            loss = step.loss_in(step(batches[steps_made % len(batches)]))
            loss.backward()  # type: ignore[no-untyped-call]
            middle = _synchronised_time(device)
            if name == "learned":
                learned_optimizer.step(loss=loss.detach())
            else:
                adamw_optimizer.step()
            if steps_made:  # the first step allocates memory, so it does not count
                times["gradient"].append(middle - start)
                times[name].append(_synchronised_time(device) - middle)
        spent = time.perf_counter() - began
        if (
            steps_made >= period
            and spent > QUICK
            and spent * (1 + 1 / (steps_made + 1)) > seconds(spent / (2 * steps_made + 2))
        ):
            break
    count = sum(p.numel() for p in learned.module.parameters() if p.requires_grad)
    return ModuleStepCost(
        min(times["gradient"]),
        _mean_of_period(times["learned"], period),
        min(times["adamw"]),
        _state_bytes(learned_optimizer) / count,
        _state_bytes(adamw_optimizer) / count,
        count,
    )


def _mean_of_period(times: list[float], period: int) -> float:
    """The mean over the positions in the period of the fastest step at each position.

    >>> _mean_of_period([1.0, 1.0, 1.0, 9.0, 2.0, 1.0, 1.0, 5.0], 4)
    2.0
    """
    return sum(min(times[place::period]) for place in range(period)) / period


def _synchronised_time(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = [v for tensor_state in optimizer.state.values() for v in tensor_state.values() if isinstance(v, Tensor)]
    shared = [group.get("shared", {}) for group in optimizer.param_groups]
    tensors += [value for tensor_state in shared for value in tensor_state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
