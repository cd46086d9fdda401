"""Inner runs of one task side by side, their start, and functions that join the runs of several tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lightning_lopt.devices import sent
from lightning_lopt.rules.base import Params, State, UpdateRule
from lightning_lopt.seeding import generator
from lightning_lopt.tasks.accelerations import computation_of
from lightning_lopt.tasks.base import Task


@dataclass(frozen=True)
class InnerRuns:
    """Inner runs of one task in lock-step: ``2 P`` in meta-training, first all ``+`` particles, then all ``-``.

    The two runs of a pair begin at the same parameters and get the same batches (common random numbers); pairs differ.
    In measurements, ``copies`` runs instead of 2 share initial parameters and batches in the same way.

    Attributes:
        task: the task of all runs.
        params: parameters, leading axis ``copies x P``.
        state: state of the rule, leading axis ``copies x P``.
        step: inner steps made so far.
        horizon: inner steps planned, the rule's ``total_steps``.
        seed: seed of initial parameters, batches and perturbations.
        copies: runs that share initial parameters and batches.
        truncations: number of truncations that an estimator has computed.
        noise_sum: sum of the perturbations of θ since the runs began, shape ``(P, D)`` for D entries of θ. Only
            PES uses it; if it is ``None``, for instance in a resumed run, PES computes it again from ``seed``.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.tasks import Quadratic
        >>> runs = start_runs(AdamRule(), Quadratic(torch.tensor([1.0, 4.0])), pairs=3, horizon=10, seed=0)
        >>> runs.count, runs.pairs, runs.step, tuple(runs.params["x"].shape)
        (6, 3, 0, (6, 2))
    """

    task: Task
    params: Params
    state: State
    step: int
    horizon: int
    seed: int
    copies: int = 2
    truncations: int = 0
    noise_sum: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of runs, including copies."""
        return len(next(iter(self.params.values())))

    @property
    def pairs(self) -> int:
        """Number P of runs that differ in initial parameters and batches."""
        return self.count // self.copies

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device

    @property
    def finished(self) -> bool:
        return self.step >= self.horizon


def start_runs(rule: UpdateRule, task: Task, *, pairs: int, horizon: int, seed: int, copies: int = 2) -> InnerRuns:
    """Inner runs before their first step; pair ``p`` is initialised from ``(seed, "init", p)`` alone.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.tasks import Quadratic
        >>> runs = start_runs(AdamRule(), Quadratic(torch.tensor([1.0, 4.0])), pairs=3, horizon=10, seed=0, copies=1)
        >>> sorted(runs.state.tensors["x"]), tuple(runs.state.tensors["x"]["momentum"].shape)
        (['count', 'momentum', 'second_moment'], (3, 2))
    """
    inits = [task.init(generator(seed, "init", pair)) for pair in range(pairs)]
    device = device_of(rule)
    params = {name: sent(torch.stack([init[name] for init in inits] * copies), device) for name in inits[0]}
    trained = {name: value for name, value in params.items() if name in task.roles}
    state = vmap(lambda params: rule.init_state(params, task.roles))(trained)
    return InnerRuns(task, params, state, 0, horizon, seed, copies)


def validated(rule: UpdateRule, runs: InnerRuns, losses: Tensor) -> InnerRuns:
    """The runs after the rule has read the validation loss of each, shape ``(copies x P,)``."""
    if not rule.reads_validation:
        return runs
    progress = losses.new_tensor(runs.step / runs.horizon)

    def shared_after(shared: dict[str, Tensor], loss: Tensor) -> dict[str, Tensor]:
        return rule.validated(State({}, shared), loss, progress).shared

    return replace(runs, state=State(runs.state.tensors, vmap(shared_after)(runs.state.shared, losses)))


def rolled_back(rule: UpdateRule, runs: InnerRuns, losses: Tensor, best: Params) -> tuple[InnerRuns, Params]:
    """Set runs whose rollback is due back to their best parameters; to be called after :func:`validated`.

    A run whose loss is not finite does not change. Carried entries, such as a number of steps, keep their values, as
    counters in buffers do under an optimizer.

    Args:
        rule, runs, losses: as for :func:`validated`, after it.
        best: the best trained parameters of each run so far, or all parameters of the run.

    Returns:
        the runs after rollback, and the best trained parameters of each run so far.
    """
    if not rule.reads_validation:
        return runs, best
    is_best, is_due = (flags & losses.isfinite() for flags in vmap(rule.rollback)(runs.state.shared))

    def select(flags: Tensor, if_true: Params, if_false: Params) -> Params:
        return {k: torch.where(flags.view(-1, *[1] * (x.ndim - 1)), x, if_false[k]) for k, x in if_true.items()}

    trained = {name: value for name, value in runs.params.items() if name in runs.task.roles}
    best = select(is_best, trained, best)
    return replace(runs, params=runs.params | select(is_due, best, trained)), best


def device_of(rule: UpdateRule) -> torch.device:
    """The device of the rule's parameters and of its inner runs."""
    return next((parameter.device for parameter in rule.parameters()), torch.device("cpu"))


def map_runs(runs: InnerRuns, function: Callable[[Tensor], Tensor]) -> InnerRuns:
    """The runs with ``function`` applied to each tensor of their parameters and of the rule's state."""
    params, state = tree_map(function, (runs.params, runs.state))
    return replace(runs, params=params, state=state)


def can_batch(rule: UpdateRule, groups: Sequence[InnerRuns]) -> bool:
    """Whether these inner runs can be batched: the same computation, equal shapes, and full steps only."""
    first_group = groups[0]
    if len(groups) == 1:
        return True
    computation = computation_of(first_group.task)
    shapes = {name: value.shape for name, value in first_group.params.items()}
    return (
        rule.period == 1
        and computation is not None
        and all(
            computation_of(runs.task) == computation
            and runs.copies == first_group.copies
            and {name: value.shape for name, value in runs.params.items()} == shapes
            for runs in groups
        )
    )


def joined_groups(groups: Sequence[InnerRuns]) -> tuple[Params, State]:
    """Parameters and states of G groups of runs, concatenated along their leading axis, N for all runs together."""
    if len(groups) == 1:
        return groups[0].params, groups[0].state
    trees = [(runs.params, runs.state) for runs in groups]
    params, state = tree_map(lambda *values: torch.cat(values), *trees)
    return params, state


def separated(groups: Sequence[InnerRuns], params: Params, state: State) -> list[tuple[Params, State]]:
    """The inverse of :func:`joined_groups`: parameters and state of each group, as views of those of all N runs."""
    if len(groups) == 1:
        return [(params, state)]
    leaves, structure = tree_flatten((params, state))
    parts = zip(*(torch.split(leaf, [runs.count for runs in groups]) for leaf in leaves), strict=True)
    return [tree_unflatten(list(part), structure) for part in parts]


class Position(NamedTuple):
    """Progress of runs: 0-dim tensors for one group, tensors of shape ``(N,)`` for the N runs of several groups.

    Attributes:
        step: inner steps made.
        total_steps: the horizon.
        epochs: planned passes over the training data; NaN if the ``steps_per_epoch`` of the task is ``None``.
    """

    step: Tensor
    total_steps: Tensor
    epochs: Tensor


def positions(groups: Sequence[InnerRuns], device: torch.device) -> Position:
    """The positions of the runs of groups that can be batched."""
    numbers = [(float(runs.step), float(runs.horizon), _epochs(runs)) for runs in groups]
    if len(groups) == 1:  # torch.full needs no copy to the device, unlike torch.tensor
        return Position(*(torch.full((), number, device=device) for number in numbers[0]))
    rows = sent(torch.tensor(numbers), device).repeat_interleave(groups[0].count, 0)
    return Position(*(column.contiguous() for column in rows.unbind(1)))


def _epochs(runs: InnerRuns) -> float:
    steps = runs.task.steps_per_epoch
    return math.nan if steps is None else runs.horizon / steps
