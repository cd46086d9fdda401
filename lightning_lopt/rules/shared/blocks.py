"""Computes functions of large tensors block by block, where a block is a group of rows or columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import torch
from torch import Tensor

LARGE = 2**20
"""On a CPU, tensors with more entries are computed in blocks; for smaller tensors, calls cost more than is saved."""
BLOCK = 2**18
"""Number of entries of a block on a CPU; temporary tensors of this size stay in the cache."""
DEVICE_BLOCK = 2**24
"""Both of these numbers for other devices, on which blocks save only memory."""

_uses_blocks: ContextVar[bool] = ContextVar("uses_blocks", default=True)


@contextmanager
def whole_tensors() -> Iterator[None]:
    """Disable blocks inside the context."""
    token = _uses_blocks.set(False)
    try:
        yield
    finally:
        _uses_blocks.reset(token)


def in_blocks(
    function: Callable[..., tuple[Tensor, ...]],
    *tensors: Tensor,
    axis: int = 0,
    sums: int = 0,
    may_overwrite: Mapping[int, Tensor] = MappingProxyType({}),
) -> list[Tensor]:
    """``function(*tensors)``, computed block by block if the tensors are large and no derivative is needed.

    Each operation of a chain makes a temporary tensor, and reads and writes all of it. In blocks, temporary tensors are
    small, and stay in the cache of a processor.

    Args:
        function: function of tensors of one shape s. Its results have the shape s, and their slice i along ``axis``
            depends only on the slices i of the tensors; the last ``sums`` results are sums over the slices, of any
            shape.
        tensors: tensors of one shape s; ``function`` receives large tensors of rank > 2 as matrices (s[0], everything
            else).
        axis: 0, or 1 if the rank is 2 or more.
        sums: number of results that are sums.
        may_overwrite: some of ``tensors``, by the index of the result that may be written to the memory of the tensor;
            if the tensor is large and contiguous, this result is the tensor itself.

    Returns:
        the results; sums may be rounded in another order.

    >>> x = torch.arange(4.0)
    >>> in_blocks(lambda x: (2 * x, x.sum()), x, sums=1)
    [tensor([0., 2., 4., 6.]), tensor(6.)]
    """
    x = tensors[0]
    if not is_large(x):
        return list(function(*tensors))
    matrices = [tensor.reshape(len(tensor), -1) if tensor.ndim > 2 else tensor for tensor in tensors]
    length = matrices[0].shape[axis]
    width = max(1, (BLOCK if x.device.type == "cpu" else DEVICE_BLOCK) * length // x.numel())
    results: list[Tensor] = []
    for start in range(0, length, width):
        block = [matrix.narrow(axis, start, min(width, length - start)) for matrix in matrices]
        block_results = list(function(*block))
        count = len(block_results) - sums
        if not results:
            for index, y in enumerate(block_results[:count]):
                memory = may_overwrite.get(index)
                if memory is None or memory.dtype != y.dtype or not memory.is_contiguous():
                    memory = y.new_empty(x.shape)
                results.append(memory)
            results += [torch.zeros_like(y) for y in block_results[count:]]
        for result, y in zip(results[:count], block_results[:count], strict=True):
            result.view(matrices[0].shape).narrow(axis, start, y.shape[axis]).copy_(y)
        for result, y in zip(results[count:], block_results[count:], strict=True):
            result += y
    return results


def is_large(x: Tensor) -> bool:
    """Whether functions of ``x`` are computed in blocks."""
    # A compiler generates its own loops, and a derivative needs the tensors that would be overwritten.
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not _uses_blocks.get():
        return False
    return x.numel() > (LARGE if x.device.type == "cpu" else DEVICE_BLOCK)
