"""Extrapolation of the rule's lead over AdamW from short pilots to the planned run, with an uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lopt.assessment.pilots import DEFAULT, Level
from lightning_lopt.evaluation.metrics import CAP, log_ratio
from lightning_lopt.tasks.base import Split

DRIFT = 0.03  # uncertainty of the log-ratio per doubling of the horizon, in addition to the uncertainty of its trend
DRIFT_UNKNOWN = 0.2  # uncertainty per doubling if there is only one horizon
GAP_DRIFT = 0.02  # further uncertainty per doubling for each gap of meta-training
NOISE = 2.0  # half the width of the interval, in standard errors
SINGLE = 0.1  # assumed standard error if there is only one seed
SLOWEST = 0.8  # a change shrinks at least by this factor per doubling


@dataclass(frozen=True)
class Outlook:
    """Log-ratio of the rule's final loss to AdamW's final loss; it is below 0 if the rule is ahead.

    Attributes:
        pilots: ``(horizon, log-ratio)`` of each level, means over seeds.
        expected: expected log-ratio of the planned run.
        uncertainty: half the width of the interval around the expected log-ratio.
        doublings: doublings of the horizon from the longest pilot to the planned run.
        losses: losses of the rule and of AdamW in the longest pilot, medians over seeds.
        positive: whether all losses are positive; if not, see :func:`level_log_ratio`.
    """

    pilots: list[tuple[int, float]]
    expected: float
    uncertainty: float
    doublings: float
    losses: tuple[float, float]
    positive: bool

    @property
    def ahead(self) -> bool:
        return self.expected + self.uncertainty < 0

    @property
    def behind(self) -> bool:
        return self.expected - self.uncertainty > 0


def outlook(
    levels: Sequence[Level],
    split: Split,
    total_steps: int,
    *,
    gaps: int,
    default: bool = False,
    matched: Level | None = None,
) -> Outlook:
    r"""Extrapolate the log-ratio :math:`y` over horizons to ``total_steps``.

    Short runs favour large steps, so a rule with limited steps is behind at first and comes closer at longer horizons
    (Wu et al., 2018, "Understanding short-horizon bias"). The change of y per doubling of the horizon is extrapolated.
    It shrinks from doubling to doubling, at the rate of the last three levels. If the change has changed its sign, a
    lead that began to shrink is assumed to shrink further, and other changes count as noise. The uncertainty is

    .. math:: \sqrt{(2\,\mathrm{se})^2 + (\tfrac12 |\hat y - y_{last}| + d\,n)^2}

    with the standard error se over seeds, the number n of doublings, and the drift d per doubling, by number of levels:

    =============  =================================================================
    one            0.2
    two            half of the change per doubling between the levels, at least 0.03
    three or more  0.03
    =============  =================================================================

    Each gap adds 0.02 to the drift. A pilot with as many passes over its data as the planned run replaces the expected
    validation log-ratio if the pilot is less favourable; half of the difference is then added to the uncertainty.

    Args:
        levels: at least one level, from short to long.
        gaps: number of properties of the plan that meta-training did not cover.
        default: whether to compare with torch's default learning rate instead of the best rate.
        matched: the pilot with the planned number of passes; ``None`` if it was not run.
    """
    ratios = [level_log_ratio(level, split, default=default) for level in levels]
    points = [(level.horizon, float(ratio.mean())) for level, ratio in zip(levels, ratios, strict=True)]
    last_ratio, doublings = points[-1][1], _doublings(levels[-1], total_steps)
    expected = last_ratio + _change(points, doublings)
    drift = _drift(points) + GAP_DRIFT * gaps
    spread = math.hypot(NOISE * _error(ratios[-1]), abs(expected - last_ratio) / 2 + drift * doublings)
    if matched is not None and split == "valid" and not default:
        ratio = level_log_ratio(matched, split)
        if float(ratio.mean()) > expected:
            half_gap = (float(ratio.mean()) - expected) / 2
            expected = float(ratio.mean())
            spread = math.hypot(NOISE * _error(ratio), drift * _doublings(matched, total_steps), half_gap)
    rule, adamw, positive = _losses(levels[-1], split, default)
    medians = tuple(float(torch.nan_to_num(losses, nan=torch.inf).median()) for losses in (rule, adamw))
    return Outlook(points, expected, spread, doublings, (medians[0], medians[1]), positive)


def _doublings(level: Level, total_steps: int) -> float:
    return math.log2(max(1.0, total_steps / level.horizon))


def _error(ratio: Tensor) -> float:
    """Standard error of the mean over seeds."""
    return float(ratio.std()) / math.sqrt(len(ratio)) if len(ratio) > 1 else SINGLE


def level_log_ratio(level: Level, split: Split, *, default: bool = False) -> Tensor:
    r"""For each seed :math:`\log \frac{L + f s}{R + f s}`, with the losses L of the rule, R of AdamW, s at the start.

    This is :func:`~lightning_lopt.evaluation.metrics.log_ratio`, with its floor f and its cap. The unit is the loss at
    the start, because the uninformed loss of a user's module is not known. If a loss is negative (as a log-density may
    be), the result is :math:`(L - R) / (s - R)` instead, with medians over seeds in the denominator: the rule's lag as
    a share of AdamW's decrease of the loss.
    """
    start = level.start[split].double()
    rule, adamw, positive = _losses(level, split, default)
    if positive:
        return log_ratio(rule, adamw, start)
    decrease = (start.median() - adamw.median()).abs().clamp(min=1e-12)
    return torch.where(rule.isfinite(), (rule - adamw) / decrease, CAP).clamp(-CAP, CAP)


def _drift(points: Sequence[tuple[int, float]]) -> float:
    if len(points) == 1:
        return DRIFT_UNKNOWN
    (h0, y0), (h1, y1) = points[-2:]
    return DRIFT if len(points) > 2 else max(DRIFT, abs(y1 - y0) / math.log2(h1 / h0) / 2)


def _losses(level: Level, split: Split, default: bool) -> tuple[Tensor, Tensor, bool]:
    """Losses of the rule and of AdamW, and whether these losses and the losses at the start are all positive."""
    exponent = DEFAULT if default else level.best(split)
    pair = level.rule[split].double(), level.adamw[exponent][split].double()
    all_losses = torch.cat([level.start[split].double(), *pair])
    return *pair, bool((all_losses[all_losses.isfinite()] > 0).all())


def _change(points: Sequence[tuple[int, float]], doublings: float) -> float:
    """The extrapolated change of y over ``doublings``."""
    if len(points) < 3 or doublings <= 0:
        return 0.0
    slopes, widths = [], []
    for (h0, y0), (h1, y1) in zip(points[-3:-1], points[-2:], strict=True):
        widths.append(math.log2(h1 / h0))
        slopes.append((y1 - y0) / widths[-1])
    distance = (widths[0] + widths[1]) / 2  # doublings between the middles of the two intervals
    if slopes[0] * slopes[1] > 0:
        shrink = min(SLOWEST, (slopes[1] / slopes[0]) ** (1 / distance))
    elif slopes[1] > 0:
        shrink = SLOWEST
    else:
        return 0.0
    last_slope = slopes[1] * shrink ** (widths[1] / 2)
    return float(last_slope * (1 - shrink**doublings) / -math.log(shrink))
