"""CUDA graphs: what a function does on the GPU, recorded once and replayed with one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

WARM_UP = 2
"""Calls of a function before the one that is recorded."""


def record(function: Callable[[], None]) -> Callable[[], object]:
    """A function of no arguments that does on the GPU what ``function`` does there, without Python.

    ``function`` is called ``WARM_UP`` times, so that whatever is set up once is set up before the recording, and once
    more to be recorded. It must read from and write to the same memory at each call, and must neither copy from the CPU
    nor wait for the GPU. What it writes during the first calls stays written; the recorded call writes nothing.

    Raises:
        RuntimeError: if ``function`` does what cannot be recorded.
    """
    stream = _recording_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


def overwrite(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy the second of each pair into the memory of the first, as if all were copied at once.

    A value may be the memory, or a view of the memory, that another value is copied to.
    """
    moved = [(place, value) for place, value in pairs if value is not place]
    storages = {place.untyped_storage().data_ptr() for place, _ in pairs}
    values = [value.clone() if value.untyped_storage().data_ptr() in storages else value for _, value in moved]
    if moved:
        torch._foreach_copy_([place for place, _ in moved], values)


def cloned(tree: Any) -> Any:
    """A copy of all tensors of a tree, in one kernel."""
    values, structure = pytree.tree_flatten(tree)
    places = [torch.empty_like(value) for value in values]
    torch._foreach_copy_(places, values)
    return pytree.tree_unflatten(places, structure)


def stream_number() -> int:
    """The handle of the current CUDA stream; 0 where there is no GPU. A graph is replayed on one stream alone."""
    return torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else 0


@cache
def _recording_stream() -> torch.cuda.Stream:
    """Where functions are recorded: always the same stream, since what ``torch.compile`` makes is for one stream."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]
