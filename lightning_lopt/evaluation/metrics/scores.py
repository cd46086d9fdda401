r"""Scores of runs in comparison with a reference: normalised final losses, loss ratios, wins, and speed-ups.

VeLO (Metz et al., 2022, https://arxiv.org/abs/2211.09760) and Celo (Moudgil et al., 2025,
https://arxiv.org/abs/2501.12670) count the steps that a learned optimizer needs for the final loss of a tuned Adam.
:func:`step_speedup` counts the steps of the optimizer with the lower final loss, so defeats count as much as wins.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_lopt.evaluation.measurement import Measurement, window_ends
from lightning_lopt.evaluation.metrics.base import (
    CAP,
    CENTRE,
    FLOOR,
    MEAN,
    WORST,
    PairedMetric,
    PairedRuns,
    log_ratio,
    lowest,
    relative,
)

SPLITS = ("train", "valid", "best_valid")

SMOOTHING = 5  # number of windows in the running mean: 5 % of a run


def final_loss(run: Measurement, split: str) -> Tensor:
    """Loss after the last step (``"train"``, ``"valid"``) or lowest validation loss (``"best_valid"``), ``(S,)``.

    >>> run = Measurement.of_losses(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([3.0, 1.5, 2.0]))
    >>> [float(final_loss(run, split)) for split in SPLITS]
    [1.0, 2.0, 1.5]
    """
    if split == "best_valid":
        return lowest(run.valid)
    return {"train": run.final_train, "valid": run.final_valid}[split]


def median_loss(losses: Tensor) -> float:
    """Median over seeds (for an even number, the mean of the two middle losses); not finite counts as infinite.

    >>> median_loss(torch.tensor([0.5, float("nan"), 0.1]))
    0.5
    """
    ordered = torch.where(losses.isfinite(), losses, torch.inf).double().sort().values
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


def wins(ours: Tensor, reference: Tensor, loss_scale: float) -> Tensor:
    """1 if the loss of ours is lower, 0 if the reference's is lower, 1/2 for a tie; same shape as the losses.

    Ties are equal losses, two losses below the floor of 1 % of the uninformed loss, and two runs that diverged.

    >>> wins(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.2, 0.2, 0.2]), 1.0)
    tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    levels = [relative(losses, loss_scale).clamp(min=FLOOR) for losses in (ours, reference)]
    return ((levels[1] - levels[0]).sign() + 1) / 2


def diverged(run: Measurement, loss_scale: float) -> Tensor:
    """Whether runs have a training loss that is not finite, or a final loss above 1.5 uninformed losses: ``(S,)``.

    Only training losses count, because a validation loss may exceed that limit when a model memorises.

    >>> diverged(Measurement.of_losses(torch.tensor([[1.0, 1.0], [0.5, 9.0]])), loss_scale=1.0)
    tensor([False,  True])
    """
    is_not_finite = ~run.train.isfinite().all(0) | ~run.final_train.isfinite()
    return is_not_finite | (run.final_train > CAP * loss_scale)


class _OnSplit(PairedMetric):
    """A metric of the loss after the last step, or of the lowest loss.

    Args:
        split: ``"train"`` or ``"valid"`` for the loss after the last step, ``"best_valid"`` for the lowest validation
            loss among the checkpoints.
        kwargs: arguments of :class:`PairedMetric`.

    Raises:
        ValueError: if there is no such split.
    """

    def __init__(self, split: str = "train", **kwargs: Any) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
        super().__init__(**kwargs)
        self.split = split

    def final_losses(self, runs: PairedRuns) -> tuple[Tensor, Tensor]:
        """The losses of ours and of the reference, shape ``(S,)`` each."""
        return final_loss(runs.ours, self.split), final_loss(runs.reference, self.split)


def normalised_loss(ours: Measurement, reference: Measurement, loss_scale: float, split: str = "train") -> Tensor:
    r"""Final loss on a scale with 0 for the median of the reference and 1 for an uninformed model: ``(S,)``.

    .. math:: \frac{\ell - b}{\max(1 - b, f)}

    with :math:`\ell` and the reference's median b in units of the uninformed loss, capped at 1.5, and f = 0.01. The
    result is below 0 if ours is lower. The two fixed points make tasks comparable, as in the evaluations of VeLO and
    Celo with a tuned Adam. If the reference is the best of several baselines, the result is the missed share of the
    possible gain.

    >>> ours, reference = (Measurement.of_losses(torch.tensor([1.0, end])) for end in (0.6, 0.2))
    >>> round(float(normalised_loss(ours, reference, loss_scale=1.0)), 3)  # (0.6 - 0.2) / (1 - 0.2)
    0.5
    """
    best = relative(final_loss(reference, split), loss_scale).quantile(0.5)
    return (relative(final_loss(ours, split), loss_scale) - best) / (1 - best).clamp(min=FLOOR)


class NormalisedLoss(_OnSplit):
    """IQM and median of :func:`normalised_loss` over all runs: 0 for the reference, 1 for an uninformed model.

    >>> ours, reference = (Measurement.of_losses(torch.tensor([1.0, end])) for end in (0.6, 0.2))
    >>> round(float(NormalisedLoss()(PairedRuns("bowl", 1.0, ours, reference))["iqm"]), 3)
    0.5
    """

    higher_is_better = False
    statistics = CENTRE

    def score(self, runs: PairedRuns) -> Tensor:
        return normalised_loss(runs.ours, runs.reference, runs.loss_scale, self.split)


class LossRatio(_OnSplit):
    r"""IQM and median of the reference's final loss over ours, as Celo reports them (https://arxiv.org/abs/2501.12670).

    .. math:: \frac{\ell_\text{reference} + f}{\ell_\text{ours} + f}

    Losses are in units of the uninformed loss. Because of f = 0.01, a memorised training set does not dominate the
    result. The result is above 1 if ours is lower.

    >>> ours, reference = (Measurement.of_losses(torch.tensor([1.0, end])) for end in (0.1, 0.32))
    >>> round(float(LossRatio()(PairedRuns("bowl", 1.0, ours, reference))["iqm"]), 3)  # 0.33 / 0.11
    3.0
    """

    higher_is_better = True
    statistics = CENTRE

    def score(self, runs: PairedRuns) -> Tensor:
        return (-log_ratio(*self.final_losses(runs), runs.loss_scale)).exp()


class WorstRegret(_OnSplit):
    """Factor >= 1 by which the final loss of ours is higher than the reference's, on the worst problem for ours.

    The factor is the maximum over problems of the median over seeds of the loss ratio ours / reference (with the floor
    of :class:`LossRatio`), or 1 if ours is never behind.

    >>> ours, reference = (Measurement.of_losses(torch.tensor([1.0, end])) for end in (0.32, 0.1))
    >>> round(float(WorstRegret()(PairedRuns("bowl", 1.0, ours, reference))["worst"]), 3)
    3.0
    """

    higher_is_better = False
    statistics = WORST

    def score(self, runs: PairedRuns) -> Tensor:
        return log_ratio(*self.final_losses(runs), runs.loss_scale).exp()


class WinRate(_OnSplit):
    """Share of runs with a lower final loss than the reference's run of the same seed; ties count half (:func:`wins`).

    >>> ours, reference = (Measurement.of_losses(torch.tensor([[1.0, 1.0], end])) for end in ([0.1, 0.3], [0.2, 0.2]))
    >>> float(WinRate()(PairedRuns("bowl", 1.0, ours, reference))["mean"])
    0.5
    """

    higher_is_better = True
    statistics = MEAN

    def score(self, runs: PairedRuns) -> Tensor:
        return wins(*self.final_losses(runs), runs.loss_scale)


class DivergenceRate(PairedMetric):
    """Share of runs of ours that diverge (see :func:`diverged`).

    >>> ours, reference = (Measurement.of_losses(torch.tensor([[1.0, 1.0], end])) for end in ([0.1, 9.0], [0.2, 0.2]))
    >>> float(DivergenceRate()(PairedRuns("bowl", 1.0, ours, reference))["mean"])
    0.5
    """

    higher_is_better = False
    statistics = MEAN

    def score(self, runs: PairedRuns) -> Tensor:
        return diverged(runs.ours, runs.loss_scale).to(torch.float64)


def smoothed(run: Measurement, loss_scale: float) -> Tensor:
    """Running mean of the training loss over :data:`SMOOTHING` windows, in units of the uninformed loss: ``(W, S)``.

    The values lie in [:data:`FLOOR`, 1.5]: losses below the floor count as equal.

    >>> smoothed(Measurement.of_losses(torch.tensor([4.0, 2.0, 0.0])), loss_scale=4.0).flatten()
    tensor([1.0000, 0.7500, 0.5000], dtype=torch.float64)
    """
    levels = relative(run.train, loss_scale)
    sums = torch.cat([torch.zeros_like(levels[:1]), levels.cumsum(0)])
    ends = torch.arange(1, len(levels) + 1)
    begins = (ends - SMOOTHING).clamp(min=0)
    return ((sums[ends] - sums[begins]) / (ends - begins)[:, None]).clamp(min=FLOOR)


def steps_to(run: Measurement, target: Tensor, loss_scale: float) -> Tensor:
    """Number of steps at the end of the first window whose :func:`smoothed` loss is at most ``target``; ``(S,)``.

    Args:
        run: a run.
        target: loss in units of the uninformed loss, shape ``(S,)``; if it is never reached, the result is infinite.
        loss_scale: the uninformed loss.

    >>> steps_to(Measurement.of_losses(torch.tensor([4.0, 2.0, 0.0])), torch.tensor([0.75]), loss_scale=4.0)
    tensor([2.], dtype=torch.float64)
    """
    ends = torch.tensor(window_ends(run.horizon), dtype=torch.float64)
    # The last digits of sums of many numbers depend on the order of the additions.
    reached = smoothed(run, loss_scale) <= target + 1e-9
    return torch.where(reached, ends[:, None], torch.inf).amin(0)


def step_speedup(ours: Measurement, reference: Measurement, loss_scale: float) -> Tensor:
    r"""Steps-to-target speed-up for each seed, shape ``(S,)``; it is above 1 if ours is faster.

    T is the horizon, and :math:`t_a(b)` is the first step at which optimizer a has a loss as low as the final loss of
    optimizer b (both smoothed). The speed-up depends on the final losses:

    - ours is lower: :math:`T / t_\text{ours}(\text{reference})`;
    - ours is higher: :math:`t_\text{reference}(\text{ours}) / T`, the inverse of the speed-up of the reference;
    - both are equal: :math:`t_\text{reference} / t_\text{ours}` to that level. All levels below the floor of 1 % of the
      uninformed loss are equal, and so are all runs that diverged.

    So an optimizer compared with itself has the speed-up 1, and exchanging the optimizers inverts the result. The whole
    horizon of the reference counts, so a plateau at its end counts against it, as in VeLO's definition. Times are ends
    of windows, so the result lies between 1/100 and 100 for 100 windows. A diverged run has about 1/100.

    >>> ours, reference = (Measurement.of_losses(torch.tensor([1.0, 1.0] + [end] * 8)) for end in (0.4, 0.5))
    >>> round(float(step_speedup(ours, reference, 1.0)), 3)  # the smoothed loss of ours is 0.5 after 7 of 10 steps
    1.429
    """
    end, reference_end = (smoothed(run, loss_scale)[-1] for run in (ours, reference))
    target = torch.maximum(end, reference_end)
    steps, reference_steps = steps_to(ours, target, loss_scale), steps_to(reference, target, loss_scale)
    is_tie = (end - reference_end).abs() <= 1e-9
    ratio = torch.where(end < reference_end, ours.horizon / steps, reference_steps / ours.horizon)
    return torch.where(is_tie, reference_steps / steps, ratio)


class StepSpeedup(PairedMetric):
    """IQM and median of :func:`step_speedup` over all runs.

    >>> ours, reference = (Measurement.of_losses(torch.tensor([1.0, 1.0] + [end] * 8)) for end in (0.4, 0.5))
    >>> round(float(StepSpeedup()(PairedRuns("bowl", 1.0, ours, reference))["iqm"]), 3)
    1.429
    """

    higher_is_better = True
    statistics = CENTRE

    def score(self, runs: PairedRuns) -> Tensor:
        return step_speedup(runs.ours, runs.reference, runs.loss_scale)


class WallClockSpeedup(PairedMetric):
    """Speed-up in seconds: :func:`step_speedup` times the ratio of the costs of a training step.

    Raises:
        ValueError: from ``update``, if the runs have no ``step_cost``.

    >>> ours, reference = (Measurement.of_losses(torch.tensor([1.0, 1.0] + [end] * 8)) for end in (0.4, 0.5))
    >>> runs = PairedRuns("bowl", 1.0, ours, reference, step_cost=0.7)  # a step with ours takes 1/0.7 times as long
    >>> round(float(WallClockSpeedup()(runs)["iqm"]), 3)
    1.0
    """

    higher_is_better = True
    statistics = CENTRE

    def score(self, runs: PairedRuns) -> Tensor:
        if not runs.step_cost > 0:
            raise ValueError(f"the comparison on {runs.problem!r} has no step_cost; measure the seconds of a step.")
        return step_speedup(runs.ours, runs.reference, runs.loss_scale) * runs.step_cost
