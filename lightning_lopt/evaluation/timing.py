"""Seconds of consecutive training steps of optimizers that take turns, and the machine on which they were measured."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from lightning_lopt.__about__ import __version__

BEGINNING = 20
"""First steps of a run, which may have other costs than later ones, since rules create their state."""
TRACING = 20
"""Steps after these in which :class:`~lightning_lopt.LearnedOptimizer` traces steps of small stacks, once in a run."""
STEADY = BEGINNING + TRACING


def synchronised_clock(device: torch.device) -> Callable[[], float]:
    """A clock in seconds for measuring work on a device.

    With one thread on the CPU it counts the time of the processor, which does not depend on other processes. Otherwise
    it is the wall-clock time, read after the device has finished.
    """
    if device.type == "cpu":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def time_in_turns(
    gradient: Callable[[], object],
    steps: Mapping[str, Callable[[], object]],
    turns: int,
    device: torch.device,
    *,
    prepare: Callable[[], object] = lambda: None,
    put_back: Callable[[], object] = lambda: None,
) -> tuple[list[float], dict[str, list[float]]]:
    """Seconds of the gradient and of each optimizer's step at each of ``turns`` consecutive training steps.

    In each turn the gradient is computed once, and then every optimizer makes a step with it, in an order that changes
    from turn to turn. So other work on the machine affects all optimizers equally, and no optimizer always has the
    gradients in the cache.

    Args:
        gradient: forward and backward pass; it computes the gradients that the steps read.
        steps: one step of each optimizer, by name.
        turns: consecutive steps, >= 1.
        device: device of the work.
        prepare: is called before each turn and not timed.
        put_back: is called before each step and not timed; it restores the parameters that another step has changed.
    """
    clock = synchronised_clock(device)

    def seconds(work: Callable[[], object]) -> float:
        begin = clock()
        work()
        return clock() - begin

    of_gradient: list[float] = []
    of_steps: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(turns):
        prepare()
        of_gradient.append(seconds(gradient))
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            put_back()
            of_steps[name].append(seconds(steps[name]))
    return of_gradient, of_steps


def mean_of_run(seconds: Sequence[float], horizon: int, period: int = 1) -> float:
    """Mean seconds of a step in a run, from those of its first consecutive steps.

    The first :data:`BEGINNING` steps count with their median, and the next :data:`TRACING` steps with their sum. For
    later steps, each position in the period counts with its median, and the period with the mean over its positions.
    All steps count as often as they occur within the horizon.

    Args:
        seconds: seconds of consecutive steps from the first on, more than ``STEADY + period`` of them.
        horizon: steps of the run, >= 1.
        period: number of steps after which the work of a step repeats, >= 1.

    >>> mean_of_run([7.0] * 20 + [4.0] * 20 + [1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 9.0], horizon=80, period=4)
    4.0
    """
    early, later = seconds[:BEGINNING], seconds[STEADY:]
    steady = statistics.fmean(statistics.median(later[place::period]) for place in range(period))
    early_steps = min(horizon, BEGINNING)
    tracing = seconds[BEGINNING : max(BEGINNING, min(horizon, STEADY))]
    steady_steps = horizon - early_steps - len(tracing)
    return (early_steps * statistics.median(early) + sum(tracing) + steady_steps * steady) / horizon


def environment_of(device: torch.device, threads: int) -> dict[str, str | int]:
    """Versions, processor and device, as JSON values.

    Args:
        device: device of the work.
        threads: number of threads of PyTorch in the processes.
    """
    return {
        "lightning_lopt": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cores": os.cpu_count() or 0,
        "threads": threads,
    }


def _processor() -> str:
    """Name of the processor, if the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
