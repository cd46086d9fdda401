"""Does the rule hold up with other batch sizes, and from seed to seed?"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightning_lopt.assessment.ladder import SHORTEST, Cost
from lightning_lopt.assessment.outlook import log_ratio
from lightning_lopt.assessment.pilots import SEEDS, Level, OutOfTime, learning_rate, run_level
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.base import Task
from lightning_lopt.tasks.users_code import named

FACTORS = (0.5, 2.0)  # of the batch size; 1 is what the levels have
RISE = 1.05  # a run that ends above this multiple of its first loss has got nowhere


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
        ratio = float(log_ratio(self.level, "train").mean())
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
        horizon = min(last.horizon, Cost.of(last).horizon(share / max(1.0, factor), 2 * SEEDS))
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


def troubles(levels: Sequence[Level], others: Sequence[OtherBatches]) -> list[str]:
    """One sentence for each set of pilots in which the rule diverged or ended above its start, and AdamW did not."""
    found = []
    seen = [(level, "") for level in levels] + [(other.level, f" with batches of {other.size}") for other in others]
    for level, where in seen:
        start = level.start["train"]
        limit = torch.where(start > 0, start * RISE, start / RISE)
        bad = ~(level.rule["train"] <= limit)
        adamw = level.adamw[level.best("train")]["train"]
        if bad.any() and bool((adamw <= limit).all()):
            rose = level.rule["train"][bad]
            how = "diverged" if not bool(rose.isfinite().all()) else "ended above its first loss"
            found.append(
                f"in pilots of {level.horizon} steps{where} it {how} with {int(bad.sum())} of {len(bad)} seeds, where "
                f"AdamW at {learning_rate(level.best('train')):.2g} did not"
            )
    return found


def nobody_learns(levels: Sequence[Level]) -> bool:
    """Whether on the longest level neither the rule nor AdamW at any rate lowered the loss."""
    level = levels[-1]
    ends = [level.rule["train"].median(), *(found["train"].median() for found in level.adamw.values())]
    lowest = min((float(end) for end in ends if math.isfinite(end)), default=math.inf)
    return lowest >= float(level.start["train"].median())
