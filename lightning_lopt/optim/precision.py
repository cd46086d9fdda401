"""The types in which a step is computed, and whether numbers are finite, without waiting for a device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_WITH_AUTOCAST = ("cpu", "cuda")


def wide(x: Tensor) -> Tensor:
    """``x`` in the type in which a rule computes: real, and float32, or float64 where ``x`` is float64 or complex128.

    A complex tensor becomes a view of pairs of real numbers, with one axis of length 2 more.

    >>> wide(torch.ones(3, dtype=torch.bfloat16)).dtype, wide(torch.ones(3, dtype=torch.complex64)).shape
    (torch.float32, torch.Size([3, 2]))
    """
    x = real(x)
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def real(x: Tensor) -> Tensor:
    """``x``, or a view of its pairs of real numbers where it is complex; writing to the view writes to ``x``."""
    return torch.view_as_real(x) if x.is_complex() else x


def all_finite(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Whether all entries are finite, 0-dim on ``device``; NaN is both the smallest and the largest of its tensor."""
    extremes = [extreme.to(device) for x in tensors if x.numel() for extreme in torch.aminmax(x)]
    return torch.isfinite(torch.stack(extremes)).all() if extremes else torch.ones((), dtype=torch.bool, device=device)


def known(flag: Tensor) -> bool | None:
    """The value of a 0-dim flag where it lies in the memory of the host; ``None`` where reading it would wait."""
    if flag.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    return bool(flag.tolist())


@contextmanager
def autocast_disabled(device: torch.device) -> Iterator[None]:
    """Compute in the types that tensors have: manual optimization calls ``step`` inside Lightning's autocast region."""
    if device.type in _WITH_AUTOCAST and torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            yield
    else:
        yield
