r"""Where runs end: losses of different tasks on one scale, their ratios, and shares of runs.

A loss L of a task whose scale is s (the loss of a model that knows nothing) becomes :math:`\ell = \min(L / s, 1.5)`;
a loss that is not finite becomes 1.5. Below :data:`FLOOR` lower is hardly better: it is memorising.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_lopt.evaluation.measurement import Measurement
from lightning_lopt.evaluation.metrics.base import PairedMetric, PairedRuns
from lightning_lopt.evaluation.metrics.bootstrap import CENTRE, MEAN, WORST

SPLITS = ("train", "valid", "best_valid")

FLOOR = 0.01
"""In units of the know-nothing loss."""

CAP = 1.5
"""In units of the know-nothing loss; what is above counts as this much, and as diverged."""


def relative(losses: Tensor, loss_scale: float | Tensor) -> Tensor:
    """Losses in units of the know-nothing loss, in [0, 1.5], float64; what is not finite is 1.5."""
    scaled = losses.double() / loss_scale
    return torch.where(scaled.isfinite(), scaled, CAP).clamp(0.0, CAP)


def log_ratio(ours: Tensor, reference: Tensor, loss_scale: float | Tensor) -> Tensor:
    r""":math:`\log \frac{\ell_\text{ours} + f}{\ell_\text{reference} + f}`, f the :data:`FLOOR`: below 0 where ours is
    lower. Same shape as the losses."""
    return torch.log(relative(ours, loss_scale) + FLOOR) - torch.log(relative(reference, loss_scale) + FLOOR)


def final_loss(run: Measurement, split: str) -> Tensor:
    """Loss after the last step on the split ``"train"`` or ``"valid"``, or the lowest of ``"best_valid"``: ``(S,)``."""
    if split == "best_valid":
        return lowest(run.valid)
    return {"train": run.final_train, "valid": run.final_valid}[split]


def lowest(values: Tensor) -> Tensor:
    """The lowest over checkpoints, shape ``(V, S)`` to ``(S,)``; NaN counts as infinite."""
    return torch.nan_to_num(values, nan=torch.inf).amin(0)


def median_loss(losses: Tensor) -> float:
    """Median over seeds, of an even number the mean of the middle two; what is not finite counts as infinite.

    >>> median_loss(torch.tensor([0.5, float("nan"), 0.1]))
    0.5
    """
    ordered = torch.where(losses.isfinite(), losses, torch.inf).double().sort().values
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


def wins(ours: Tensor, reference: Tensor, loss_scale: float) -> Tensor:
    """1 where the loss of ours is lower, 0 where it is higher, 1/2 where both are alike; same shape as the losses.

    Alike are equal losses, two below the floor of 1 % of the know-nothing loss, and two that diverged.
    """
    levels = [relative(losses, loss_scale).clamp(min=FLOOR) for losses in (ours, reference)]
    return ((levels[1] - levels[0]).sign() + 1) / 2


def diverged(run: Measurement, loss_scale: float) -> Tensor:
    """Whether a run met a training loss that is not finite, or ends above 1.5 times the know-nothing loss: ``(S,)``.

    Only training losses count: a validation loss may pass that mark by memorising.
    """
    broken = ~run.train.isfinite().all(0) | ~run.final_train.isfinite()
    return broken | (run.final_train > CAP * loss_scale)


class _OnSplit(PairedMetric):
    """A metric of the loss after the last step, or of the best one.

    Args:
        split: ``"train"`` or ``"valid"`` for the loss after the last step, ``"best_valid"`` for the lowest validation
            loss among the checkpoints.
        kwargs: as for :class:`PairedMetric`.

    Raises:
        ValueError: if there is no such split.
    """

    def __init__(self, split: str = "train", **kwargs: Any) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
        super().__init__(**kwargs)
        self.split = split


def normalised_loss(ours: Measurement, reference: Measurement, loss_scale: float, split: str = "train") -> Tensor:
    r"""Final loss on a scale on which the reference's median is 0 and a model that knows nothing has 1: ``(S,)``.

    .. math:: \frac{\ell - b}{\max(1 - b, f)}

    with :math:`\ell` and the reference's median b in units of the know-nothing loss, capped at 1.5, and f = 0.01.
    Below 0 where ours is lower. Tasks become comparable by two fixed points each, as in VeLO's and Celo's evaluations
    by a tuned Adam; with the best of several baselines as the reference it says how much of what can be had is missed.
    """
    best = relative(final_loss(reference, split), loss_scale).quantile(0.5)
    return (relative(final_loss(ours, split), loss_scale) - best) / (1 - best).clamp(min=FLOOR)


class NormalisedLoss(_OnSplit):
    """IQM and median of :func:`normalised_loss` over all runs: 0 is the reference, 1 a model that knows nothing."""

    higher_is_better = False
    statistics = CENTRE

    def score(self, runs: PairedRuns) -> Tensor:
        return normalised_loss(runs.ours, runs.reference, runs.loss_scale, self.split)


class LossRatio(_OnSplit):
    r"""IQM and median of the reference's final loss over ours, as Celo reports them (https://arxiv.org/abs/2501.12670).

    .. math:: \frac{\ell_\text{reference} + f}{\ell_\text{ours} + f}

    Losses are in units of the know-nothing loss; f = 0.01 keeps a memorised training set from outweighing everything.
    Above 1 where ours is lower.
    """

    higher_is_better = True
    statistics = CENTRE

    def score(self, runs: PairedRuns) -> Tensor:
        ours, reference = (final_loss(run, self.split) for run in (runs.ours, runs.reference))
        return (-log_ratio(ours, reference, runs.loss_scale)).exp()


class WorstRegret(_OnSplit):
    """How much higher than the reference ours ends on its worst problem, as a factor >= 1.

    On each problem the median over seeds of the loss ratio ours / reference (with the floor of :class:`LossRatio`); the
    largest one over problems, or 1 where ours is never behind.
    """

    higher_is_better = False
    statistics = WORST

    def score(self, runs: PairedRuns) -> Tensor:
        ours, reference = (final_loss(run, self.split) for run in (runs.ours, runs.reference))
        return log_ratio(ours, reference, runs.loss_scale).exp()


class WinRate(_OnSplit):
    """Share of runs that end lower than the reference's run of the same seed; ties count half (see :func:`wins`)."""

    higher_is_better = True
    statistics = MEAN

    def score(self, runs: PairedRuns) -> Tensor:
        ours, reference = (final_loss(run, self.split) for run in (runs.ours, runs.reference))
        return wins(ours, reference, runs.loss_scale)


class DivergenceRate(PairedMetric):
    """Share of runs of ours that diverge (see :func:`diverged`)."""

    higher_is_better = False
    statistics = MEAN

    def score(self, runs: PairedRuns) -> Tensor:
        return diverged(runs.ours, runs.loss_scale).to(torch.float64)
