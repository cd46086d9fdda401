"""Batches that were read, in other sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Tree = Any


def examples_in(batch: Tree) -> int | None:
    """Length of the first axis, if all tensors of the batch share it."""
    lengths = {tuple(leaf.shape[:1]) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)}
    only = lengths.pop() if len(lengths) == 1 else ()
    return only[0] if only else None


def regrouped(batches: list[Tree], size: int) -> list[Tree] | None:
    """The same examples in the same order, ``size`` to a batch; what is left over is dropped.

    ``None`` where that cannot be done: tensors without a common first axis, examples of different shapes, or fewer
    examples than ``size``.

    >>> [batch.tolist() for batch in regrouped([torch.tensor([1, 2, 3]), torch.tensor([4, 5])], 2)]
    [[1, 2], [3, 4]]
    """
    if any(examples_in(batch) is None for batch in batches):
        return None
    flat = [pytree.tree_flatten(batch) for batch in batches]
    leaves, structure = flat[0]
    shapes = [[tuple(leaf.shape[1:]) if isinstance(leaf, Tensor) else None for leaf in found] for found, _ in flat]
    if any(other != structure for _, other in flat) or any(shape != shapes[0] for shape in shapes):
        return None
    columns = [
        torch.cat([found[place] for found, _ in flat]) if isinstance(leaf, Tensor) else leaf
        for place, leaf in enumerate(leaves)
    ]
    count = max(len(column) for column in columns if isinstance(column, Tensor)) // size
    return [
        pytree.tree_unflatten(
            [c[i * size : (i + 1) * size] if isinstance(c, Tensor) else c for c in columns], structure
        )
        for i in range(count)
    ] or None
