"""What reaches an optimizer from outside: the loss of a step and the number of steps to come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class StepSignals:
    """What reaches an optimizer from outside between two steps; shared by reference, so wrappers may write to it."""

    def __init__(self) -> None:
        self.loss: Tensor | None = None  # of the coming step, the same on all ranks
        self.reduce: Callable[[Tensor], Tensor] | None = None  # makes a loss that step() is given the same on all ranks
        self.warned = False


def one_number(loss: Any, device: torch.device) -> Tensor:
    """A loss as a float32 tensor of no dimensions, without its graph, on ``device``."""
    value = torch.as_tensor(loss).detach().to(device, non_blocking=True)
    if value.numel() != 1:
        raise ValueError(
            f"the loss must be one number, got a tensor of shape {tuple(value.shape)}; pass the one that was "
            "differentiated."
        )
    return value.reshape(()).float()


def checked_horizon(total_steps: Any) -> int | None:
    """A number of steps as ``int``, whatever kind of whole number it came as; ``None`` stays ``None``."""
    if total_steps is None:
        return None
    try:
        whole = int(total_steps)
    except (TypeError, ValueError, OverflowError):  # no number, nan, inf
        whole = 0
    if whole < 1 or whole != total_steps:
        raise ValueError(f"total_steps must be a whole number of at least 1, got {total_steps!r}.")
    return whole
