"""Context managers that restore random states, so that measurements of a user's model and data do not change a run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_lopt.tasks.seeded_random import isolated

MAX_DEPTH = 5  # depth to which attributes of attributes are searched for generators


@contextmanager
def random_states_restored() -> Iterator[None]:
    """Restore the global random states of torch on all devices, of NumPy and Python; gradients are enabled inside."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), isolated(0), torch.enable_grad():
        yield


@contextmanager
def generators_restored(*owners: Any) -> Iterator[None]:
    """Restore the states of the generators of torch, NumPy and Python in datasets, samplers and loaders.

    Example:
        >>> draws = torch.Generator().manual_seed(0)
        >>> with generators_restored([draws]):
        ...     inside = torch.rand(1, generator=draws)
        >>> bool(torch.rand(1, generator=draws) == inside)
        True
    """
    restorers = [restorer for owner in owners for restorer in _state_restorers(owner, set(), MAX_DEPTH)]
    try:
        yield
    finally:
        for restorer in restorers:
            restorer()


def _state_restorers(value: Any, visited: set[int], depth: int) -> Iterator[Callable[[], Any]]:
    """For each generator in ``value``, a function that restores its present state."""
    if id(value) in visited or isinstance(value, Tensor | np.ndarray | nn.Module | str | bytes | int | float | None):
        return
    visited.add(id(value))
    if isinstance(value, torch.Generator):
        yield partial(value.set_state, value.get_state())
    elif isinstance(value, np.random.Generator):
        yield partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    elif isinstance(value, np.random.RandomState):
        yield partial(value.set_state, value.get_state())
    elif isinstance(value, random.Random):
        yield partial(value.setstate, value.getstate())
    elif depth:
        for child in _children_of(value):
            yield from _state_restorers(child, visited, depth - 1)


def _children_of(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values()) if len(value) < 100 else []
    if isinstance(value, list | tuple):
        return list(value) if len(value) < 100 else []  # a longer sequence is a data set, which is not searched
    return list(vars(value).values()) if hasattr(value, "__dict__") and not isinstance(value, type) else []
