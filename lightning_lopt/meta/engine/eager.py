"""Inner steps as PyTorch runs them by itself, kernel by kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_lopt.meta.batches import BatchDraws
from lightning_lopt.meta.engine.execution import Advanced, Execution, steps_one_by_one
from lightning_lopt.meta.engine.step import Stepped, advance_runs
from lightning_lopt.meta.runs import InnerRuns
from lightning_lopt.meta.theta import Theta
from lightning_lopt.rules.base import UpdateRule


class Eager(Execution):
    """Inner steps that are neither compiled nor recorded: what the other executions are compared with."""

    def step(self, *arguments: Any) -> Stepped:
        return advance_runs(*arguments)

    def steps(
        self, rule: UpdateRule, theta: Theta, groups: Sequence[InnerRuns], draws: Sequence[BatchDraws], steps: int
    ) -> Advanced:
        return steps_one_by_one(self.step, rule, theta, groups, draws, steps)
