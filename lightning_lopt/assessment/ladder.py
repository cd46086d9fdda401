"""Pilots at growing horizons, as long as there is time; later levels sweep AdamW's learning rate near the best one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_lopt.assessment.pilot_task import MEASURED
from lightning_lopt.assessment.pilots import DEFAULT, SEEDS, Level, OutOfTime, run_level
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.base import Task

SWEEPS = (tuple(range(-9, -1)), (-8, -6, -4, -2), (DEFAULT,))
"""Exponents of the learning rates of the first level: the full sweep in steps of half a decade, a sweep in steps of a
decade for less time, and the default rate alone for the least time."""
SHORTEST = 5  # least number of steps of a pilot
LEVELS = 4
LARGEST_GROWTH = 8.0


@dataclass(frozen=True)
class PilotSeconds:
    """Seconds of a pilot.

    Attributes:
        step: seconds for each step of one run.
        run: further seconds for each run, independent of its length.
    """

    step: float
    run: float

    @classmethod
    def of(cls, level: Level) -> PilotSeconds:
        """Seconds measured on a level."""
        return cls((level.seconds - level.measuring) / (level.horizon * level.runs), level.measuring / level.runs)

    def seconds(self, horizon: int, runs: int) -> float:
        """Seconds of ``runs`` runs of ``horizon`` steps."""
        return runs * (horizon * self.step + self.run)

    def horizon(self, seconds: float, runs: int) -> int:
        """The longest horizon of ``runs`` runs for which four fifths of ``seconds`` are enough."""
        return int((0.8 * seconds / runs - self.run) / self.step)


def run_levels(
    rule: UpdateRule,
    task: Task,
    *,
    total_steps: int,
    seconds_per_step: float,
    until: float,
    at_most: float,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Level]:
    """Levels of pilots from short to long, in the available time.

    The first level has one seed, and sweeps AdamW's learning rate over as many rates of :data:`SWEEPS` as there is time
    for. The default rate alone is run even if it takes until ``at_most``. Each later level has three seeds. Its rates
    are the best rate of the previous level, the two neighbours of this rate (half a decade away), and torch's default.
    The horizon grows at least by a factor of 2 from level to level. It is chosen from the measured speed, such that the
    last level ends shortly before ``until``. No horizon exceeds ``total_steps``.

    Args:
        seconds_per_step: seconds of one step of one run, for the first level.
        until: planned end, on the clock ``time.perf_counter()``.
        at_most: latest end, if the machine becomes slower; the results of a level that takes longer are lost.
        tell: function that receives a line before and after each level.

    Returns:
        the finished levels, possibly none.
    """
    levels: list[Level] = []
    cost = PilotSeconds(seconds_per_step, 2 * MEASURED * seconds_per_step / 3)  # a forward pass is a third of a step
    exponents, horizon = first_level(cost, until - time.perf_counter(), total_steps)
    if not horizon and cost.seconds(SHORTEST, 2) < at_most - time.perf_counter():
        exponents, horizon = SWEEPS[-1], min(SHORTEST, total_steps)
    while horizon:
        seeds = SEEDS if levels else 1
        tell(f"pilots of {horizon} steps begin")
        try:
            levels.append(run_level(rule, task, exponents, horizon=horizon, until=at_most, seeds=seeds))
        except OutOfTime:
            break
        level = levels[-1]
        cost = PilotSeconds.of(level)
        tell(f"pilots of {horizon} steps: {level.seconds:.1f} s")
        remaining_levels = LEVELS - len(levels)
        if horizon == total_steps or not remaining_levels:
            break
        best = {level.best(split) for split in level.rule}
        exponents = sorted({b + offset for b in best for offset in (-1, 0, 1)} | {DEFAULT})
        runs = (len(exponents) + 1) * SEEDS
        horizon = next_horizon(cost, until - time.perf_counter(), horizon, remaining_levels, runs, total_steps)
    return levels


def first_level(cost: PilotSeconds, seconds: float, total_steps: int) -> tuple[Sequence[int], int]:
    """Exponents of the rates and horizon of the first level, with as many rates as there is time for."""
    for exponents in SWEEPS:
        horizon = next_horizon(cost, seconds, 0, LEVELS, len(exponents) + 1, total_steps)
        if horizon:
            return exponents, horizon
    return (), 0


def next_horizon(
    cost: PilotSeconds, seconds: float, previous_horizon: int, levels: int, runs: int, total_steps: int
) -> int:
    """Horizon of the next level; 0 if there is no time for twice the previous horizon.

    The largest possible number of levels is planned; the time for measuring losses counts.

    Args:
        cost: measured or estimated cost of a pilot.
        seconds: seconds for this and later levels; a fifth of this time is a reserve.
        previous_horizon: horizon of the previous level; 0 for the first level.
        levels: largest number of further levels, >= 1.
        runs: number of runs on the next level.
        total_steps: largest horizon.

    >>> second = PilotSeconds(step=1.0, run=0.0)
    >>> next_horizon(second, 15 * 100, 25, 1, 15, 1000)  # the last level takes four fifths of the remaining time
    80
    >>> next_horizon(second, 15 * 100, 50, 1, 15, 1000), next_horizon(second, 15 * 100, 50, 1, 15, 80)
    (0, 80)
    >>> next_horizon(PilotSeconds(step=1.0, run=30.0), 10 * 50, 0, 4, 10, 1000)  # time for one level only
    5
    """

    def steps_available(count: int) -> float:
        """Steps of each run if the next level used all remaining time, except the time for measuring losses on
        ``count`` levels."""
        measuring = cost.run * (runs + (count - 1) * 5 * SEEDS)
        return (0.8 * seconds - measuring) / (cost.step * runs)

    if previous_horizon == 0:  # later levels have about 1.6 times as many runs
        for count in range(levels, 0, -1):
            first_horizon = int(steps_available(count) / (1 + 1.6 * sum(2**level for level in range(1, count))))
            # The speed is only estimated, so this level uses an eighth of its time, and later levels use the remainder.
            if first_horizon >= SHORTEST:
                return min(total_steps, max(SHORTEST, min(first_horizon // 8, total_steps >> (levels - 1))))
        return 0
    if total_steps <= 2 * previous_horizon:
        return total_steps if previous_horizon < total_steps <= steps_available(1) else 0
    for count in range(levels, 0, -1):
        growth = _growth(steps_available(count) / previous_horizon, count)
        if growth >= 2:
            return min(round(previous_horizon * growth), total_steps)
    return 0


def _growth(ratio: float, count: int) -> float:
    """The solution g of :math:`g + g^2 + ... + g^{count} =` ``ratio``, at most ``LARGEST_GROWTH``."""
    low, high = 0.0, LARGEST_GROWTH
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**k for k in range(1, count + 1)) < ratio else (low, middle)
    return low
