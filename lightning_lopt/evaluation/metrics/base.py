"""Metrics of a suite as torchmetrics.

They are updated with the runs of an optimizer and of a reference, problem by problem, on any process.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_lopt.evaluation.measurement import Measurement
from lightning_lopt.evaluation.metrics.bootstrap import RESAMPLES, Statistic, interval


@dataclass(frozen=True)
class PairedRuns:
    """The runs of an optimizer (*ours*) and of a reference, on the same initial models and mini-batches.

    Attributes:
        problem: name of the problem, unique among the updates of a metric.
        loss_scale: loss of an uninformed model, > 0.
        ours: measurement of the optimizer.
        reference: measurement of the reference, with the same horizon and number of seeds.
        step_cost: seconds of one training step with the reference, divided by those with ours; NaN where unknown.

    Raises:
        ValueError: if the two do not belong together.
    """

    problem: str
    loss_scale: float
    ours: Measurement
    reference: Measurement
    step_cost: float = math.nan

    def __post_init__(self) -> None:
        for what, ours, other in (
            ("horizon", self.ours.horizon, self.reference.horizon),
            ("number of seeds", len(self.ours.final_train), len(self.reference.final_train)),
        ):
            if ours != other:
                raise ValueError(
                    f"on {self.problem!r} {self.ours.optimizer} has the {what} {ours} and {self.reference.optimizer} "
                    f"{other}; compare runs of the same kind."
                )
        if not (math.isfinite(self.loss_scale) and self.loss_scale > 0):
            raise ValueError(f"the loss scale of {self.problem!r} must be a number above 0, got {self.loss_scale!r}.")


class PairedMetric(Metric):
    """One score for each run of each problem, and statistics of all.

    ``update`` takes a :class:`PairedRuns`. ``compute`` gives, for each of :attr:`statistics`, its value and the bounds
    of its 95 % interval (``"iqm"``, ``"iqm_low"``, ``"iqm_high"``), 0-dim float64 each. The problems may be distributed
    over processes in any way and order; all processes have the same result, that of one process with all problems.

    Args:
        resamples: resamples of the bootstrap, >= 1.
        seed: seed of the bootstrap.
        kwargs: arguments of ``torchmetrics.Metric``.

    Raises:
        RuntimeError: from ``compute``, if nothing was measured, a problem was measured twice, or numbers of seeds
            differ.
    """

    full_state_update = False
    statistics: ClassVar[Mapping[str, Statistic]]
    values: list[Tensor]
    problems: list[Tensor]

    def __init__(self, *, resamples: int = RESAMPLES, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.resamples = resamples
        self.seed = seed
        # A process without problems sends an empty tensor of this type, which has to be that of the others.
        self.set_dtype(torch.float64)
        self.add_state("values", default=[], dist_reduce_fx="cat")
        self.add_state("problems", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def score(self, runs: PairedRuns) -> Tensor:
        """A score for each seed, shape ``(S,)``, float64."""

    def update(self, runs: PairedRuns) -> None:
        """Add one problem."""
        scores = self.score(runs).to(self.device)
        self.values.append(scores)
        self.problems.append(torch.full_like(scores, _number(runs.problem)))

    def compute(self) -> dict[str, Tensor]:
        """Value and bounds of each statistic."""
        scores = self._matrix()
        results: dict[str, Tensor] = {}
        for name, statistic in self.statistics.items():
            low, high = interval(scores, statistic, resamples=self.resamples, seed=self.seed)
            values = (statistic(scores), low, high)
            for key, value in zip((name, f"{name}_low", f"{name}_high"), values, strict=True):
                results[key] = torch.as_tensor(value, dtype=torch.float64, device=self.device)
        return results

    def _matrix(self) -> Tensor:
        """All scores by problem and seed, shape ``(P, S)``; the order of problems depends only on their names."""
        if not len(self.values):
            raise RuntimeError(f"{type(self).__name__} has seen no problem; call update first.")
        values, problems = (
            torch.cat(list(state)) if isinstance(state, list) else state for state in (self.values, self.problems)
        )
        numbers, counts = torch.unique(problems, return_counts=True)
        if int(counts.min()) != int(counts.max()):
            raise RuntimeError(
                f"{type(self).__name__} has seen from {int(counts.min())} to {int(counts.max())} runs of a problem; "
                "give each problem once, all with the same number of seeds."
            )
        return values[problems.argsort(stable=True)].reshape(len(numbers), -1)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """The statistics with their intervals (several results one after another), as figure and axes."""
        val = self.compute() if val is None else val
        results = [val] if isinstance(val, Mapping) else list(val)
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots()
        for name in self.statistics:
            middle = [float(result[name]) for result in results]
            low, high = ([float(result[f"{name}_{side}"]) for result in results] for side in ("low", "high"))
            below = [max(0.0, value - bound) for value, bound in zip(middle, low, strict=True)]
            above = [max(0.0, bound - value) for value, bound in zip(middle, high, strict=True)]
            ax.errorbar(range(len(results)), middle, [below, above], marker="o", capsize=4, label=name)
        ax.set_title(type(self).__name__)
        ax.set_xticks(range(len(results)))
        ax.grid(alpha=0.3)
        ax.legend()
        return ax.get_figure(), ax


def _number(problem: str) -> float:
    """An integer for a name, the same in all processes, that float64 represents exactly."""
    return float(int.from_bytes(hashlib.sha256(problem.encode("utf-8", "surrogatepass")).digest()[:6], "big"))
