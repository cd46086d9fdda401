r"""Speed-up in steps and in seconds.

VeLO (Metz et al., 2022, https://arxiv.org/abs/2211.09760) and Celo (Moudgil et al., 2025,
https://arxiv.org/abs/2501.12670) count the steps that a learned optimizer needs for the final loss of a tuned Adam.
Here the steps of the optimizer that ends lower are counted, so that defeats count as much as wins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lopt.evaluation.measurement import Measurement, window_ends
from lightning_lopt.evaluation.metrics.base import PairedMetric, PairedRuns
from lightning_lopt.evaluation.metrics.bootstrap import CENTRE
from lightning_lopt.evaluation.metrics.losses import FLOOR, relative

SMOOTHING = 5  # windows: 5 % of a run


def smoothed(run: Measurement, loss_scale: float) -> Tensor:
    """Training loss, a mean over the last :data:`SMOOTHING` windows, in units of the uninformed loss: ``(W, S)``.

    It lies in [:data:`FLOOR`, 1.5]: losses below the floor count as equal.
    """
    levels = relative(run.train, loss_scale)
    sums = torch.cat([torch.zeros_like(levels[:1]), levels.cumsum(0)])
    ends = torch.arange(1, len(levels) + 1)
    begins = (ends - SMOOTHING).clamp(min=0)
    return ((sums[ends] - sums[begins]) / (ends - begins)[:, None]).clamp(min=FLOOR)


def steps_to(run: Measurement, target: Tensor, loss_scale: float) -> Tensor:
    """Steps made at the end of the first window whose :func:`smoothed` loss is at most ``target``; ``(S,)``.

    Args:
        run: a run.
        target: in units of the uninformed loss, shape ``(S,)``; where it is never reached, the result is infinite.
        loss_scale: the uninformed loss.
    """
    ends = torch.tensor(window_ends(run.horizon), dtype=torch.float64)
    # The last digits of sums of many numbers depend on the order of the additions.
    reached = smoothed(run, loss_scale) <= target + 1e-9
    return torch.where(reached, ends[:, None], torch.inf).amin(0)


def step_speedup(ours: Measurement, reference: Measurement, loss_scale: float) -> Tensor:
    r"""Steps-to-target speed-up for each seed, shape ``(S,)``; above 1 where ours is faster.

    With T the horizon and :math:`t_a(b)` the step at which a first reaches the loss at which b ends (both smoothed):

    - ours ends lower: :math:`T / t_\text{ours}(\text{reference})`;
    - ours ends higher: :math:`t_\text{reference}(\text{ours}) / T`, the inverse of the speed-up of the reference;
    - both end on the same level, which includes all levels below the floor of 1 % of the uninformed loss and all runs
      that diverged: :math:`t_\text{reference} / t_\text{ours}` to that level.

    So an optimizer compared with itself has 1, and exchanging the two inverts the result. A plateau at the end of a
    reference counts against it, as in VeLO's definition, since its whole horizon counts. Times are ends of windows, so
    the result lies between the number of windows (100) and its inverse; a run that diverges has about the latter.
    """
    end_ours, end_reference = (smoothed(run, loss_scale)[-1] for run in (ours, reference))
    target = torch.maximum(end_ours, end_reference)
    t_ours, t_reference = steps_to(ours, target, loss_scale), steps_to(reference, target, loss_scale)
    same = (end_ours - end_reference).abs() <= 1e-9
    ratio = torch.where(end_ours < end_reference, ours.horizon / t_ours, t_reference / ours.horizon)
    return torch.where(same, t_reference / t_ours, ratio)


class StepSpeedup(PairedMetric):
    """IQM and median of :func:`step_speedup` over all runs."""

    higher_is_better = True
    statistics = CENTRE

    def score(self, runs: PairedRuns) -> Tensor:
        return step_speedup(runs.ours, runs.reference, runs.loss_scale)


class WallClockSpeedup(PairedMetric):
    """Speed-up in seconds: :func:`step_speedup` times the ratio of the costs of a training step.

    Raises:
        ValueError: from ``update``, if the runs have no ``step_cost``.
    """

    higher_is_better = True
    statistics = CENTRE

    def score(self, runs: PairedRuns) -> Tensor:
        if not runs.step_cost > 0:
            raise ValueError(f"the comparison on {runs.problem!r} has no step_cost; measure what a step takes.")
        return step_speedup(runs.ours, runs.reference, runs.loss_scale) * runs.step_cost
