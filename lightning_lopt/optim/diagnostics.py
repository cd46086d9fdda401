"""Numbers of a step for the loggers: the size of the updates relative to the size of the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_lopt.optim.groups import Member
from lightning_lopt.optim.rates import multiplier


def relative_steps(
    members: Sequence[Member], params: Mapping[str, Tensor], updates: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    r"""The ratio :math:`\mathrm{RMS}(\Delta p) / \mathrm{RMS}(p)` over all tensors of each role, 0-dim.

    Args:
        members: parameters that are stepped.
        params: values of the parameters before the step, by name.
        updates: updates of the rule before the multiplication by ``lr``, by name.
    """
    squares: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for member in members:
        if member.name in updates:
            update, param = updates[member.name] * multiplier(member.group), params[member.name]
            pair = update.float().square().sum(), param.float().square().sum()
            squares.setdefault(member.role, []).append(pair)
    sums = {role: (torch.stack(column).sum() for column in zip(*pairs, strict=True)) for role, pairs in squares.items()}
    return {f"relative_step/{role}": torch.sqrt(update / (param + 1e-30)) for role, (update, param) in sums.items()}
