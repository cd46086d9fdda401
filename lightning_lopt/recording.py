"""CUDA graphs: the kernels of a function, recorded once and replayed with one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

WARM_UP = 2
"""Number of calls of a function before its recording."""


def record(function: Callable[[], None]) -> Callable[[], object]:
    """A function without arguments that launches the kernels of ``function`` on the GPU, without Python.

    ``function`` is called ``WARM_UP`` times, so that one-time setup is finished before the recording, and once more for
    the recording. ``function`` must read from and write to the same memory at each call, and must neither copy from the
    CPU nor wait for the GPU. The warm-up calls write to that memory; the call for the recording writes nothing.

    Raises:
        RuntimeError: if ``function`` cannot be recorded.
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
    """Copy the second tensor of each pair into the memory of the first one, as if all were copied at once.

    A second tensor may share memory with the first tensor of another pair.
    """
    copies = [(place, value) for place, value in pairs if value is not place]
    storages = {place.untyped_storage().data_ptr() for place, _ in pairs}
    values = [value.clone() if value.untyped_storage().data_ptr() in storages else value for _, value in copies]
    if copies:
        torch._foreach_copy_([place for place, _ in copies], values)


def cloned(tree: Any) -> Any:
    """A copy of all tensors of a tree, in one kernel."""
    values, structure = pytree.tree_flatten(tree)
    places = [torch.empty_like(value) for value in values]
    torch._foreach_copy_(places, values)
    return pytree.tree_unflatten(places, structure)


def stream_number() -> int:
    """The handle of the current CUDA stream; 0 without a GPU. A graph is replayed only on one stream."""
    return torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else 0


@cache
def _recording_stream() -> torch.cuda.Stream:
    """The stream for all recordings: code of ``torch.compile`` works on one stream only."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]
