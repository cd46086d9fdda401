"""Calls whose kernels run beside each other on one GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import torch

Result = TypeVar("Result")


def side_by_side(calls: Sequence[Callable[[], Result]], device: torch.device) -> list[Result]:
    """The result of each call; on CUDA each launches its kernels on a stream of its own.

    The current stream is waited for before the calls and waits for all of them after: what they read and return is
    used as if everything had run on it. The caller keeps what they read alive until this function returns, since memory
    that is freed earlier is given to others on the current stream.
    """
    if device.type != "cuda" or len(calls) == 1:
        return [call() for call in calls]
    main, results = torch.cuda.current_stream(device), []
    streams = [_stream(device, number) for number in range(len(calls))]
    for call, stream in zip(calls, streams, strict=True):
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            results.append(call())
    for stream in streams:
        main.wait_stream(stream)
    return results


@cache
def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """Always the same ones, since what is recorded for a stream is replayed on it alone."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
