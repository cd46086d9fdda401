"""Eager inner steps, for which PyTorch launches kernel by kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_lopt.meta.batches import BatchDraws
from lightning_lopt.meta.engine.execution import Advanced, Execution, steps_one_by_one
from lightning_lopt.meta.engine.step import SteppedRuns, advance_runs
from lightning_lopt.meta.runs import InnerRuns
from lightning_lopt.meta.theta import Theta
from lightning_lopt.rules.base import UpdateRule


class Eager(Execution):
    """Inner steps that are neither compiled nor recorded; tests compare the other executions with them.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.meta import start_runs, unroll
        >>> from lightning_lopt.meta.theta import stacked_theta
        >>> from lightning_lopt.tasks import Quadratic
        >>> rule, bowl = AdamRule(0.1), Quadratic(torch.tensor([1.0, 4.0]))
        >>> runs = start_runs(rule, bowl, pairs=1, horizon=10, seed=0, copies=1)
        >>> runs, losses = unroll(rule, stacked_theta([rule], 1), runs, 3, torch.Generator(), execution=Eager())
        >>> losses.flatten()
        tensor([2.5000, 2.0250, 1.6016])
    """

    def step(self, *arguments: Any) -> SteppedRuns:
        return advance_runs(*arguments)

    def steps(
        self, rule: UpdateRule, theta: Theta, groups: Sequence[InnerRuns], draws: Sequence[BatchDraws], steps: int
    ) -> Advanced:
        return steps_one_by_one(self.step, rule, theta, groups, draws, steps)
