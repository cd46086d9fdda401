"""Estimates of the remaining steps in manual optimization, from how often an optimizer has stepped."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class Pace:
    """Counters of the steps of one optimizer; plain numbers for checkpoints.

    Batches are numbered from 1 since the optimizer was made.

    Attributes:
        total: steps so far.
        first, last: number of the batch with the first, and with the last step; 0 before any step.
        stepping: number of batches with steps.
        before: steps in all batches with steps except the last one.
        now: steps in the last batch with steps.
        epoch: steps in this epoch.
        whole_epoch: steps in the last epoch that was counted from its first batch on; -1 before.
        epoch_length: batches of that epoch.
    """

    total: int = 0
    first: int = 0
    last: int = 0
    stepping: int = 0
    before: int = 0
    now: int = 0
    epoch: int = 0
    whole_epoch: int = -1
    epoch_length: int = 0

    def stepped(self, batch: int) -> None:
        """Count a step in this batch."""
        if batch != self.last:
            self.before, self.now = self.before + self.now, 0
            self.stepping += 1
            self.first, self.last = self.first or batch, batch
        self.now += 1
        self.total += 1
        self.epoch += 1

    def epoch_ended(self, length: int, *, complete: bool) -> None:
        """Count an epoch of ``length`` batches; ``complete`` if it was counted from its first batch on."""
        if complete:
            self.whole_epoch, self.epoch_length = self.epoch, length
        self.epoch = 0

    @property
    def period(self) -> float:
        """Mean number of batches from one batch with steps to the next."""
        return (self.last - self.first) / (self.stepping - 1) if self.stepping > 1 else float(self.first)

    @property
    def at_once(self) -> float:
        """Mean number of steps in a batch with steps."""
        return self.before / (self.stepping - 1) if self.stepping > 1 else float(self.now)

    @property
    def rate(self) -> float:
        """Mean number of steps per batch; 0 before any step."""
        return self.at_once / self.period if self.stepping else 0.0

    def steps_within(self, batches: float) -> int:
        """Remaining steps in the batch of the last step and in ``batches`` batches after it."""
        in_last_batch = max(round(self.at_once) - self.now, 0)
        return in_last_batch + round(self.at_once * math.floor(batches / self.period + 1e-9))

    def steps_left(self, length: int, done: int, epochs: int) -> int:
        """Remaining steps after the present one, in a fit that ends with an epoch.

        Args:
            length: batches of an epoch.
            done: batches of this epoch so far, the present one included.
            epochs: whole epochs to come after this one.
        """
        if self.period > length:  # batches are counted across epochs
            return self.steps_within(length - done + length * epochs)
        if self.whole_epoch >= 0 and self.epoch_length == length:
            return max(self.whole_epoch - self.epoch, 0) + self.whole_epoch * epochs
        # Batches are counted anew in each epoch.
        per_epoch = round(self.at_once * math.floor(length / self.period + 1e-9))
        return self.steps_within(length - done) + per_epoch * epochs

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Pace:
        """The pace with this ``state_dict``; keys of other versions are left out."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: int(value) for name, value in state.items() if name in names})
