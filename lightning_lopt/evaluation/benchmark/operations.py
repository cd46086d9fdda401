"""Counts of operations in matrix products, by type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lightning_lopt.evaluation.step_cost import Step


class _ProductCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations like ``torch.utils.flop_counter.FlopCounterMode``, but separately for each type."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        result = func(*args, **keywords)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            dtype = next(x.dtype for x in tree_leaves(args) if isinstance(x, Tensor))
            self.operations[str(dtype).removeprefix("torch.")] += count(*args, **keywords, out_val=result)
        return result


def operations_of(step: Step, repeats: int = 1) -> dict[str, float]:
    """Number of operations in the matrix products of a step by the name of their type, the mean over ``repeats`` steps.

    A multiply-add counts as 2. Compiled code counts in the same way as uncompiled code. Decompositions (QR,
    eigenvectors), elementwise operations, and products in hand-written kernels are not counted.

    >>> matrix = torch.ones(8, 4)
    >>> operations_of(lambda: matrix @ matrix.T)
    {'float32': 512.0}
    """
    with torch.compiler.set_stance("force_eager"), _ProductCounter() as counter:
        for _ in range(repeats):
            step()
    return {dtype: count / repeats for dtype, count in counter.operations.items()}
