"""The user's module as a task for pilots."""

from __future__ import annotations

import copy
from typing import Any

from lightning_lopt.tasks.base import Batch, Split
from lightning_lopt.tasks.lightning_batches import StackedBatches
from lightning_lopt.tasks.lightning_task import LightningTask

MEASURED = 6  # batches on which a final loss is measured


class PilotTask(LightningTask):
    """A LightningTask whose losses are measured on its first few batches, and that can be had with other batches."""

    @property
    def batches(self) -> int:
        """How many batches of training there are."""
        return len(self.data["train"])

    def full_batch(self, split: Split) -> Batch:
        return {name: value[:MEASURED] for name, value in super().full_batch(split).items()}

    def fewer(self, count: int) -> PilotTask:
        """The same with the first ``count`` batches of training."""
        train = copy.copy(self.data["train"])
        train.tensors = {name: value[:count] for name, value in train.tensors.items()}
        return self._with({**self.data, "train": train})

    def on(self, train: list[Any], valid: list[Any]) -> tuple[PilotTask, str]:
        """The same module with other batches, which is not tried out again.

        Args:
            train: at least one.
            valid: may be empty.

        Returns:
            the task, and why it has no validation batches; empty if it has.

        Raises:
            ValueError: if the training batches do not stack.
        """
        data: dict[Split, StackedBatches] = {"train": StackedBatches(train, "training batches")}
        if not valid:
            return self._with(data), "there is no validation data"
        try:
            data["valid"] = StackedBatches(valid, "validation batches")
        except ValueError as error:
            return self._with(data), str(error)
        if data["valid"].structure != data["train"].structure:
            names = {split: ", ".join(batches.names) for split, batches in data.items()}
            del data["valid"]
            return self._with(data), f"validation batches hold {names['valid']}, training batches {names['train']}"
        return self._with(data), ""

    def _with(self, data: dict[Split, StackedBatches]) -> PilotTask:
        task = copy.copy(self)
        task.data = data
        task.batch_size = data["train"].batch_size
        return task
