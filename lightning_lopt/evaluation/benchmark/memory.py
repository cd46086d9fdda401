"""Memory of an optimizer: bytes between steps, and further bytes during a step.

On the CPU, ``torch.profiler`` records every allocation and release of torch's allocator, including those of operators
and compiled code. The size of the process would not show them, because freed memory stays with the process. On CUDA the
numbers are ``torch.cuda.memory_allocated`` and ``max_memory_allocated``; they do not contain the memory that a CUDA
graph reserves.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd.profiler import profile, record_function

from lightning_lopt.evaluation.step_cost import Step

_STEP = "lightning_lopt: optimizer step"


class StepMemory(NamedTuple):
    """Bytes of an optimizer.

    Attributes:
        state: bytes that were allocated since the optimizer was built, and are not released after a step: the state of
            the optimizer and other permanent memory.
        peak: largest number of further bytes during a step, compared with the beginning of the step.
    """

    state: int
    peak: int


def measured_memory(build: Callable[[], Step], steps: int, device: torch.device) -> tuple[Step, StepMemory]:
    """Build an optimizer, make ``steps`` steps and record its memory; the first step does not count for the peak.

    Args:
        build: function that makes a new optimizer of parameters with gradients, and returns a function for one step.
        steps: number of steps, >= 2; the first step creates the state.
        device: device of the parameters.

    >>> layer = torch.nn.Linear(1000, 1000)
    >>> layer(torch.ones(1, 1000)).sum().backward()
    >>> build = lambda: torch.optim.SGD([layer.weight], momentum=0.9).step
    >>> step, memory = measured_memory(build, 3, torch.device("cpu"))
    >>> memory.state
    4000000
    """
    if device.type == "cuda":
        return _on_cuda(build, steps, device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler logs each start and stop
    with profile(use_kineto=True, profile_memory=True) as recorded:
        step = build()
        for _ in range(steps):
            with record_function(_STEP):
                step()
    assert recorded.kineto_results is not None
    events = recorded.kineto_results.events()
    begins = sorted(event.start_ns() for event in events if event.name() == _STEP)
    ends = [event.start_ns() + event.duration_ns() for event in events if event.name() == _STEP]
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in events
        if event.name() == "[memory]" and event.device_type() == torch._C._autograd.DeviceType.CPU
    )
    return step, _memory_of_changes(changes, begins[1:], max(ends))


def _memory_of_changes(changes: list[tuple[int, int]], begins: list[int], end: int) -> StepMemory:
    """State and peak, from the times and sizes of allocations and releases, and the times at which steps begin.

    >>> _memory_of_changes([(1, 100), (5, 30), (6, -30), (9, 20), (10, 5), (11, -25)], begins=[4, 8], end=12)
    StepMemory(state=100, peak=30)
    """
    level = peak = base = 0
    later_begins = list(begins)
    for time, size in changes:
        if time > end:
            break
        while later_begins and time >= later_begins[0]:
            base = level
            later_begins.pop(0)
        level += size
        if len(later_begins) < len(begins):
            peak = max(peak, level - base)
    return StepMemory(level, peak)


def _on_cuda(build: Callable[[], Step], steps: int, device: torch.device) -> tuple[Step, StepMemory]:
    bytes_before = torch.cuda.memory_allocated(device)
    step = build()
    step()
    peak = 0
    for _ in range(steps - 1):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        bytes_at_start = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        peak = max(peak, torch.cuda.max_memory_allocated(device) - bytes_at_start)
    return step, StepMemory(torch.cuda.memory_allocated(device) - bytes_before, peak)
