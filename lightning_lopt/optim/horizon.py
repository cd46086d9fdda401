"""A horizon that changes in the middle of a run: schedules go on from where they stand, and end at the new horizon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

KEY = "schedule"  # in the first parameter group, where the horizon has changed: step and progress at that time


def scheduled(own: Mapping[str, Any], total: Tensor) -> Tensor | None:
    r"""The step at which schedules stand, 0-dim; ``None`` where it is the number of steps made.

    With a horizon that changed to :math:`T` after :math:`t_0` steps, at a progress :math:`p_0` in [0, 1], it goes from
    :math:`p_0 T` at step :math:`t_0`, so that nothing jumps, linearly to :math:`T - 1` at the last step, T - 1.

    Args:
        own: the first parameter group: ``step``, and ``schedule`` of shape (2,) if the horizon has changed.
        total: the present horizon T, 0-dim.
    """
    start = own.get(KEY)
    if start is None:
        return None
    step, progress = start.unbind()
    begin, last = total * progress, total - 1
    way = (own["step"].float() - step) / (last - step)
    return torch.where(last > step, begin + (last - begin) * way, last)


def changed(own: Mapping[str, Any], old: int, new: int) -> Tensor:
    """What ``schedule`` has to be, shape (2,), so that the horizon may change from ``old`` to ``new`` steps now.

    >>> own = {"step": torch.tensor(50)}
    >>> own["schedule"] = changed(own, 100, 70)
    >>> scheduled(own, torch.tensor(70.0)) / 70  # as 50 / 100
    tensor(0.5000)
    """
    step = own["step"].float()
    total = torch.full((), float(old), dtype=torch.float32, device=step.device)
    present = scheduled(own, total)
    progress = ((step if present is None else present) / total).clamp(max=1.0)
    return torch.stack([step, progress])
