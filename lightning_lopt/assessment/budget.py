"""The time of an assessment and the deadlines of its parts."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass

SHARE = 0.05
LEAST = 20.0  # seconds; in less time, pilots are too short for conclusions
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Deadline:
    """A time limit, on the clock ``time.perf_counter()``.

    Attributes:
        began: clock at the start.
        seconds: seconds from the start to the end.
        allowance: source of these seconds, in words.
    """

    began: float
    seconds: float
    allowance: str = ""

    def at(self, share: float) -> float:
        """Clock at the end of this share of the time."""
        return self.began + share * self.seconds

    def shortened(self, share: float) -> Deadline:
        """A deadline with the same start and a share of the time."""
        return Deadline(self.began, share * self.seconds, self.allowance)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.began


def budget_seconds(budget: float | str | None, step_seconds: float, total_steps: int) -> tuple[float, str]:
    """The seconds of a budget, and their source in words.

    Args:
        budget: seconds, or a text such as ``"90s"``, ``"5min"``, ``"10%"`` or ``"400steps"`` of the planned run;
            ``None`` for 5 % of the planned run, and at least 20 seconds.
        step_seconds: seconds of one training step of the planned run.
        total_steps: steps of the planned run.

    Raises:
        ValueError: if the budget is neither a share nor a time, or is not positive.

    >>> budget_seconds("10%", 0.5, 1000), budget_seconds("2min", 0.5, 1000)
    ((50.0, '10% of the planned run'), (120.0, '2min'))
    """
    if budget is None:
        share = SHARE * step_seconds * total_steps
        return max(LEAST, share), f"{SHARE:.0%} of the planned run" if share > LEAST else f"{LEAST:g}s at least"
    text = f"{budget}s" if isinstance(budget, (int, float)) and not isinstance(budget, bool) else str(budget).strip()
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*(s|min|h|%|steps)?", text)
    amount = float(match[1]) if match else math.nan
    if not match or not amount > 0:
        raise ValueError(
            f"budget must be seconds, or a text such as '90s', '5min', '10%' or '400steps', got {budget!r}."
        )
    unit = match[2] or "s"
    if unit == "%":
        return amount / 100 * step_seconds * total_steps, f"{text} of the planned run"
    if unit == "steps":
        return amount * step_seconds, f"the time of {amount:g} steps"
    return amount * _UNITS[unit], text
