"""Copies of tensors on other devices: asynchronous copies and cached copies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_COPIES = WeakTensorKeyDictionary()  # copies by tensor and device; the copies are deleted with their tensor


def sent(value: Tensor, device: torch.device) -> Tensor:
    """``value`` on ``device``; a copy to a GPU does not wait for kernels that were launched before."""
    if device.type != "cuda" or value.is_cuda:
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)  # a copy from memory that is not pinned would wait


def cached_on(value: Tensor, device: torch.device) -> Tensor:
    """The cached copy of ``value`` on ``device``; callers must not change the copy."""
    if value.device == device:
        return value
    if value not in _COPIES:
        _COPIES[value] = {}
    copies: dict[torch.device, Tensor] = _COPIES[value]
    if device not in copies:
        copies[device] = value.to(device)
    return copies[device]


def usable_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        ValueError: if no tensor can be made on the device.

    >>> usable_device("cpu")
    device(type='cpu')
    """
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"no device {name!r} can be used here ({reason}); leave --device out for the CPU.") from error
