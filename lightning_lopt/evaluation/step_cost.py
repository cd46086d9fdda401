"""The cost of a training step: seconds of the gradient and of each optimizer's step in its deployed form.

Optimizers take turns in consecutive training steps, so that other work on the machine affects all of them equally.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.__about__ import __version__
from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.evaluation.sweeps import sweep_of
from lightning_lopt.optim import LearnedOptimizer
from lightning_lopt.rules.base import Role, UpdateRule
from lightning_lopt.seeding import generator

BEGINNING = 4
"""Number of first steps of a run; they may cost more than later steps, because rules create their state."""
TRACING = 36
"""Number of the following steps, in which :class:`~lightning_lopt.LearnedOptimizer` traces small stacks once."""
STEADY = BEGINNING + TRACING
REPEATS = 24

ParamLeaves = Sequence[tuple[str, Tensor, Role]]
"""Trained tensors with their names and roles."""
Step = Callable[[], object]
"""A function that makes one step with the present gradients of the tensors."""


def learned(
    leaves: ParamLeaves, rule: UpdateRule, loss: Callable[[], Tensor], total_steps: int, **options: Any
) -> Step:
    """A step of :class:`~lightning_lopt.LearnedOptimizer`.

    Args:
        leaves: the trained tensors.
        rule: the rule; the cost does not depend on its weights.
        loss: function that returns the loss of the next step, 0-dim.
        total_steps: planned steps.
        options: further arguments of ``LearnedOptimizer``.
    """
    groups = [
        {"params": [(name, leaf) for name, leaf, leaf_role in leaves if leaf_role == role], "role": role}
        for role in dict.fromkeys(role for _, _, role in leaves)
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has random weights")
        optimizer = LearnedOptimizer(groups, rule, total_steps=total_steps, **options)
    return lambda: optimizer.step(loss=loss())


class MuonWithAdamW:
    """``torch.optim.Muon`` for hidden matrices (convolutions as (out, in x kernel)), AdamW for all other tensors."""

    def __init__(self, leaves: ParamLeaves) -> None:
        hidden = [leaf for _, leaf, role in leaves if role == "matrix" and leaf.dim() >= 2]
        remaining = [leaf for _, leaf, role in leaves if not (role == "matrix" and leaf.dim() >= 2)]
        self.matrices = [(leaf, leaf.detach().flatten(1).requires_grad_()) for leaf in hidden]
        self.optimizers: list[torch.optim.Optimizer] = []
        if hidden:
            self.optimizers.append(torch.optim.Muon([matrix for _, matrix in self.matrices]))
        if remaining:
            self.optimizers.append(torch.optim.AdamW(remaining, foreach=True))

    def __call__(self) -> None:
        for leaf, matrix in self.matrices:  # a matrix is a view of its parameter
            matrix.grad = None if leaf.grad is None else leaf.grad.flatten(1)
        for optimizer in self.optimizers:
            optimizer.step()


def params_of(leaves: ParamLeaves) -> list[Tensor]:
    """The tensors without their names and roles."""
    return [leaf for _, leaf, _ in leaves]


def _adamw(leaves: ParamLeaves) -> Step:
    return torch.optim.AdamW(params_of(leaves), foreach=True).step


IN_TORCH: dict[str, Callable[[ParamLeaves], Step]] = {
    "adamw": _adamw,
    "adamw_1e-3": _adamw,
    "adamw_warmup": _adamw,
    "adamw_default": _adamw,
    "adam_default": lambda leaves: torch.optim.Adam(params_of(leaves), foreach=True).step,
    "sgd": lambda leaves: torch.optim.SGD(params_of(leaves), momentum=0.9, nesterov=True, lr=1e-3, foreach=True).step,
}
"""Baselines of :mod:`~lightning_lopt.evaluation.sweeps` as optimizers of ``torch.optim``."""
if hasattr(torch.optim, "Muon"):  # torch has Muon since 2.9
    IN_TORCH["muon"] = MuonWithAdamW


def baseline_steps(
    names: Sequence[str], leaves: ParamLeaves, total_steps: int
) -> tuple[dict[str, Step], dict[str, int]]:
    """Steps, and their periods, of the baselines that this installation can run in their deployed form.

    Args:
        names: names of baselines.
        leaves: the trained tensors.
        total_steps: planned steps.
    """
    steps = {name: IN_TORCH[name](leaves) for name in names if name in IN_TORCH}
    periods = {}
    for name in names:
        packaged = sweep_of(name).packaged
        if packaged is not None and packaged.installed_version is not None:
            steps[name] = packaged.build(params_of(leaves), total_steps).step
            periods[name] = packaged.period
    return steps, periods


def step_costs(
    problem: Problem,
    rules: Mapping[str, UpdateRule],
    against: Sequence[str],
    *,
    repeats: int = REPEATS,
    device: torch.device | str = "cpu",
) -> tuple[float, dict[str, float]]:
    """Seconds of forward and backward of one mini-batch, and seconds of one step of each optimizer.

    Rules step as :class:`~lightning_lopt.LearnedOptimizer`. Baselines step as optimizers of ``torch.optim``, with
    ``foreach=True``, or of their packages; other baselines are left out. The optimizers take turns in a run of
    consecutive steps from the first step on, with the gradient of one mini-batch; see :func:`time_in_turns` and
    :func:`synchronised_clock`. The results are means over the steps of the problem's horizon, by :func:`mean_of_run`.

    Args:
        problem: the problem with the parameters and batches.
        rules: rules by name.
        against: names of baselines.
        repeats: timed steps after the first 40, >= 1; at least one whole period of each optimizer is timed.
        device: device of parameters and batches.
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
    planned_steps = max(problem.horizon, turns)
    steps: dict[str, Step] = {name: learned(leaves, rule, loss, planned_steps) for name, rule in rules.items()}
    steps |= baselines
    clock = synchronised_clock(device)
    gradient_seconds, step_seconds = time_in_turns(gradient, steps, turns, clock, prepare=put_back, put_back=put_back)
    costs = {name: mean_of_run(step_seconds[name], problem.horizon, periods.get(name, 1)) for name in steps}
    return statistics.median(gradient_seconds), costs


def synchronised_clock(device: torch.device, *, counts_waiting: bool = False) -> Callable[[], float]:
    """A clock in seconds for measuring work on a device.

    With one thread on the CPU the clock counts processor time, which does not depend on other processes. Otherwise the
    clock is the wall-clock time, which is read after the device has finished its work.

    Args:
        device: device of the work.
        counts_waiting: whether to use the wall-clock time on the CPU, too, for work that waits, for instance for data.
    """
    if device.type == "cpu":
        return time.process_time if torch.get_num_threads() == 1 and not counts_waiting else time.perf_counter

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def time_in_turns(
    gradient: Callable[[], object],
    steps: Mapping[str, Callable[[], object]],
    turns: int,
    clock: Callable[[], float],
    *,
    prepare: Callable[[], object] = lambda: None,
    put_back: Callable[[], object] = lambda: None,
    is_enough: Callable[[list[float], dict[str, list[float]]], bool] = lambda gradient_seconds, step_seconds: False,
) -> tuple[list[float], dict[str, list[float]]]:
    """Seconds of the gradient and of each optimizer's step at each of ``turns`` consecutive training steps.

    In each turn the gradient is computed once, and then every optimizer makes a step with this gradient. The order of
    the optimizers changes from turn to turn. So other work on the machine affects all optimizers equally, and no
    optimizer always finds the gradients in the cache.

    Args:
        gradient: forward and backward pass; it computes the gradients that the steps read.
        steps: one step of each optimizer, by name.
        turns: number of consecutive steps, >= 1.
        clock: a clock in seconds, see :func:`synchronised_clock`.
        prepare: function that is called before each turn and not timed.
        put_back: function that restores the parameters; it is called before each step and not timed.
        is_enough: function that is called after each turn with all times so far; the measurement ends if it is true.
    """

    def seconds(work: Callable[[], object]) -> float:
        began = clock()
        work()
        return clock() - began

    gradient_seconds: list[float] = []
    step_seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(turns):
        prepare()
        gradient_seconds.append(seconds(gradient))
        first_index = turn % max(1, len(names))
        for name in names[first_index:] + names[:first_index]:
            put_back()
            step_seconds[name].append(seconds(steps[name]))
        if is_enough(gradient_seconds, step_seconds):
            break
    return gradient_seconds, step_seconds


def mean_of_run(seconds: Sequence[float], horizon: int, period: int = 1) -> float:
    """Mean seconds of a step in a run, from the seconds of the first consecutive steps of the run.

    The first :data:`BEGINNING` steps count with their median, and the next :data:`TRACING` steps with their sum. Of
    later steps, those at the same position of the period count with their median, and the period with the mean of these
    medians. All steps count as often as they occur within the horizon.

    Args:
        seconds: seconds of consecutive steps from the first step on, of at least ``STEADY + period`` steps.
        horizon: number of steps of the run, >= 1.
        period: number of steps after which the work of a step repeats, >= 1.

    >>> mean_of_run([7.0] * 20 + [4.0] * 20 + [1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 9.0], horizon=80, period=4)
    4.0
    """
    early, later = seconds[:BEGINNING], seconds[STEADY:]
    steady = statistics.fmean(statistics.median(later[place::period]) for place in range(period))
    early_steps = min(horizon, BEGINNING)
    tracing = seconds[BEGINNING : max(BEGINNING, min(horizon, STEADY))]
    steady_steps = horizon - early_steps - len(tracing)
    return (early_steps * statistics.median(early) + sum(tracing) + steady_steps * steady) / horizon


def environment_of(device: torch.device, threads: int) -> dict[str, str | int]:
    """Versions, processor and device, as JSON values.

    Args:
        device: device of the work.
        threads: number of threads of PyTorch in the processes.
    """
    return {
        "lightning_lopt": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cores": os.cpu_count() or 0,
        "threads": threads,
    }


def _processor() -> str:
    """Name of the processor; ``"unknown"`` if the system gives no name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
