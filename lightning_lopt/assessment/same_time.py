"""What AdamW reaches in the time that the rule takes: a verdict counts seconds."""

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

SAME = 1.05  # times the time of a step up to which nothing changes: clocks are no better


@dataclass(frozen=True)
class LongerRuns:
    """Runs of AdamW that take as much time as those of the rule on one level.

    Attributes:
        horizon: steps of the rule.
        steps: steps of AdamW in the same time.
        adamw: losses by the learning rate's exponent and split, shape ``(S,)``.
    """

    horizon: int
    steps: int
    adamw: dict[int, dict[Split, Tensor]]

    def to_json(self) -> dict[str, Any]:
        return {"horizon": self.horizon, "steps": self.steps, "adamw": losses_json(self.adamw)}


def time_for_levels(seconds: float, slowdown: float) -> float:
    """How much of ``seconds`` the levels may take, so that longer runs of AdamW fit in behind them."""
    if slowdown < SAME:
        return seconds
    # in steps of AdamW: three seeds of the rule and of four rates, and then of three rates that are as slow as the rule
    return seconds / (1 + 3 * slowdown / (slowdown + 4))


def longer_runs(
    rule: UpdateRule, task: Task, levels: Sequence[Level], *, slowdown: float, until: float, at_most: float
) -> LongerRuns | None:
    """Runs of AdamW with ``slowdown`` times the steps of the longest level for which there is time, at the learning
    rate that was best on the last level and its neighbours.

    Args:
        slowdown: time of a training step with the rule over that with AdamW.
        until: what ``time.perf_counter()`` should show at the end.
        at_most: what it may show.

    Returns:
        ``None`` where the rule takes no longer, or there is no time.
    """
    if slowdown < SAME:
        return None
    best = {levels[-1].best(split) for split in levels[-1].rule}
    exponents = sorted({exponent + offset for exponent in best for offset in (-1, 0, 1)})
    for level in reversed(levels):
        steps, seeds = math.ceil(level.horizon * slowdown), len(level.rule["train"])
        cost = PilotSeconds.of(level)
        cost = PilotSeconds(
            cost.step * (1 + len(level.adamw)) / (slowdown + len(level.adamw)), cost.run
        )  # of AdamW alone
        if cost.horizon(until - time.perf_counter(), len(exponents) * seeds) < steps:
            continue
        try:
            found = adamw_runs(rule, task, exponents, horizon=steps, until=at_most, seeds=seeds)
        except OutOfTime:
            return None
        return LongerRuns(level.horizon, steps, found)
    return None


def in_the_same_time(levels: Sequence[Level], longer: LongerRuns | None, slowdown: float) -> list[Level]:
    r"""The levels with AdamW as it is after ``slowdown`` times as many steps, where that is known.

    AdamW's loss at the best rate is known at the horizons of the levels and of the longer runs; in between it is
    interpolated over the logarithm of the horizon (in its logarithm too where all losses are positive, so a power law
    :math:`h^{-a}` is met). Fewer steps are allowed in the same time, so no loss is higher than that of the level.

    Args:
        levels: from short to long.
        longer: see :func:`longer_runs`.
        slowdown: factor on the steps; below 1 it counts as 1.
    """
    if slowdown < SAME:
        return list(levels)
    timed = []
    for level in levels:
        found: dict[Split, Tensor] = {}
        for split in level.rule:
            losses = _after(levels, longer, level, split, slowdown)
            if losses is not None:
                found[split] = losses
        if found.keys() == level.rule.keys():
            timed.append(replace(level, adamw={0: found}))
    return timed


def _after(
    levels: Sequence[Level], longer: LongerRuns | None, level: Level, split: Split, slowdown: float
) -> Tensor | None:
    """AdamW's losses by seed after ``slowdown`` times the level's steps, or after its steps where they are lower."""
    here = level.adamw[level.best(split)][split]
    if longer is not None and longer.horizon == level.horizon:
        there = _best(longer.adamw, split)
        return there if _middle(there) < _middle(here) else here
    curve = {other.horizon: _middle(other.adamw[other.best(split)][split]) for other in levels}
    if longer is not None:
        curve[longer.steps] = _middle(_best(longer.adamw, split))
    middle = _middle(here)
    end = _interpolated(curve, level.horizon * slowdown)
    if end is None or not math.isfinite(middle):
        return None
    end = min(end, middle)
    return here * (end / middle) if middle > 0 and end > 0 else here + (end - middle)


def _best(adamw: dict[int, dict[Split, Tensor]], split: Split) -> Tensor:
    return min((found[split] for found in adamw.values()), key=_middle)


def _middle(losses: Tensor) -> float:
    return float(torch.nan_to_num(losses.double(), nan=torch.inf).median())


def _interpolated(curve: dict[int, float], at: float) -> float | None:
    """The loss at a horizon; ``None`` beyond the longest.

    >>> round(_interpolated({10: 1.0, 1000: 0.01}, 100.0), 6)
    0.1
    """
    points = sorted((horizon, loss) for horizon, loss in curve.items() if math.isfinite(loss))
    for (h0, y0), (h1, y1) in pairwise(points):
        if h0 <= at <= h1:
            share = math.log(at / h0) / math.log(h1 / h0)
            if y0 > 0 and y1 > 0:
                return math.exp(math.log(y0) + share * math.log(y1 / y0))
            return y0 + share * (y1 - y0)
    return None
