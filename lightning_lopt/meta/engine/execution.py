"""The protocol for executions of inner steps, and a loop that computes one step after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_lopt.meta.batches import BatchDraws, Batches, batches_of
from lightning_lopt.meta.engine.step import SteppedRuns
from lightning_lopt.meta.runs import InnerRuns, joined_groups, positions, separated
from lightning_lopt.meta.theta import Theta
from lightning_lopt.rules.base import Params, State, UpdateRule
from lightning_lopt.tasks.base import Split


class Advanced(NamedTuple):
    """The result of several inner steps of G groups with N runs in all.

    Attributes:
        groups: parameters and state of each group after the steps.
        losses: losses before each step, by split, shape ``(steps, N)``.

    >>> Advanced(groups=[], losses={"train": torch.zeros(5, 2)}).losses["train"].shape  # 5 steps of 2 runs
    torch.Size([5, 2])
    """

    groups: list[tuple[Params, State]]
    losses: dict[Split, Tensor]


class Execution(Protocol):
    """A way to compute inner steps. Every implementation has the results of :class:`Eager`, up to rounding.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.meta import Eager, PES
        >>> from lightning_lopt.tasks import Quadratic
        >>> class Counted(Eager):  # a custom execution that counts inner steps
        ...     step_count = 0
        ...     def steps(self, rule, theta, groups, draws, steps):
        ...         Counted.step_count += steps
        ...         return super().steps(rule, theta, groups, draws, steps)
        >>> rule, estimator = AdamRule(), PES(truncation=5, pairs=4)
        >>> runs = estimator.start(rule, Quadratic(torch.tensor([1.0, 4.0])), horizon=20, seed=0)
        >>> _ = estimator.estimate(rule, [runs], execution=Counted())
        >>> Counted.step_count
        5
    """

    def step(self, *arguments: Any) -> SteppedRuns:
        """One step of all runs; has the arguments of :func:`~lightning_lopt.meta.engine.step.advance_runs`."""

    def steps(
        self, rule: UpdateRule, theta: Theta, groups: Sequence[InnerRuns], draws: Sequence[BatchDraws], steps: int
    ) -> Advanced:
        """Steps of all runs, one after the other.

        Args:
            rule: the rule; its own parameters are replaced by ``theta``.
            theta: θ of each run by name, leading axis N.
            groups: inner runs that can be batched, see :func:`~lightning_lopt.meta.runs.can_batch`.
            draws: draws for the mini-batches of each group.
            steps: number of steps, >= 1.
        """


def steps_one_by_one(
    step: Callable[..., SteppedRuns],
    rule: UpdateRule,
    theta: Theta,
    groups: Sequence[InnerRuns],
    draws: Sequence[BatchDraws],
    steps: int,
) -> Advanced:
    """Compute :meth:`Execution.steps` with one call of ``step`` for each inner step."""
    params, state = joined_groups(groups)
    device, first_step = groups[0].device, groups[0].step
    position = positions(groups, device)
    losses: list[dict[Split, Tensor]] = []
    for number in range(first_step, first_step + steps):
        chunk = batches_of(groups, [group_draws(1) for group_draws in draws], device)
        batches: Batches = {split: {name: value[0] for name, value in batch.items()} for split, batch in chunk.items()}
        params, state, loss = step(rule, groups[0].task, theta, params, state, batches, position, rule.phase_of(number))
        position = position._replace(step=position.step + 1)
        losses.append(loss)
    return Advanced(
        separated(groups, params, state), {split: torch.stack([loss[split] for loss in losses]) for split in losses[0]}
    )
