"""The user's module as a task for pilots."""

from __future__ import annotations

import copy

from lightning_lopt.tasks.base import Batch, Split
from lightning_lopt.tasks.lightning_task import LightningTask

MEASURED = 6  # batches on which a final loss is measured


class PilotTask(LightningTask):
    """A LightningTask whose losses are measured on its first few batches, and that can be had with fewer batches."""

    @property
    def batches(self) -> int:
        """How many batches of training there are."""
        return len(self.data["train"])

    def full_batch(self, split: Split) -> Batch:
        return {name: value[:MEASURED] for name, value in super().full_batch(split).items()}

    def fewer(self, count: int) -> PilotTask:
        """The same with the first ``count`` batches of training."""
        task, train = copy.copy(self), copy.copy(self.data["train"])
        train.tensors = {name: value[:count] for name, value in train.tensors.items()}
        task.data = self.data | {"train": train}
        return task
