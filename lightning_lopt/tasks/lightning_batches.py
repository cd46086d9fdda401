"""Mini-batches of a dataloader as stacked tensors, from which a task draws by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_lopt.tasks.base import Batch

Tree = Any
PLAIN = (bool, int, float, str, bytes, type(None))


class NotStackableError(ValueError):
    """Batches cannot be stacked; the message is one sentence with the name of the batches and the reason."""


class StackedBatches:
    """Batches of one structure and one set of shapes: nested tuples, lists and dicts of tensors.

    Args:
        batches: at least one. Batches without the most common shapes (a smaller last batch) are left out.
        label: name of the batches in errors.

    Raises:
        NotStackableError: if there is no batch, if the batches hold no tensor, if values that are not tensors differ,
            or if fewer than half of the batches have the same shapes.

    Attributes:
        tensors: tensors of all batches by name (``"batch['image']"``, ``"batch[0]"``); the leading axis counts batches.
        left_out: number of batches with other shapes.
    """

    def __init__(self, batches: Iterable[Tree], label: str) -> None:
        flat_batches = [pytree.tree_flatten_with_path(batch) for batch in batches]
        if not flat_batches:
            raise NotStackableError(f"{label}: there is no batch; give a dataloader or list with at least one batch.")
        shapes = [_shapes(leaves) for leaves, _ in flat_batches]
        common, count = Counter(shapes).most_common(1)[0]
        if 2 * count < len(flat_batches):
            raise NotStackableError(
                f"{label}: of {len(flat_batches)} batches only {count} have the same shapes ({_show(common)}); pad or "
                "crop examples to one size, or group them by size and make a task of each group."
            )
        stackable = [entry for entry, shape in zip(flat_batches, shapes, strict=True) if shape == common]
        self.left_out = len(flat_batches) - count
        self.structure = stackable[0][1]
        self.names = ["batch" + pytree.keystr(path) for path, _ in stackable[0][0]]
        columns = [[leaves[position][1] for leaves, _ in stackable] for position in range(len(self.names))]
        self.tensors: dict[str, Tensor] = {}
        self.constants: dict[str, Any] = {}
        for name, column in zip(self.names, columns, strict=True):
            if isinstance(column[0], Tensor):
                self.tensors[name] = torch.stack([leaf.detach() for leaf in column])
            elif all(isinstance(leaf, PLAIN) and leaf == column[0] for leaf in column):
                self.constants[name] = column[0]
            else:
                raise NotStackableError(
                    f"{label}: {name} is neither a tensor nor a plain value that all batches share "
                    f"({type(column[0]).__name__}); return (tuples, lists, dicts of) tensors."
                )
        if not self.tensors:
            raise NotStackableError(
                f"{label}: a batch holds no tensor ({_show(common)}); return tensors from the dataloader."
            )
        lengths = {value.shape[1:2] for value in self.tensors.values()}
        common_length = lengths.pop() if len(lengths) == 1 else ()
        self.batch_size: int | None = common_length[0] if common_length else None

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def take(self, index: Tensor) -> Batch:
        """The batches with the numbers ``index``, with the leading axes of ``index``."""
        return {
            name: value.index_select(0, index.flatten().to(value.device)).reshape(*index.shape, *value.shape[1:])
            for name, value in self.tensors.items()
        }

    def tree(self, batch: Batch) -> Tree:
        """The batch in the structure of the dataloader's batches."""
        leaves = [batch[name] if name in self.tensors else self.constants[name] for name in self.names]
        return pytree.tree_unflatten(leaves, self.structure)


def _shapes(leaves: list[tuple[Any, Any]]) -> tuple[Any, ...]:
    return tuple(
        (pytree.keystr(path), tuple(leaf.shape), str(leaf.dtype)) if isinstance(leaf, Tensor) else pytree.keystr(path)
        for path, leaf in leaves
    )


def _show(shapes: tuple[Any, ...]) -> str:
    return ", ".join(
        f"batch{entry[0]}: {entry[1]}" if isinstance(entry, tuple) else f"batch{entry}: no tensor" for entry in shapes
    )
