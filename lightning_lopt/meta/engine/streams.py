"""Calls on parallel streams of one GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import torch

Result = TypeVar("Result")


def side_by_side(calls: Sequence[Callable[[], Result]], device: torch.device) -> list[Result]:
    """The result of each call; on CUDA, each call launches its kernels on its own stream.

    These streams first wait for the current stream, and the current stream waits for them at the end, so inputs and
    results can be used as if everything had run on the current stream. The caller must keep references to the inputs
    until this function returns, since memory that is freed earlier may be reused on the current stream.
    """
    if device.type != "cuda" or len(calls) == 1:
        return [call() for call in calls]
    main_stream, results = torch.cuda.current_stream(device), []
    streams = [_stream(device, number) for number in range(len(calls))]
    for call, stream in zip(calls, streams, strict=True):
        stream.wait_stream(main_stream)
        with torch.cuda.stream(stream):
            results.append(call())
    for stream in streams:
        main_stream.wait_stream(stream)
    return results


@cache
def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """The same stream for the same number, since a recording is replayed only on its own stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
