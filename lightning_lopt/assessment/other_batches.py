"""Pilots on other batches than the planned ones: other batch sizes, and as many passes over the data as planned."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_lopt.assessment.ladder import SHORTEST, PilotSeconds
from lightning_lopt.assessment.outlook import level_log_ratio
from lightning_lopt.assessment.pilot_task import PilotTask
from lightning_lopt.assessment.pilots import SEEDS, Level, OutOfTime, run_level
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.base import Task
from lightning_lopt.tasks.users_code import named

FACTORS = (0.5, 2.0)  # of the batch size; 1 is what the levels have
FEW = 1.5  # passes over the data in which nothing is memorised


@dataclass(frozen=True)
class OtherBatches:
    """Pilots with another batch size.

    Attributes:
        factor: batch size over the planned one.
        size: the batch size.
        level: pilots of the rule and of AdamW at the rate that was best with the planned batches.
    """

    factor: float
    size: int
    level: Level

    def to_json(self) -> dict[str, Any]:
        ratio = float(level_log_ratio(self.level, "train").mean())
        return {"factor": self.factor, "size": self.size, "log_ratio": round(ratio, 4), **self.level.to_json()}


def with_other_batches(
    rule: UpdateRule,
    tasks: Sequence[tuple[float, int, Task]],
    levels: Sequence[Level],
    until: float,
    notes: list[str],
) -> list[OtherBatches]:
    """The pilots of the longest level that fits, once for each ``(factor, size, task)``, in the time there is.

    Args:
        notes: is given a sentence where the module fails with other batches.
        until: what ``time.perf_counter()`` may show at the end.
    """
    found: list[OtherBatches] = []
    last = levels[-1]
    for index, (factor, size, task) in enumerate(tasks):
        if time.perf_counter() > until:
            break
        share = (until - time.perf_counter()) * factor / sum(other for other, _, _ in tasks[index:])
        horizon = min(last.horizon, PilotSeconds.of(last).horizon(share / max(1.0, factor), 2 * SEEDS))
        if horizon < SHORTEST:
            continue
        try:
            level = run_level(rule, task, [last.best("train")], horizon=horizon, until=until)
        except OutOfTime:
            break
        except Exception as error:
            notes.append(f"pilots with batches of {size} fail ({named(error)})")
            continue
        found.append(OtherBatches(factor, size, level))
    return found


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
    horizon = min(
        last.horizon, PilotSeconds.of(last).horizon(until - time.perf_counter(), SEEDS * (1 + len(exponents)))
    )
    count = batches_for(horizon, total_steps=total_steps, length=length)
    if horizon < SHORTEST or count is None or count > task.batches:
        return None
    try:
        return run_level(rule, task.fewer(count), exponents, horizon=horizon, until=at_most)
    except OutOfTime:
        return None
