"""Changes of the horizon during a run: schedules continue without a jump, and end at the new horizon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

KEY = "schedule"  # key in the first parameter group, after a change of the horizon: step and progress at that time


def scheduled(group: Mapping[str, Any], total: Tensor) -> Tensor | None:
    r"""The step that schedules use, 0-dim; ``None`` if the horizon has not changed, so that it is the number of steps.

    With a horizon that changed to :math:`T` after :math:`t_0` steps, at a progress :math:`p_0` in [0, 1], the step of
    schedules goes from :math:`p_0 T` at step :math:`t_0`, without a jump, linearly to :math:`T - 1` at the last step.

    Args:
        group: the first parameter group: ``step``, and ``schedule`` of shape (2,) if the horizon has changed.
        total: the present horizon T, 0-dim.
    """
    change = group.get(KEY)
    if change is None:
        return None
    change_step, progress = change.unbind()
    start_step, last_step = total * progress, total - 1
    covered_share = (group["step"].float() - change_step) / (last_step - change_step)
    return torch.where(last_step > change_step, start_step + (last_step - start_step) * covered_share, last_step)


def changed(group: Mapping[str, Any], old_total: int) -> Tensor:
    """The value of ``schedule``, shape (2,), if the horizon changes from ``old_total`` to another one at this step.

    >>> group = {"step": torch.tensor(50)}
    >>> group["schedule"] = changed(group, 100)
    >>> scheduled(group, torch.tensor(70.0)) / 70  # as 50 / 100
    tensor(0.5000)
    """
    step = group["step"].float()
    total = torch.full((), float(old_total), dtype=torch.float32, device=step.device)
    present = scheduled(group, total)
    progress = ((step if present is None else present) / total).clamp(max=1.0)
    return torch.stack([step, progress])
