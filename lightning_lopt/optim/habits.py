"""Warnings about settings that are right for other optimizers and wrong for a learned one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from lightning_lopt.optim.rates import multiplier

SMALL = 0.1
CONSTANT_FOR = 20  # steps with the same small factor: a warm-up or a cycle would have changed it by then


class RateWatch:
    """Warns if steps are multiplied by a learning rate that was meant for AdamW."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._steps = 0
        self._warned = False

    def look(self, groups: Sequence[dict[str, Any]]) -> None:
        """Warn once after ``CONSTANT_FOR`` steps if the largest ``lr`` has been the same and small all the time."""
        if self._warned:
            return
        rates = [multiplier(group) for group in groups]
        largest = max(rates) if all(isinstance(rate, float | int) for rate in rates) else None  # a tensor would wait
        self._steps = self._steps + 1 if largest == self._last else 1
        self._last = largest
        if self._steps >= CONSTANT_FOR and largest is not None and 0 < largest < SMALL:
            self._warned = True
            warn_of_small_rate(largest, stacklevel=6)

    def warned(self) -> None:
        """Give no further warning."""
        self._warned = True


def warn_of_small_rate(lr: float, *, stacklevel: int) -> None:
    """Warn that ``lr`` is a factor and no learning rate."""
    warnings.warn(
        f"lr={lr:g} multiplies the steps of the learned optimizer, which has step sizes of its own, so that next to "
        "nothing is trained; leave lr at 1, and choose values from 0.1 to 1 for smaller steps.",
        stacklevel=stacklevel,
    )
