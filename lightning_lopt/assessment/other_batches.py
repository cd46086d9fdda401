"""Pilots with other batch sizes, and pilots with the planned number of passes over the data."""

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

FACTORS = (0.5, 2.0)  # factors on the batch size; the levels have the factor 1
FEW_PASSES = 1.5  # with fewer passes over the data, a model does not memorise the data


@dataclass(frozen=True)
class OtherBatches:
    """Pilots with another batch size.

    Attributes:
        factor: batch size divided by the planned batch size.
        size: batch size.
        level: pilots of the rule, and of AdamW at the best rate for the planned batches.
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
    """Pilots for each ``(factor, size, task)``, as long as the longest level or as there is time.

    Args:
        notes: a sentence is added to this list if the module fails with other batches.
        until: latest end, on the clock ``time.perf_counter()``.
    """
    results: list[OtherBatches] = []
    last_level = levels[-1]
    for index, (factor, size, task) in enumerate(tasks):
        if time.perf_counter() > until:
            break
        share = (until - time.perf_counter()) * factor / sum(later_factor for later_factor, _, _ in tasks[index:])
        horizon = min(last_level.horizon, PilotSeconds.of(last_level).horizon(share / max(1.0, factor), 2 * SEEDS))
        if horizon < SHORTEST:
            continue
        try:
            level = run_level(rule, task, [last_level.best("train")], horizon=horizon, until=until)
        except OutOfTime:
            break
        except Exception as error:
            notes.append(f"pilots with batches of {size} fail ({named(error)})")
            continue
        results.append(OtherBatches(factor, size, level))
    return results


def batches_for(horizon: int, *, total_steps: int, length: int | None) -> int | None:
    """Number of batches with which a pilot has as many passes over its data as ``total_steps`` over ``length`` batches.

    The result is ``None`` if ``length`` is unknown, or if fewer than 1.5 passes are planned.

    >>> batches_for(100, total_steps=1000, length=200), batches_for(100, total_steps=1000, length=900)
    (20, None)
    """
    if not length or total_steps < FEW_PASSES * length:
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
    """Pilots with fewer batches, such that the number of passes over the batches equals that of the planned run.

    The pilots are about as long as the pilots of the last level.

    Args:
        length: number of batches of the training data; ``None`` if it is unknown.
        until: planned end, on the clock ``time.perf_counter()``.
        at_most: latest end.

    Returns:
        the pilots; ``None`` if they would equal the pilots of the last level, or there is no time.
    """
    last_level = levels[-1]
    if last_level.horizon == total_steps or "valid" not in last_level.rule:
        return None
    best = last_level.best("valid")
    exponents = [best - 1, best, best + 1]  # the best rate may be lower (memorising) or higher (fewer data)
    horizon = min(
        last_level.horizon,
        PilotSeconds.of(last_level).horizon(until - time.perf_counter(), SEEDS * (1 + len(exponents))),
    )
    count = batches_for(horizon, total_steps=total_steps, length=length)
    if horizon < SHORTEST or count is None or count > task.batches:
        return None
    try:
        return run_level(rule, task.fewer(count), exponents, horizon=horizon, until=at_most)
    except OutOfTime:
        return None
