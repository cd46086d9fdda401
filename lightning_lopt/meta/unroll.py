"""Unrolls: several inner steps of inner runs of one or more tasks, each run with its own θ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lightning_lopt.meta.batches import BatchDraws
from lightning_lopt.meta.engine import Eager, Execution
from lightning_lopt.meta.engine.streams import side_by_side
from lightning_lopt.meta.runs import InnerRuns, can_batch
from lightning_lopt.meta.theta import Theta
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.base import Split

EAGER = Eager()


def unroll(
    rule: UpdateRule,
    particles: Theta,
    runs: InnerRuns,
    steps: int,
    draws: torch.Generator,
    splits: Sequence[Split] = ("train",),
    execution: Execution = EAGER,
) -> tuple[InnerRuns, Tensor]:
    """Advance all runs by ``steps``, particle ``i`` with ``particles[...][i]`` as θ.

    Args:
        rule: the rule; its own parameters are replaced by ``particles``.
        particles: θ for each run, leading axis ``copies x P``, for the perturbed names; other entries of θ are those
            of the rule.
        runs: the inner runs to advance.
        steps: inner steps to make; fewer steps are made if the runs reach their horizon.
        draws: random generator of the mini-batches: each step draws P mini-batches, which all copies share.
        splits: splits whose loss is measured: the training batches, new held-out batches, or both.
        execution: how the steps are computed.

    Returns:
        the runs after these steps, and losses before each step, shape ``(splits, steps made, copies x P)``.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.meta import start_runs
        >>> from lightning_lopt.meta.theta import stacked_theta
        >>> from lightning_lopt.tasks import Quadratic
        >>> rules, bowl = [AdamRule(lr) for lr in (0.01, 0.1, 0.5)], Quadratic(torch.tensor([1.0, 4.0]))
        >>> runs = start_runs(rules[0], bowl, pairs=1, horizon=10, seed=0, copies=3)
        >>> runs, losses = unroll(rules[0], stacked_theta(rules, 1), runs, 10, torch.Generator())
        >>> [f"{loss:.2g}" for loss in losses[0, -1].tolist()]  # before the last step, at each learning rate
        ['2.1', '0.059', '0.00034']
    """
    return _unroll_together(rule, particles, [runs], steps, [draws], splits, execution)[0]


def unroll_groups(
    rule: UpdateRule,
    particles: Theta,
    groups: Sequence[InnerRuns],
    steps: int,
    draws: Sequence[torch.Generator],
    splits: Sequence[Split] = ("train",),
    execution: Execution = EAGER,
) -> list[tuple[InnerRuns, Tensor]]:
    """:func:`unroll` of several groups of inner runs, each with its own generator in ``draws``.

    Groups that can be batched (:func:`~lightning_lopt.meta.runs.can_batch`) advance in one batch, where runs at their
    horizon do not change. Other groups advance one after the other, on CUDA on parallel streams. ``particles`` holds θ
    of all groups, concatenated along the leading axis.
    """
    if can_batch(rule, groups):
        return _unroll_together(rule, particles, groups, steps, draws, splits, execution)
    ends = torch.tensor([runs.count for runs in groups]).cumsum(0).tolist()
    calls: list[Callable[[], list[tuple[InnerRuns, Tensor]]]] = []
    for runs, end, generator in zip(groups, ends, draws, strict=True):
        theta = {name: value[end - runs.count : end] for name, value in particles.items()}
        calls.append(partial(_unroll_together, rule, theta, [runs], steps, [generator], splits, execution))
    return [unrolled for (unrolled,) in side_by_side(calls, groups[0].device)]


def _unroll_together(
    rule: UpdateRule,
    particles: Theta,
    groups: Sequence[InnerRuns],
    steps: int,
    generators: Sequence[torch.Generator],
    splits: Sequence[Split],
    execution: Execution,
) -> list[tuple[InnerRuns, Tensor]]:
    counts = [min(steps, runs.horizon - runs.step) for runs in groups]
    drawn_splits: tuple[Split, ...] = ("train", "valid") if "valid" in splits else ("train",)
    draws = [
        BatchDraws(runs, generator, drawn_splits, count)
        for runs, generator, count in zip(groups, generators, counts, strict=True)
    ]
    advanced = execution.steps(rule, particles, groups, draws, max(counts))
    measured = torch.stack([advanced.losses[split] for split in splits])
    losses = torch.split(measured, [runs.count for runs in groups], dim=2)
    return [
        (replace(runs, params=params, state=state, step=runs.step + count), loss[:, :count])
        for runs, count, (params, state), loss in zip(groups, counts, advanced.groups, losses, strict=True)
    ]
