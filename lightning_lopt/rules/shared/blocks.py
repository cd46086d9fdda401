"""Computes functions of large tensors block by block, where a block is a group of rows or columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import reduce
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

LARGE = 2**20
"""On a CPU, tensors with more entries are computed in blocks; for smaller tensors, calls cost more than is saved."""
BLOCK = 2**18
"""Number of entries of a block on a CPU; temporary tensors of this size stay in the cache."""
DEVICE_BLOCK = 2**24
"""Both of these numbers for other devices, on which blocks save only memory."""

_uses_blocks: ContextVar[bool] = ContextVar("uses_blocks", default=True)


class Output(NamedTuple):
    """Where a result is written.

    Attributes:
        memory: a contiguous tensor.
        write: writes values of a block to a part of ``memory``; it may convert their type.
    """

    memory: Tensor
    write: Callable[[Tensor, Tensor], object] = Tensor.copy_


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
    outputs: Mapping[int, Output] = MappingProxyType({}),
) -> list[Tensor]:
    """``function(*tensors)``, computed block by block if the tensors are large and no derivative is needed.

    Each operation of a chain makes a temporary tensor, and reads and writes all of it. In blocks, temporary tensors are
    small, and stay in the cache of a processor.

    Args:
        function: function of tensors of one shape s. Its results have the shape s, and their slice i along ``axis``
            depends only on the slices i of the tensors; the last ``sums`` results are sums over the slices, of any
            shape.
        tensors: tensors of one shape s; ``function`` receives large tensors of rank > 2 as matrices (s[0], everything
            else), and large tensors of different types in the widest of these types.
        axis: 0, or 1 if the rank is 2 or more.
        sums: number of results that are sums.
        outputs: memory, which may be that of ``tensors``, by the index of the result that may be written to it; if the
            tensors are large and the memory is contiguous, the result is the memory itself.

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
    dtype = reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
    results: list[Output] = []
    totals: list[Tensor] = []
    for start in range(0, length, width):
        block = [matrix.narrow(axis, start, min(width, length - start)).to(dtype) for matrix in matrices]
        block_results = list(function(*block))
        count = len(block_results) - sums
        if start == 0:
            results = _memory_of(block_results[:count], x.shape, outputs)
            totals = [torch.zeros_like(y) for y in block_results[count:]]
        for (memory, write), y in zip(results, block_results[:count], strict=True):
            write(memory.view(matrices[0].shape).narrow(axis, start, y.shape[axis]), y)
        for total, y in zip(totals, block_results[count:], strict=True):
            total += y
    return [*(memory for memory, _ in results), *totals]


def _memory_of(block_results: Sequence[Tensor], shape: torch.Size, outputs: Mapping[int, Output]) -> list[Output]:
    """The memory of each result of this shape: that of ``outputs`` where it is usable, else new memory."""
    memory = []
    for index, y in enumerate(block_results):
        output = outputs.get(index)
        is_usable = output is not None and output.memory.is_contiguous()
        memory.append(output if output is not None and is_usable else Output(y.new_empty(shape)))
    return memory


def is_large(x: Tensor) -> bool:
    """Whether functions of ``x`` are computed in blocks."""
    # A compiler generates its own loops, and a derivative needs the tensors that would be overwritten.
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not _uses_blocks.get():
        return False
    return x.numel() > (LARGE if x.device.type == "cpu" else DEVICE_BLOCK)
