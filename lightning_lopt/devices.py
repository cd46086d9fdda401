"""Tensors on other devices: sent there without waiting, or kept there."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_COPIES = WeakTensorKeyDictionary()  # of a tensor on other devices, by device; they live as long as it


def sent(value: Tensor, device: torch.device) -> Tensor:
    """``value`` on ``device``; on the way to a GPU nothing waits for what was launched there before."""
    if device.type != "cuda" or value.is_cuda:
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)  # from other memory the copy itself would wait


def kept_on(value: Tensor, device: torch.device) -> Tensor:
    """``value`` on ``device``, the same copy each time: for what is read only."""
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
        ValueError: if no tensor can be made there.

    >>> usable_device("cpu")
    device(type='cpu')
    """
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"no device {name!r} can be used here ({reason}); leave --device out for the CPU.") from error
