"""Where runs end."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_lopt.evaluation.measurement import Measurement
from lightning_lopt.evaluation.metrics.base import ContestMetric
from lightning_lopt.evaluation.metrics.bootstrap import CENTRE, WORST
from lightning_lopt.evaluation.metrics.contest import Contest
from lightning_lopt.evaluation.metrics.levels import FLOOR, final_loss, log_ratio, relative

SPLITS = ("train", "valid", "best_valid")


class _OnSplit(ContestMetric):
    """A metric of the loss after the last step, or of the best one.

    Args:
        split: ``"train"`` or ``"valid"`` for the loss after the last step, ``"best_valid"`` for the lowest validation
            loss among the checkpoints.
        kwargs: as for :class:`ContestMetric`.

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

    def score(self, contest: Contest) -> Tensor:
        return normalised_loss(contest.ours, contest.reference, contest.loss_scale, self.split)


class LossRatio(_OnSplit):
    r"""IQM and median of the reference's final loss over ours, as Celo reports them (https://arxiv.org/abs/2501.12670).

    .. math:: \frac{\ell_\text{reference} + f}{\ell_\text{ours} + f}

    Losses are in units of the know-nothing loss; f = 0.01 keeps a memorised training set from outweighing everything.
    Above 1 where ours is lower.
    """

    higher_is_better = True
    statistics = CENTRE

    def score(self, contest: Contest) -> Tensor:
        ours, reference = (final_loss(run, self.split) for run in (contest.ours, contest.reference))
        return (-log_ratio(ours, reference, contest.loss_scale)).exp()


class WorstRegret(_OnSplit):
    """How much higher than the reference ours ends on its worst problem, as a factor >= 1.

    On each problem the median over seeds of the loss ratio ours / reference (with the floor of :class:`LossRatio`); the
    largest one over problems, or 1 where ours is never behind.
    """

    higher_is_better = False
    statistics = WORST

    def score(self, contest: Contest) -> Tensor:
        ours, reference = (final_loss(run, self.split) for run in (contest.ours, contest.reference))
        return log_ratio(ours, reference, contest.loss_scale).exp()
