r"""Metrics of a suite as torchmetrics: one scale of losses, scores of runs, their statistics, and bootstrap intervals.

The uninformed loss s of a task (``loss_scale``) is the loss of a model with a constant prediction. A loss L becomes
:math:`\ell = \min(L / s, 1.5)`; a loss that is not finite becomes 1.5. Metrics are updated with the runs of an
optimizer and of a reference, problem by problem, on any process.

Axes: P problems (the strata), S seeds, R resamples. Point statistics and intervals follow Agarwal et al., 2021, "Deep
reinforcement learning at the edge of the statistical precipice", https://arxiv.org/abs/2108.13264.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_lopt.evaluation.measurement import Measurement
from lightning_lopt.seeding import generator

RESAMPLES = 2000
LEVEL = 0.95
_AT_ONCE = 4_000_000  # entries of one block of resamples

FLOOR = 0.01
"""Floor f of losses, in units of the uninformed loss; differences below it hardly matter (memorised training data)."""

CAP = 1.5
"""Cap of losses, in units of the uninformed loss; a run with a larger final loss has diverged."""

Statistic = Callable[[Tensor], Tensor]
"""A function from scores of shape ``(..., P, S)`` to values of shape ``(...)``."""


def relative(losses: Tensor, loss_scale: float | Tensor) -> Tensor:
    """Losses in units of the uninformed loss, in [0, 1.5], float64; losses that are not finite become 1.5.

    >>> relative(torch.tensor([1.0, float("nan")]), 2.0)
    tensor([0.5000, 1.5000], dtype=torch.float64)
    """
    scaled = losses.double() / loss_scale
    return torch.where(scaled.isfinite(), scaled, CAP).clamp(0.0, CAP)


def log_ratio(ours: Tensor, reference: Tensor, loss_scale: float | Tensor) -> Tensor:
    r""":math:`\log \frac{\ell_\text{ours} + f}{\ell_\text{reference} + f}` with the :data:`FLOOR` f, same shape.

    The result is below 0 if ours is lower.

    >>> log_ratio(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), 1.0).sign()
    tensor([-1.,  0.], dtype=torch.float64)
    """
    return torch.log(relative(ours, loss_scale) + FLOOR) - torch.log(relative(reference, loss_scale) + FLOOR)


def lowest(values: Tensor) -> Tensor:
    """The lowest value over checkpoints, shape ``(V, S)`` to ``(S,)``; NaN counts as infinite.

    >>> lowest(torch.tensor([[1.0, float("nan")], [0.5, 2.0]]))
    tensor([0.5000, 2.0000])
    """
    return torch.nan_to_num(values, nan=torch.inf).amin(0)


def iqm(scores: Tensor) -> Tensor:
    """Interquartile mean over the last two axes; it drops a quarter of the P·S scores (rounded down) at each end.

    >>> iqm(torch.tensor([[0.0, 1.0, 2.0, 3.0, 100.0]]))
    tensor(2.)
    """
    values = scores.flatten(-2).sort(-1).values
    cut = values.shape[-1] // 4
    return values[..., cut : values.shape[-1] - cut].mean(-1)


def median(scores: Tensor) -> Tensor:
    """Median over the last two axes; for an even number of scores, the mean of the two middle scores.

    >>> median(torch.tensor([[0.0, 1.0, 2.0, 100.0]]))
    tensor(1.5000)
    """
    return scores.flatten(-2).quantile(0.5, -1)


def mean(scores: Tensor) -> Tensor:
    """Mean over the last two axes.

    >>> mean(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    tensor(1.5000)
    """
    return scores.mean((-2, -1))


def worst(scores: Tensor) -> Tensor:
    """The maximum over problems of the median over seeds, and at least 1.

    >>> worst(torch.tensor([[0.5, 1.0, 9.0], [2.0, 3.0, 4.0]]))  # the medians of two problems are 1 and 3
    tensor(3.)
    """
    return scores.quantile(0.5, -1).amax(-1).clamp(min=1.0)


CENTRE: dict[str, Statistic] = {"iqm": iqm, "median": median}
MEAN: dict[str, Statistic] = {"mean": mean}
WORST: dict[str, Statistic] = {"worst": worst}


def interval(
    scores: Tensor, statistic: Statistic, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of ``statistic``: the S seeds of each problem are resampled with replacement.

    Problems are not resampled. The interval shows how much the statistic would change with other seeds on the same
    problems, not with other problems. With one seed the width is 0. The draws depend on the order of the problems, so
    callers sort the problems.

    Args:
        scores: one score for each run, shape ``(P, S)``.
        statistic: the statistic.
        level: share of resamples inside the interval, in (0, 1).
        resamples: number R of resamples, >= 1.
        seed: seed of the draws.

    Returns:
        lower and upper bound of the interval.

    >>> low, high = interval(torch.tensor([[0.0, 1.0, 2.0]]), mean)
    >>> low < 1.0 < high
    True
    """
    problems, seeds = scores.shape
    draws = generator(seed, "bootstrap")
    values = []
    for begin in range(0, resamples, block := max(1, _AT_ONCE // scores.numel())):
        shape = (min(block, resamples - begin), problems, seeds)
        seed_indices = torch.randint(seeds, shape, generator=draws)
        values.append(statistic(scores.cpu().expand(shape).gather(-1, seed_indices)))
    bounds = torch.cat(values).quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=scores.dtype))
    return float(bounds[0]), float(bounds[1])


@dataclass(frozen=True)
class PairedRuns:
    """The runs of an optimizer (*ours*) and of a reference, on the same initial models and mini-batches.

    Attributes:
        problem: name of the problem, unique among the updates of a metric.
        loss_scale: loss of an uninformed model, > 0.
        ours: measurement of the optimizer.
        reference: measurement of the reference, with the same horizon and number of seeds.
        step_cost: seconds of a training step with the reference, divided by seconds of a step with ours; NaN: unknown.

    Raises:
        ValueError: if horizons or numbers of seeds differ, or ``loss_scale`` is not a positive number.

    >>> ours, reference = (Measurement.of_losses(torch.linspace(2.0, end, 10)) for end in (0.1, 0.5))
    >>> PairedRuns("bowl", 2.0, ours, reference).ours.horizon
    10
    """

    problem: str
    loss_scale: float
    ours: Measurement
    reference: Measurement
    step_cost: float = math.nan

    def __post_init__(self) -> None:
        for quantity, value, reference_value in (
            ("horizon", self.ours.horizon, self.reference.horizon),
            ("number of seeds", len(self.ours.final_train), len(self.reference.final_train)),
        ):
            if value != reference_value:
                raise ValueError(
                    f"on {self.problem!r} the {quantity} of {self.ours.optimizer} is {value}, but the {quantity} of "
                    f"{self.reference.optimizer} is {reference_value}; compare runs with the same {quantity}."
                )
        if not (math.isfinite(self.loss_scale) and self.loss_scale > 0):
            raise ValueError(f"the loss scale of {self.problem!r} must be a number above 0, got {self.loss_scale!r}.")


class PairedMetric(Metric):
    """A metric with one score for each run of each problem, and statistics of all scores.

    ``update`` takes a :class:`PairedRuns`. ``compute`` returns the value of each of :attr:`statistics`, and the bounds
    of its 95 % interval (``"iqm"``, ``"iqm_low"``, ``"iqm_high"``), 0-dim float64 each. The problems may be distributed
    over processes in any way and order. All processes have the same result, which equals the result of one process with
    all problems.

    Args:
        resamples: number of resamples of the bootstrap, >= 1.
        seed: seed of the bootstrap.
        kwargs: arguments of ``torchmetrics.Metric``.

    Raises:
        RuntimeError: from ``compute``, without an update, after two updates for one problem, or if numbers of seeds
            differ.

    >>> class FinalLoss(PairedMetric):
    ...     statistics = MEAN
    ...
    ...     def score(self, runs):
    ...         return runs.ours.final_train.double()
    >>> ours = Measurement.of_losses(torch.tensor([[4.0, 4.0], [1.0, 2.0]]))  # two steps with two seeds
    >>> metric = FinalLoss()
    >>> metric.update(PairedRuns("bowl", 4.0, ours, reference=ours))
    >>> {name: float(value) for name, value in metric.compute().items()}
    {'mean': 1.5, 'mean_low': 1.0, 'mean_high': 2.0}
    """

    full_state_update = False
    statistics: ClassVar[Mapping[str, Statistic]]
    values: list[Tensor]
    problems: list[Tensor]

    def __init__(self, *, resamples: int = RESAMPLES, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.resamples = resamples
        self.seed = seed
        # All processes must send the same type; a process without problems sends an empty tensor of this type.
        self.set_dtype(torch.float64)
        self.add_state("values", default=[], dist_reduce_fx="cat")
        self.add_state("problems", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def score(self, runs: PairedRuns) -> Tensor:
        """The scores of the runs, one for each seed, shape ``(S,)``, float64."""

    def update(self, runs: PairedRuns) -> None:
        """Add the runs of one problem."""
        scores = self.score(runs).to(self.device)
        self.values.append(scores)
        self.problems.append(torch.full_like(scores, _number(runs.problem)))

    def compute(self) -> dict[str, Tensor]:
        """The value and the bounds of each statistic."""
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
            raise RuntimeError(f"{type(self).__name__} has no problem; call update first.")
        values, problems = (
            torch.cat(list(state)) if isinstance(state, list) else state for state in (self.values, self.problems)
        )
        numbers, counts = torch.unique(problems, return_counts=True)
        if int(counts.min()) != int(counts.max()):
            raise RuntimeError(
                f"{type(self).__name__} has from {int(counts.min())} to {int(counts.max())} runs of a problem; "
                "give each problem once, all with the same number of seeds."
            )
        return values[problems.argsort(stable=True)].reshape(len(numbers), -1)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """A figure and axes with the statistics and their intervals; several results are drawn side by side."""
        val = self.compute() if val is None else val
        results = [val] if isinstance(val, Mapping) else list(val)
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots()
        for name in self.statistics:
            centre = [float(result[name]) for result in results]
            low, high = ([float(result[f"{name}_{side}"]) for result in results] for side in ("low", "high"))
            below = [max(0.0, value - bound) for value, bound in zip(centre, low, strict=True)]
            above = [max(0.0, bound - value) for value, bound in zip(centre, high, strict=True)]
            ax.errorbar(range(len(results)), centre, [below, above], marker="o", capsize=4, label=name)
        ax.set_title(type(self).__name__)
        ax.set_xticks(range(len(results)))
        ax.grid(alpha=0.3)
        ax.legend()
        return ax.get_figure(), ax


def _number(problem: str) -> float:
    """An integer hash of a name; it is the same in all processes, and float64 represents it exactly."""
    return float(int.from_bytes(hashlib.sha256(problem.encode("utf-8", "surrogatepass")).digest()[:6], "big"))


Contest = PairedRuns  # former name
ContestMetric = PairedMetric  # former name
