"""The tests of a guard: they decide in plain Python, from a few numbers of each step, whether a rule fails."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from enum import IntEnum

from lightning_lopt.optim.guard_readings import Reading

FIRST, RECENT, CHANGES = 3, 7, 32  # number of first readings, of latest readings and of changes of the loss in memory
LEAST_CHANGES = 12  # number of changes from which the noise is estimated
BROKEN_IN_A_ROW, LOST_IN_A_ROW = 3, 10
NOISE_MARGIN, REFERENCE_MARGIN = 5.0, 3.0
SHORT_WINDOW, LONG_WINDOW = 1 / 50, 1 / 10  # windows, in units of the horizon
SHORT_WITHOUT_HORIZON, SHORTEST = 50, 10  # short window in steps: without a horizon, and its least length with one
FROZEN, IDLE = 3e-4, 1e-2  # smallest predicted change of the loss, relative to that of AdamW
IN_SCHEDULE = 0.7  # share of the horizon after which the steps of a rule may become small
LEAST_SIZE = 0.03  # least RMS of parameters in the measure of a step, for parameters that begin at 0
TOO_LONG, LEAST_SHARE_OF_PROMISE = 0.2, 0.05
LOST_SHARE, PATIENCE, LEAST_PATIENCE = 0.5, 1 / 20, 20


class Cause(IntEnum):
    """Why a guard switches from the rule to AdamW; checkpoints hold the number."""

    BROKEN = 1
    LOST = 2
    UPHILL = 3
    FROZEN = 4
    LONG = 5
    DIVERGED = 6
    BEHIND = 7

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]

    @property
    def has_worsened_parameters(self) -> bool:
        """Whether the parameters have become worse, so that a switch restores earlier ones."""
        return self not in (Cause.BROKEN, Cause.FROZEN)

    @property
    def is_retried(self) -> bool:
        """Whether the guard tries the rule again later."""
        return self in (Cause.LOST, Cause.DIVERGED, Cause.BEHIND)


_SENTENCES = {
    Cause.BROKEN: f"its updates were not finite in {BROKEN_IN_A_ROW} steps in a row",
    Cause.LOST: f"after its steps the loss or the gradients were not finite in {LOST_IN_A_ROW} steps in a row",
    Cause.UPHILL: "its steps went along the gradients instead of against them",
    Cause.FROZEN: "its steps were negligible next to those of AdamW",
    Cause.LONG: "its steps were too long for the size of the parameters, and the loss did not fall as predicted",
    Cause.DIVERGED: "the loss rose above where it began",
    Cause.BEHIND: "the loss rose by half of its earlier fall and stayed there",
}

_NUMBERS = ("broken", "lost", "promised", "reference", "size", "best", "above")
_RECENT_SERIES = ("recent", "lengths", "promises")
_SERIES = {"first": FIRST, "changes": CHANGES, "short": 3, "long": 3} | dict.fromkeys(_RECENT_SERIES, RECENT)
MEMORY = len(_NUMBERS) + sum(_SERIES.values())


class Judge:
    """Takes the readings of a run in order and decides about a switch; :class:`~lightning_lopt.LossGuard` has the
    equations. A *promise* is the change of the loss that a step predicts to first order."""

    def __init__(self) -> None:
        self.broken = self.lost = 0.0  # steps in a row without finite updates, and without a finite loss or gradient
        self.promised = 0.0  # sum of promises; negative for a lower loss
        self.reference = 0.0  # mean of AdamW's promises in the first readings
        self.size = 0.0  # RMS of the parameters at the first reading
        self.best = math.inf  # lowest level
        self.above = 0.0  # readings in a row with a level far above the best
        self.first: deque[float] = deque(maxlen=FIRST)  # first losses
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.changes: deque[float] = deque(maxlen=CHANGES)  # absolute changes of the loss
        self.lengths: deque[float] = deque(maxlen=RECENT)  # RMS of each step, in units of ``size``
        self.promises: deque[float] = deque(maxlen=RECENT)
        self.short = _window()
        self.long = _window()

    def judge(self, reading: Reading, progress: float | None, total: int | None) -> Cause | None:
        """Take a reading; return the cause for a switch, or ``None``.

        Args:
            reading: numbers of the next step.
            progress: share of the horizon that is over, if it is known.
            total: the horizon in steps, if it is known.
        """
        is_finite = math.isfinite(reading.loss) and math.isfinite(reading.reference)
        self.lost = 0.0 if is_finite else self.lost + 1
        if not is_finite:
            return Cause.LOST if self.lost >= LOST_IN_A_ROW and self.size else None
        self.broken = 0.0 if math.isfinite(reading.length) else self.broken + 1
        if self.broken:
            return Cause.BROKEN if self.broken >= BROKEN_IN_A_ROW else None
        self._record(reading)
        if self._goes_uphill():
            return Cause.UPHILL
        if self._is_negligible(progress, total):
            return Cause.FROZEN
        if self._is_too_long():
            return Cause.LONG
        if len(self.changes) < LEAST_CHANGES:
            return None
        if sorted(self.recent)[1] > self.start + NOISE_MARGIN * self.noise + REFERENCE_MARGIN * self.reference:
            return Cause.DIVERGED
        self.best = min(self.best, self.level)
        limit = self.best + LOST_SHARE * max(self.start - self.best, 0.0) + NOISE_MARGIN * self.noise
        self.above = self.above + 1 if self.level > limit else 0.0
        patience = max(LEAST_PATIENCE, PATIENCE * total if total else 0)
        return Cause.BEHIND if self.above >= patience else None

    @property
    def start(self) -> float:
        """The loss at the start of the run: the median of the first readings; NaN without a loss."""
        return statistics.median(self.first) if self.first else math.nan

    @property
    def level(self) -> float:
        """The present loss: the median of the latest readings; NaN without a loss."""
        return statistics.median(self.recent) if self.recent else math.nan

    @property
    def noise(self) -> float:
        """Typical change of the loss from step to step: 2.5 times the lower quartile of the latest changes or, if that
        is larger and there are ``CHANGES`` changes, 1.2 times their median. For normal noise, both numbers are at most
        the mean change. Unlike a mean, quantiles stay small at the beginning of a divergence."""
        if not self.changes:
            return math.inf
        ordered = sorted(self.changes)
        median = ordered[CHANGES // 2] if len(ordered) == CHANGES else 0.0
        return max(2.5 * ordered[(len(ordered) - 1) // 4], 1.2 * median)

    @property
    def is_well(self) -> bool:
        """Whether the loss is close to its best."""
        margin = max(2 * self.noise, 0.1 * (self.start - self.best))
        return len(self.recent) == RECENT and self.level <= self.best + margin

    @property
    def _has_fallen(self) -> bool:
        """Whether the loss is lower than at the start by more than the noise."""
        return len(self.recent) == RECENT and self.level < self.start - 2 * self.noise

    def _record(self, reading: Reading) -> None:
        promise = reading.promise if math.isfinite(reading.promise) else 0.0
        root = math.sqrt(max(reading.entries, 1.0))
        self.size = self.size or max(reading.size / root, LEAST_SIZE)
        self.promises.append(promise)
        self.promised += promise
        if len(self.lengths) < FIRST:
            self.reference += reading.reference / FIRST
        self.lengths.append(reading.length / root / self.size)
        for window in (self.short, self.long):
            window.extend((window[0] + 1, window[1] + abs(promise), window[2] + reading.reference))
        if reading.has_loss:
            if self.recent:
                self.changes.append(abs(reading.loss - self.recent[-1]))
            self.recent.append(reading.loss)
            if len(self.first) < FIRST:
                self.first.append(reading.loss)

    def _goes_uphill(self) -> bool:
        ups = sum(promise > 0 for promise in self.promises)
        if self.promised <= 0 or len(self.promises) < RECENT or ups < RECENT - 1:
            return False
        return sum(self.promises) > 0.5 * sum(map(abs, self.promises)) and not self._has_fallen

    def _is_negligible(self, progress: float | None, total: int | None) -> bool:
        short_length = SHORT_WITHOUT_HORIZON if total is None else max(SHORTEST, SHORT_WINDOW * total)
        frozen = idle = False
        if self.short[0] >= short_length:
            frozen = self.short[1] < FROZEN * self.short[2]
            self.short = _window()
        if total is not None and self.long[0] >= max(2 * SHORTEST, LONG_WINDOW * total):
            idle = self.long[1] < IDLE * self.long[2] and not self._has_fallen
            self.long = _window()
        return (frozen or idle) and (progress is None or progress < IN_SCHEDULE)

    def _is_too_long(self) -> bool:
        if len(self.lengths) < RECENT or self._has_fallen_as_promised:
            return False
        return sum(length > TOO_LONG for length in self.lengths) >= RECENT - 2

    @property
    def _has_fallen_as_promised(self) -> bool:
        return bool(self.recent) and self.start - self.level > LEAST_SHARE_OF_PROMISE * max(-self.promised, 0.0)

    def memory(self) -> list[float]:
        """The state as ``MEMORY`` numbers, for a checkpoint; a series that is not full ends with NaN."""
        padded = []
        for key, length in _SERIES.items():
            series = list(getattr(self, key))
            padded += series + [math.nan] * (length - len(series))
        return [getattr(self, key) for key in _NUMBERS] + padded

    def load_memory(self, memory: Sequence[float]) -> None:
        """Restore the state from the numbers of :meth:`memory`."""
        for key, value in zip(_NUMBERS, memory, strict=False):
            setattr(self, key, value)
        offset = len(_NUMBERS)
        for key, length in _SERIES.items():
            series = [x for x in memory[offset : offset + length] if not math.isnan(x)]
            setattr(self, key, deque(series, maxlen=length))
            offset += length


def _window() -> deque[float]:
    """An empty window: number of readings, sum of absolute promises, sum of references."""
    return deque([0.0] * 3, maxlen=3)
