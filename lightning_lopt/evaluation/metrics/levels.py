r"""Losses of different tasks on one scale.

A loss L of a task whose scale is s (the loss of a model that knows nothing) becomes :math:`\ell = \min(L / s, 1.5)`;
a loss that is not finite becomes 1.5. Below :data:`FLOOR` lower is hardly better: it is memorising.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lopt.evaluation.measurement import Measurement

FLOOR = 0.01
"""In units of the know-nothing loss."""

CAP = 1.5
"""In units of the know-nothing loss; what is above counts as this much, and as diverged."""


def relative(losses: Tensor, loss_scale: float | Tensor) -> Tensor:
    """Losses in units of the know-nothing loss, in [0, 1.5], float64; what is not finite is 1.5."""
    scaled = losses.double() / loss_scale
    return torch.where(scaled.isfinite(), scaled, CAP).clamp(0.0, CAP)


def log_ratio(ours: Tensor, reference: Tensor, loss_scale: float | Tensor) -> Tensor:
    r""":math:`\log \frac{\ell_\text{ours} + f}{\ell_\text{reference} + f}`, f the :data:`FLOOR`: below 0 where ours is
    lower. Same shape as the losses."""
    return torch.log(relative(ours, loss_scale) + FLOOR) - torch.log(relative(reference, loss_scale) + FLOOR)


def final_loss(run: Measurement, split: str) -> Tensor:
    """Loss after the last step on the split ``"train"`` or ``"valid"``, or the lowest of ``"best_valid"``: ``(S,)``."""
    if split == "best_valid":
        return lowest(run.valid)
    return {"train": run.final_train, "valid": run.final_valid}[split]


def lowest(values: Tensor) -> Tensor:
    """The lowest over checkpoints, shape ``(V, S)`` to ``(S,)``; NaN counts as infinite."""
    return torch.nan_to_num(values, nan=torch.inf).amin(0)


def median_loss(losses: Tensor) -> float:
    """Median over seeds, of an even number the mean of the middle two; what is not finite counts as infinite.

    >>> median_loss(torch.tensor([0.5, float("nan"), 0.1]))
    0.5
    """
    ordered = torch.where(losses.isfinite(), losses, torch.inf).double().sort().values
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)
