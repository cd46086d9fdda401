"""What a training step costs: the gradient, and the step of each optimizer in the form in which it is deployed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_lopt.evaluation.deployed import Step, baseline_steps, learned
from lightning_lopt.evaluation.problem import Problem
from lightning_lopt.evaluation.timing import STEADY, mean_of_run, time_in_turns
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.seeding import generator

REPEATS = 24


def step_costs(
    problem: Problem,
    rules: Mapping[str, UpdateRule],
    against: Sequence[str],
    *,
    repeats: int = REPEATS,
    device: torch.device | str = "cpu",
) -> tuple[float, dict[str, float]]:
    """Seconds that forward and backward of one mini-batch take, and those of one step of each optimizer.

    Rules step as :class:`~lightning_lopt.LearnedOptimizer`, baselines as ``torch.optim`` has them, with
    ``foreach=True``, or as their own packages do; a baseline that is in neither is left out. All take turns in a run of
    consecutive steps from the first on, with the gradient of one mini-batch; see
    :func:`~lightning_lopt.evaluation.timing.time_in_turns` for the clock. Means over the steps of the problem's
    horizon, by :func:`~lightning_lopt.evaluation.timing.mean_of_run`.

    Args:
        problem: whose parameters and batches are used.
        rules: by name.
        against: names of baselines.
        repeats: timed steps after the first 40, >= 1; a whole period of each optimizer at least.
        device: where everything is.
    """
    task = problem.task
    device = torch.device(device)
    params = {name: value.to(device) for name, value in task.init(generator(0, "cost")).items()}
    batch = {name: value.to(device) for name, value in task.batch(generator(0, "cost")).items()}
    leaves = [(name, params[name].detach().clone().requires_grad_(), role) for name, role in task.roles.items()]
    values = {name: leaf for name, leaf, _ in leaves}

    def put_back() -> None:
        with torch.no_grad():
            for name, leaf in values.items():
                leaf.copy_(params[name])

    def gradient() -> None:
        for leaf in values.values():
            leaf.grad = None
        task.loss({**params, **values}, batch).backward()  # type: ignore[no-untyped-call]

    def loss() -> Tensor:
        return start

    start = task.loss(params, batch).detach()
    baselines, periods = baseline_steps(against, leaves, problem.horizon)
    periods |= {name: rule.period for name, rule in rules.items()}
    turns = STEADY + max(repeats, *periods.values(), 1)
    planned = max(problem.horizon, turns)
    steps: dict[str, Step] = {name: learned(leaves, rule, loss, planned) for name, rule in rules.items()}
    steps |= baselines
    of_gradient, of_steps = time_in_turns(gradient, steps, turns, device, prepare=put_back, put_back=put_back)
    costs = {name: mean_of_run(of_steps[name], problem.horizon, periods.get(name, 1)) for name in steps}
    return statistics.median(of_gradient), costs
