"""What a training step costs: the gradient, and the step of each optimizer in the form in which it is deployed."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_lopt.evaluation.problem import Problem
from lightning_lopt.optim import LearnedOptimizer
from lightning_lopt.rules.base import Role, UpdateRule
from lightning_lopt.seeding import generator

REPEATS = 21
WARM_UP = 4

Leaves = list[tuple[str, Tensor, Role]]
_Step = Callable[[], object]


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
    ``foreach=True`` (schedule-free AdamW is not among these, and is left out). All take turns, so that whatever else
    the machine does hits all alike; medians over ``repeats``, for full steps and others apart, which count as often as
    they occur within the horizon. With one thread it is the processor's time that counts, which other processes do not
    lengthen; on another device it is the clock's, until the device is done.

    Args:
        problem: whose parameters and batches are used.
        rules: by name.
        against: names of baselines.
        repeats: timed steps, >= 1.
        device: where everything is.
    """
    task = problem.task
    device = torch.device(device)
    params = {name: value.to(device) for name, value in task.init(generator(0, "cost")).items()}
    batch = {name: value.to(device) for name, value in task.batch(generator(0, "cost")).items()}

    def gradient() -> dict[str, Tensor]:
        leaves = {name: params[name].detach().requires_grad_() for name in task.roles}
        task.loss({**params, **leaves}, batch).backward()  # type: ignore[no-untyped-call]
        return {name: leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for name, leaf in leaves.items()}

    grads = gradient()
    loss = task.loss(params, batch).detach()

    def leaves() -> Leaves:
        made = []
        for name, role in task.roles.items():
            leaf = params[name].detach().clone().requires_grad_()
            leaf.grad = grads[name].clone()
            made.append((name, leaf, role))
        return made

    planned = max(problem.horizon, WARM_UP + repeats)
    kinds = {name: Counter(map(rule.phase_of, range(problem.horizon))) for name, rule in rules.items()}
    steps: dict[tuple[str, int | None], _Step] = {
        (name, phase): _learned(_always(rule, phase), leaves(), planned, loss)
        for name, rule in rules.items()
        for phase in kinds[name]
    }
    steps |= {(name, None): DEPLOYED[name](leaves()) for name in against if name in DEPLOYED}
    times: dict[tuple[str, int | None], list[float]] = {key: [] for key in (("", None), *steps)}
    clock = time.process_time if torch.get_num_threads() == 1 and device.type == "cpu" else time.perf_counter
    for turn in range(WARM_UP + repeats):
        for key, step in {("", None): gradient, **steps}.items():
            begin = clock()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= WARM_UP:
                times[key].append(clock() - begin)
    costs: dict[str, float] = defaultdict(float)
    for (name, phase), values in times.items():
        share = kinds[name][phase] / problem.horizon if name in kinds else 1.0
        costs[name] += share * statistics.median(values)
    return costs.pop(""), dict(costs)


def _always(rule: UpdateRule, phase: int | None) -> UpdateRule:
    """The rule, with all steps in one phase."""
    fixed = copy.copy(rule)
    fixed.phase_of = lambda step: phase  # type: ignore[method-assign]
    return fixed


def _learned(rule: UpdateRule, leaves: Leaves, horizon: int, loss: Tensor) -> _Step:
    groups = [
        {"params": [(name, leaf) for name, leaf, own in leaves if own == role], "role": role}
        for role in dict.fromkeys(role for _, _, role in leaves)
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has random weights")  # a step of them costs what any step costs
        optimizer = LearnedOptimizer(groups, rule, total_steps=horizon)
    return lambda: optimizer.step(loss=loss)


def _muon(leaves: Leaves) -> _Step:
    """Muon for hidden matrices, convolutions as matrices of (out, in x kernel), and AdamW for the rest."""
    hidden, rest = [], []
    for _, leaf, role in leaves:
        if role == "matrix" and leaf.dim() >= 2:
            assert leaf.grad is not None
            matrix = leaf.detach().flatten(1).requires_grad_()
            matrix.grad = leaf.grad.flatten(1)
            hidden.append(matrix)
        else:
            rest.append(leaf)
    optimizers: list[torch.optim.Optimizer] = []
    if hidden:
        optimizers.append(torch.optim.Muon(hidden))
    if rest:
        optimizers.append(torch.optim.AdamW(rest, foreach=True))
    return lambda: [optimizer.step() for optimizer in optimizers]


def _tensors(leaves: Leaves) -> list[Tensor]:
    return [leaf for _, leaf, _ in leaves]


DEPLOYED: dict[str, Callable[[Leaves], _Step]] = {
    "adamw": lambda leaves: torch.optim.AdamW(_tensors(leaves), foreach=True).step,
    "adam_default": lambda leaves: torch.optim.Adam(_tensors(leaves), foreach=True).step,
    "sgd": lambda leaves: torch.optim.SGD(_tensors(leaves), momentum=0.9, nesterov=True, lr=1e-3, foreach=True).step,
}
if hasattr(torch.optim, "Muon"):  # from torch 2.9 on
    DEPLOYED["muon"] = _muon
