"""Warnings about settings that are right for other optimizers and wrong for a learned one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from lightning_lopt.optim.rates import multiplier

SMALL = 0.1
CONSTANT_FOR = 20  # number of steps with the same small factor; a warm-up or a cycle would have changed the factor


class RateWatch:
    """Warns if steps are multiplied by a learning rate that was meant for AdamW."""

    def __init__(self) -> None:
        self._last_rate: float | None = None
        self._steps = 0
        self._warned = False

    def look(self, groups: Sequence[dict[str, Any]]) -> None:
        """Warn once after ``CONSTANT_FOR`` steps in a row in which the largest ``lr`` is small and does not change."""
        if self._warned:
            return
        rates = [multiplier(group) for group in groups]
        are_numbers = all(isinstance(rate, float | int) for rate in rates)  # reading a tensor would wait for its device
        largest = max(rates) if are_numbers else None
        self._steps = self._steps + 1 if largest == self._last_rate else 1
        self._last_rate = largest
        if self._steps >= CONSTANT_FOR and largest is not None and 0 < largest < SMALL:
            self._warned = True
            warn_of_small_rate(largest, stacklevel=6)

    def warned(self) -> None:
        """Give no further warning."""
        self._warned = True


def warn_of_small_rate(lr: float, *, stacklevel: int) -> None:
    """Warn that ``lr`` is a factor and not a learning rate."""
    warnings.warn(
        f"lr={lr:g} multiplies the steps of the learned optimizer, which sets its step sizes itself, so the parameters "
        "hardly change; leave lr at 1, and choose values from 0.1 to 1 for smaller steps.",
        stacklevel=stacklevel,
    )
