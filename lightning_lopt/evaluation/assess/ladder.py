"""Pilots at growing horizons, as long as time allows, while AdamW's learning rate is swept ever more finely."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_lopt.evaluation.assess.pilots import DEFAULT, SEEDS, Level, OutOfTime, run_level
from lightning_lopt.evaluation.assess.task import MEASURED
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.base import Task

SWEEP = tuple(range(-9, -1))  # exponents of the first level: learning rates from 3e-5 to 1e-1
SHORTEST = 5  # steps of a pilot: fewer say nothing
LEVELS = 4
LARGEST_GROWTH = 8.0


@dataclass(frozen=True)
class Cost:
    """Seconds of a pilot.

    Attributes:
        step: for each step of one run.
        run: for each run, whatever its length.
    """

    step: float
    run: float

    @classmethod
    def of(cls, level: Level) -> Cost:
        """As it was on a level."""
        return cls((level.seconds - level.measuring) / (level.horizon * level.runs), level.measuring / level.runs)

    def horizon(self, seconds: float, runs: int) -> int:
        """The longest horizon of ``runs`` runs that four fifths of ``seconds`` are enough for."""
        return int((0.8 * seconds / runs - self.run) / self.step)


def climb(
    rule: UpdateRule,
    task: Task,
    *,
    total_steps: int,
    seconds_per_step: float,
    until: float,
    at_most: float,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Level]:
    """Levels of pilots from short to long, in the time there is.

    The first level sweeps AdamW's learning rate over 3.5 decades with one seed; each of the next tries, with three, the
    best of the one before, its two neighbours, half a decade away, and torch's default. Horizons grow at least twofold
    from level to level and so that the last level ends shortly before ``until``, by the speed measured so far; none
    exceeds ``total_steps``.

    Args:
        seconds_per_step: of one step of one run, where nothing has been measured yet.
        until: what ``time.perf_counter()`` should show at the end.
        at_most: what it may show if the machine becomes slower meanwhile; a level that takes longer is lost.
        tell: is given a line after each level.

    Returns:
        the levels that were finished, possibly none.
    """
    levels: list[Level] = []
    exponents: Sequence[int] = SWEEP
    horizon = 0
    cost = Cost(seconds_per_step, 2 * MEASURED * seconds_per_step / 3)  # a forward pass is a third of a step
    for done in range(LEVELS):
        seeds = SEEDS if done else 1
        runs, more = (len(exponents) + 1) * seeds, LEVELS - done
        left = until - time.perf_counter() - cost.run * (runs + (more - 1) * 5 * SEEDS)
        horizon = next_horizon(left / cost.step, horizon, more, runs, total_steps)
        if horizon < SHORTEST:
            break
        try:
            levels.append(run_level(rule, task, exponents, horizon=horizon, until=at_most, seeds=seeds))
        except OutOfTime:
            break
        level = levels[-1]
        cost = Cost.of(level)
        tell(f"pilots of {horizon} steps: {level.seconds:.1f} s")
        if horizon == total_steps:
            break
        best = {level.best(split) for split in level.rule}
        exponents = sorted({b + offset for b in best for offset in (-1, 0, 1)} | {DEFAULT})
    return levels


def next_horizon(run_steps: float, before: int, levels: int, runs: int, total_steps: int) -> int:
    """Horizon of the next level; 0 if there is no time for one twice as long as the one before.

    Args:
        run_steps: how many steps of one run there is time for.
        before: horizon of the level before, 0 if there is none.
        levels: how many more there should be, >= 1.
        runs: how many there are on the next level.
        total_steps: no horizon is longer.

    >>> next_horizon(15 * 100, 25, 1, 15, 1000)  # the last level takes four fifths of what is left
    80
    >>> next_horizon(15 * 100, 50, 1, 15, 1000), next_horizon(15 * 100, 50, 1, 15, 80)
    (0, 80)
    """
    room = 0.8 * run_steps / runs
    if before == 0:  # later levels have about 1.6 times as many runs
        for count in range(levels, 0, -1):
            first = int(room / (1 + 1.6 * sum(2**level for level in range(1, count))))
            if first >= SHORTEST:  # an eighth of it, since the speed is a guess so far, and later levels make up for it
                return max(SHORTEST, min(first // 8, total_steps >> (levels - 1)))
        return 0
    if total_steps <= 2 * before:
        return total_steps if before < total_steps <= room else 0
    for count in range(levels, 0, -1):
        growth = _growth(room / before, count)
        if growth >= 2:
            return min(round(before * growth), total_steps)
    return 0


def _growth(room: float, count: int) -> float:
    """The g for which :math:`g + g^2 + ... + g^{count}` is ``room``, at most ``LARGEST_GROWTH``."""
    low, high = 0.0, LARGEST_GROWTH
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**k for k in range(1, count + 1)) < room else (low, middle)
    return low
