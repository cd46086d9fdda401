"""Estimates the remaining steps in manual optimization from how often an optimizer has stepped."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

_KEYS = {
    "first_batch": "first",
    "last_batch": "last",
    "steps_before": "before",
    "steps_in_last_batch": "now",
    "steps_in_epoch": "epoch",
}
"""Keys in checkpoints that differ from the name of the attribute."""


@dataclass
class Pace:
    """Counters of the steps of one optimizer, which checkpoints hold as plain numbers.

    Batches are numbered from 1 since the optimizer was made.

    Attributes:
        total: number of steps so far.
        first_batch, last_batch: number of the batch with the first, and with the last step; 0 before any step.
        stepping: number of batches with steps.
        steps_before: number of steps in all batches with steps except the last such batch.
        steps_in_last_batch: number of steps in the last batch with steps.
        steps_in_epoch: number of steps in this epoch.
        whole_epoch: number of steps in the last epoch that was counted from its first batch on; -1 if there is none.
        epoch_length: number of batches of that epoch.
    """

    total: int = 0
    first_batch: int = 0
    last_batch: int = 0
    stepping: int = 0
    steps_before: int = 0
    steps_in_last_batch: int = 0
    steps_in_epoch: int = 0
    whole_epoch: int = -1
    epoch_length: int = 0

    def stepped(self, batch: int) -> None:
        """Count a step in this batch."""
        if batch != self.last_batch:
            self.steps_before, self.steps_in_last_batch = self.steps_before + self.steps_in_last_batch, 0
            self.stepping += 1
            self.first_batch, self.last_batch = self.first_batch or batch, batch
        self.steps_in_last_batch += 1
        self.total += 1
        self.steps_in_epoch += 1

    def epoch_ended(self, length: int, *, complete: bool) -> None:
        """Count an epoch of ``length`` batches; ``complete`` if it was counted from its first batch on."""
        if complete:
            self.whole_epoch, self.epoch_length = self.steps_in_epoch, length
        self.steps_in_epoch = 0

    @property
    def period(self) -> float:
        """Mean number of batches from one batch with steps to the next."""
        if self.stepping <= 1:
            return float(self.first_batch)
        return (self.last_batch - self.first_batch) / (self.stepping - 1)

    @property
    def at_once(self) -> float:
        """Mean number of steps in a batch with steps."""
        return self.steps_before / (self.stepping - 1) if self.stepping > 1 else float(self.steps_in_last_batch)

    @property
    def rate(self) -> float:
        """Mean number of steps per batch; 0 before any step."""
        return self.at_once / self.period if self.stepping else 0.0

    def steps_within(self, batches: float) -> int:
        """Remaining steps in the batch of the last step and in ``batches`` batches after it."""
        left_in_last_batch = max(round(self.at_once) - self.steps_in_last_batch, 0)
        return left_in_last_batch + round(self.at_once * math.floor(batches / self.period + 1e-9))

    def steps_left(self, length: int, batches: int, epochs: int) -> int:
        """Remaining steps after the present step, in a fit that ends with an epoch.

        Args:
            length: number of batches of an epoch.
            batches: number of batches of this epoch so far, including the present batch.
            epochs: number of whole epochs after this one.
        """
        if self.period > length:  # batches are counted across epochs
            return self.steps_within(length - batches + length * epochs)
        if self.whole_epoch >= 0 and self.epoch_length == length:
            return max(self.whole_epoch - self.steps_in_epoch, 0) + self.whole_epoch * epochs
        # The count of batches restarts in each epoch.
        steps_per_epoch = round(self.at_once * math.floor(length / self.period + 1e-9))
        return self.steps_within(length - batches) + steps_per_epoch * epochs

    def state_dict(self) -> dict[str, Any]:
        return {_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Pace:
        """The pace with this ``state_dict``; unknown keys of other versions are ignored."""
        keys = {field.name: _KEYS.get(field.name, field.name) for field in fields(cls)}
        return cls(**{name: int(state[key]) for name, key in keys.items() if key in state})
