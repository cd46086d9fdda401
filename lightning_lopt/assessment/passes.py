"""A pilot that goes over its data as often as the planned run: what memorising will do, seen early."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lightning_lopt.assessment.ladder import SHORTEST, Cost
from lightning_lopt.assessment.pilot_task import PilotTask
from lightning_lopt.assessment.pilots import SEEDS, Level, OutOfTime, run_level
from lightning_lopt.rules.base import UpdateRule

FEW = 1.5  # passes over the data in which nothing is memorised


def batches_for(horizon: int, *, total_steps: int, length: int | None) -> int | None:
    """How many batches a pilot needs to go over them as often as ``total_steps`` go over ``length``.

    ``None`` where that is unknown, or so few passes are planned that it does not matter.

    >>> batches_for(100, total_steps=1000, length=200), batches_for(100, total_steps=1000, length=900)
    (20, None)
    """
    if not length or total_steps < FEW * length:
        return None
    return max(1, round(length * horizon / total_steps))


def with_planned_passes(
    rule: UpdateRule,
    task: PilotTask,
    levels: Sequence[Level],
    *,
    total_steps: int,
    length: int | None,
    until: float,
    at_most: float,
) -> Level | None:
    """Pilots about as long as the last level's on so few batches that they go over them as often as the planned run.

    Args:
        length: batches of the training data, ``None`` if unknown.
        until: what ``time.perf_counter()`` may show at the end if all goes well.
        at_most: what it may show.

    Returns:
        ``None`` where they would say nothing new, or there is no time.
    """
    last = levels[-1]
    if last.horizon == total_steps or "valid" not in last.rule:
        return None
    best = last.best("valid")
    exponents = [best - 1, best, best + 1]  # memorising wants smaller steps, fewer data larger ones
    horizon = min(last.horizon, Cost.of(last).horizon(until - time.perf_counter(), SEEDS * (1 + len(exponents))))
    count = batches_for(horizon, total_steps=total_steps, length=length)
    if horizon < SHORTEST or count is None or count > task.batches:
        return None
    try:
        return run_level(rule, task.fewer(count), exponents, horizon=horizon, until=at_most)
    except OutOfTime:
        return None
