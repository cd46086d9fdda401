"""A task for pilots: the user's module, on batches of any size."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_lopt.tasks.base import Batch, Split
from lightning_lopt.tasks.lightning_batches import NotStackableError, StackedBatches
from lightning_lopt.tasks.lightning_task import LightningTask

Tree = Any
MEASURED = 6  # number of batches for measuring a final loss


class PilotTask(LightningTask):
    """A LightningTask whose losses are measured on its first batches, and whose batches can be replaced."""

    @property
    def batches(self) -> int:
        """Number of training batches."""
        return len(self.data["train"])

    def full_batch(self, split: Split) -> Batch:
        return {name: value[:MEASURED] for name, value in super().full_batch(split).items()}

    def fewer(self, count: int) -> PilotTask:
        """This task with only the first ``count`` training batches."""
        train = copy.copy(self.data["train"])
        train.tensors = {name: value[:count] for name, value in train.tensors.items()}
        return self._with({**self.data, "train": train})

    def with_batches(self, train: list[Any], valid: list[Any]) -> tuple[PilotTask, str]:
        """The task of the same module on other batches; ``vmap`` is not tested again.

        Args:
            train: training batches, at least one.
            valid: validation batches, possibly none.

        Returns:
            the task, and the reason why it has no validation batches (empty if it has validation batches).

        Raises:
            NotStackableError: if the training batches cannot be stacked.
        """
        data: dict[Split, StackedBatches] = {"train": StackedBatches(train, "training batches")}
        if not valid:
            return self._with(data), "there is no validation data"
        try:
            data["valid"] = StackedBatches(valid, "validation batches")
        except NotStackableError as error:
            return self._with(data), str(error)
        if data["valid"].structure != data["train"].structure:
            names = {split: ", ".join(batches.names) for split, batches in data.items()}
            del data["valid"]
            reason = f"validation batches contain {names['valid']}, but training batches contain {names['train']}"
            return self._with(data), reason
        return self._with(data), ""

    def _with(self, data: dict[Split, StackedBatches]) -> PilotTask:
        task = copy.copy(self)
        task.data = data
        task.batch_size = data["train"].batch_size
        return task


def examples_in(batch: Tree) -> int | None:
    """Length of the first axis, if it is the same for all tensors of the batch; otherwise ``None``."""
    lengths = {tuple(leaf.shape[:1]) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)}
    common_length = lengths.pop() if len(lengths) == 1 else ()
    return common_length[0] if common_length else None


def regrouped(batches: list[Tree], size: int) -> list[Tree] | None:
    """The same examples in the same order, in batches of ``size``, without an incomplete last batch.

    The result is ``None`` if the tensors have no common first axis, if examples differ in shape, or if there are fewer
    examples than ``size``.

    >>> [batch.tolist() for batch in regrouped([torch.tensor([1, 2, 3]), torch.tensor([4, 5])], 2)]
    [[1, 2], [3, 4]]
    """
    if any(examples_in(batch) is None for batch in batches):
        return None
    flat = [pytree.tree_flatten(batch) for batch in batches]
    leaves, structure = flat[0]
    shapes = [[tuple(leaf.shape[1:]) if isinstance(leaf, Tensor) else None for leaf in tensors] for tensors, _ in flat]
    if any(structure_of_batch != structure for _, structure_of_batch in flat) or any(
        shape != shapes[0] for shape in shapes
    ):
        return None
    columns = [
        torch.cat([tensors[place] for tensors, _ in flat]) if isinstance(leaf, Tensor) else leaf
        for place, leaf in enumerate(leaves)
    ]
    count = max(len(column) for column in columns if isinstance(column, Tensor)) // size
    return [
        pytree.tree_unflatten(
            [c[i * size : (i + 1) * size] if isinstance(c, Tensor) else c for c in columns], structure
        )
        for i in range(count)
    ] or None
