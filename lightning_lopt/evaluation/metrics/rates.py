"""Shares of runs."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lopt.evaluation.measurement import Measurement
from lightning_lopt.evaluation.metrics.base import ContestMetric
from lightning_lopt.evaluation.metrics.bootstrap import MEAN
from lightning_lopt.evaluation.metrics.contest import Contest
from lightning_lopt.evaluation.metrics.levels import CAP, FLOOR, final_loss, relative
from lightning_lopt.evaluation.metrics.losses import _OnSplit


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


class WinRate(_OnSplit):
    """Share of runs that end lower than the reference's run of the same seed; ties count half (see :func:`wins`)."""

    higher_is_better = True
    statistics = MEAN

    def score(self, contest: Contest) -> Tensor:
        ours, reference = (final_loss(run, self.split) for run in (contest.ours, contest.reference))
        return wins(ours, reference, contest.loss_scale)


class DivergenceRate(ContestMetric):
    """Share of runs of ours that diverge (see :func:`diverged`)."""

    higher_is_better = False
    statistics = MEAN

    def score(self, contest: Contest) -> Tensor:
        return diverged(contest.ours, contest.loss_scale).to(torch.float64)
