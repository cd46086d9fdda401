"""The types in which a step is computed, and tests for finite numbers that do not wait for a device."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_WITH_AUTOCAST = ("cpu", "cuda")

Flag = bool | Tensor
"""A truth value: a ``bool`` if it is known on the host, else a 0-dim tensor on the device that computes it."""


def wide(x: Tensor) -> Tensor:
    """``x`` in the type in which a rule computes: float64 if ``x`` is float64 or complex128, else float32.

    A complex tensor becomes a view of pairs of real numbers, with an additional axis of length 2.

    >>> wide(torch.ones(3, dtype=torch.bfloat16)).dtype, wide(torch.ones(3, dtype=torch.complex64)).shape
    (torch.float32, torch.Size([3, 2]))
    """
    x = real(x)
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def real(x: Tensor) -> Tensor:
    """``x``, or a view of pairs of real numbers if ``x`` is complex; writing to the view writes to ``x``."""
    return torch.view_as_real(x) if x.is_complex() else x


def extremes_of_each(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """The smallest and the largest entry of each of n tensors, (2 n,) on ``device``; NaN if an entry is NaN."""
    extremes = [extreme.to(device) for x in tensors if x.numel() for extreme in torch.aminmax(x)]
    return torch.stack(extremes) if extremes else torch.zeros(0, device=device)


def all_finite(x: Tensor) -> Flag:
    """Whether all entries of a short vector, or of a 0-dim tensor, are finite."""
    if _is_on_host(x):
        values = x.tolist()
        return all(map(math.isfinite, values if x.ndim else [values]))
    return torch.isfinite(x).all()


def both_true(first: Flag, second: Flag) -> Flag:
    """Whether two flags are true, on the device of the first flag."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        second = second.to(first.device)
    return first & second


def host_value(flag: Tensor) -> bool | None:
    """The value of a 0-dim flag in the memory of the host; ``None`` if reading the flag would wait for its device."""
    return bool(flag.tolist()) if _is_on_host(flag) else None


def _is_on_host(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def autocast_disabled(device: torch.device) -> AbstractContextManager[Any]:
    """Disable autocast: under manual optimization, ``step`` is called inside the autocast region of Lightning."""
    if device.type in _WITH_AUTOCAST and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
