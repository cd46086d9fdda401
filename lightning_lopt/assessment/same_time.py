"""Losses of AdamW with as much time as the rule takes: a verdict compares optimizers in steps and in seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.assessment.ladder import PilotSeconds
from lightning_lopt.assessment.pilots import Level, OutOfTime, adamw_runs, losses_json
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.base import Split, Task

EQUAL_SLOWDOWN = 1.05  # below this slowdown, times count as equal: clocks are not more precise


@dataclass(frozen=True)
class LongerRuns:
    """Runs of AdamW that take as much time as the runs of the rule on one level.

    Attributes:
        horizon: steps of the rule.
        steps: steps of AdamW in the same time.
        adamw: losses by the exponent of the learning rate and by split, shape ``(S,)``.
    """

    horizon: int
    steps: int
    adamw: dict[int, dict[Split, Tensor]]

    def to_json(self) -> dict[str, Any]:
        return {"horizon": self.horizon, "steps": self.steps, "adamw": losses_json(self.adamw)}


def time_for_levels(seconds: float, slowdown: float) -> float:
    """The part of ``seconds`` for the levels; the longer runs of AdamW need the remainder."""
    if slowdown < EQUAL_SLOWDOWN:
        return seconds
    # In units of AdamW's step time, the levels take slowdown + 4 (rule and four rates), the longer runs 3 x slowdown.
    return seconds / (1 + 3 * slowdown / (slowdown + 4))


def longer_runs(
    rule: UpdateRule, task: Task, levels: Sequence[Level], *, slowdown: float, until: float, at_most: float
) -> LongerRuns | None:
    """Runs of AdamW with ``slowdown`` times the steps of the longest level for which there is time.

    The learning rates are the best rate of the last level and its two neighbours.

    Args:
        slowdown: time of a training step with the rule, divided by the time with AdamW.
        until: planned end, on the clock ``time.perf_counter()``.
        at_most: latest end.

    Returns:
        the runs; ``None`` if the rule is not slower than AdamW, or there is no time.
    """
    if slowdown < EQUAL_SLOWDOWN:
        return None
    best = {levels[-1].best(split) for split in levels[-1].rule}
    exponents = sorted({exponent + offset for exponent in best for offset in (-1, 0, 1)})
    for level in reversed(levels):
        steps, seeds = math.ceil(level.horizon * slowdown), len(level.rule["train"])
        measured = PilotSeconds.of(level)
        step_of_adamw = measured.step * (1 + len(level.adamw)) / (slowdown + len(level.adamw))
        cost = PilotSeconds(step_of_adamw, measured.run)
        if cost.horizon(until - time.perf_counter(), len(exponents) * seeds) < steps:
            continue
        try:
            adamw_losses = adamw_runs(rule, task, exponents, horizon=steps, until=at_most, seeds=seeds)
        except OutOfTime:
            return None
        return LongerRuns(level.horizon, steps, adamw_losses)
    return None


def in_the_same_time(levels: Sequence[Level], longer: LongerRuns | None, slowdown: float) -> list[Level]:
    r"""Levels with the losses of AdamW after ``slowdown`` times as many steps, if these losses can be interpolated.

    AdamW's loss at the best rate was measured at the horizons of the levels and of the longer runs. Between these
    horizons the loss is interpolated over the logarithm of the horizon. If all losses are positive, their logarithm is
    interpolated, which is exact for a power law :math:`h^{-a}`. A loss is never higher than the loss on the level
    itself, because AdamW may also make fewer steps.

    Args:
        levels: from short to long.
        longer: see :func:`longer_runs`.
        slowdown: factor on the steps; below 1 it counts as 1.
    """
    if slowdown < EQUAL_SLOWDOWN:
        return list(levels)
    timed = []
    for level in levels:
        losses_by_split: dict[Split, Tensor] = {}
        for split in level.rule:
            losses = _losses_in_same_time(levels, longer, level, split, slowdown)
            if losses is not None:
                losses_by_split[split] = losses
        if losses_by_split.keys() == level.rule.keys():
            timed.append(replace(level, adamw={0: losses_by_split}))
    return timed


def _losses_in_same_time(
    levels: Sequence[Level], longer: LongerRuns | None, level: Level, split: Split, slowdown: float
) -> Tensor | None:
    """AdamW's losses by seed after the level's steps or after ``slowdown`` times these steps: the lower losses."""
    same_steps = level.adamw[level.best(split)][split]
    if longer is not None and longer.horizon == level.horizon:
        same_time = _best_losses(longer.adamw, split)
        return same_time if _median_loss(same_time) < _median_loss(same_steps) else same_steps
    curve = {pilot.horizon: _median_loss(pilot.adamw[pilot.best(split)][split]) for pilot in levels}
    if longer is not None:
        curve[longer.steps] = _median_loss(_best_losses(longer.adamw, split))
    median = _median_loss(same_steps)
    end = _interpolated(curve, level.horizon * slowdown)
    if end is None or not math.isfinite(median):
        return None
    end = min(end, median)
    return same_steps * (end / median) if median > 0 and end > 0 else same_steps + (end - median)


def _best_losses(adamw: dict[int, dict[Split, Tensor]], split: Split) -> Tensor:
    return min((losses[split] for losses in adamw.values()), key=_median_loss)


def _median_loss(losses: Tensor) -> float:
    return float(torch.nan_to_num(losses.double(), nan=torch.inf).median())


def _interpolated(curve: dict[int, float], horizon: float) -> float | None:
    """The interpolated loss at ``horizon``; ``None`` outside the measured horizons.

    >>> round(_interpolated({10: 1.0, 1000: 0.01}, 100.0), 6)
    0.1
    """
    points = sorted((measured, loss) for measured, loss in curve.items() if math.isfinite(loss))
    for (h0, y0), (h1, y1) in pairwise(points):
        if h0 <= horizon <= h1:
            share = math.log(horizon / h0) / math.log(h1 / h0)
            if y0 > 0 and y1 > 0:
                return math.exp(math.log(y0) + share * math.log(y1 / y0))
            return y0 + share * (y1 - y0)
    return None
