"""Finds the optimizers in the return value of ``configure_optimizers``."""

from __future__ import annotations

from typing import Any

import torch


def optimizers_in(configured: Any) -> list[torch.optim.Optimizer]:
    """The optimizers in anything that ``configure_optimizers`` may return, in order."""
    if isinstance(configured, torch.optim.Optimizer):
        return [configured]
    if isinstance(configured, dict):
        return optimizers_in(configured.get("optimizer"))
    if isinstance(configured, list | tuple):
        return [optimizer for entry in configured for optimizer in optimizers_in(entry)]
    return []
