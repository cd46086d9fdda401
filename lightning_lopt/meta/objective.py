"""The meta-loss: the losses of an inner run, made comparable between tasks and weighted over time."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_lopt.checks import check_positive
from lightning_lopt.tasks.base import Split

SCALES = ("linear", "log")
SPLITS = ("train", "valid", "both")


@dataclass(frozen=True)
class MetaLoss:
    r"""The meta-loss of one inner run: a weighted mean over its steps of :math:`\ell(L_t / s)`.

    :math:`L_t` is the loss of a batch before step t, :math:`s` the ``loss_scale`` of the task (the loss of a constant
    prediction). A value that is not finite or above ``cap`` counts as ``cap``. Then

    .. math:: \ell(x) = x \quad\text{(linear)} \qquad\text{or}\qquad \ell(x) = \log(x + f) \quad\text{(log)}

    With the logarithm, a halving of the loss counts the same at every level down to the floor f. The difference between
    the two particles of an antithetic pair then equals the difference of their log-ratios to *any* baseline on the same
    task and seed, since the baseline cancels.

    Args:
        scale: ``"linear"`` or ``"log"``.
        split: batches that are measured: ``"train"`` (the batches of the steps, at no extra cost), ``"valid"``, or the
            mean of :math:`\ell` on ``"both"``; ``"valid"`` and ``"both"`` cost one more forward pass per step.
        last: share of the horizon, at its end, whose steps count, in (0, 1]; 1 for all steps.
        cap: largest value, in units of ``loss_scale``, > 0; ``None`` for no cap (a pair with a loss that is not finite
            is then left out).
        floor: the floor f, in units of ``loss_scale``, > 0.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning_lopt import PES
        >>> estimator = PES(truncation=50, meta_loss=MetaLoss("log", split="valid", last=0.25))
        >>> losses = torch.tensor([0.1, 1.0, float("nan")])  # in units of the task's loss_scale
        >>> estimator.meta_loss.of_losses(losses)
        tensor([-2.2073,  0.0100,  0.4121])
    """

    scale: Literal["linear", "log"] = "linear"
    split: Literal["train", "valid", "both"] = "train"
    last: float = 1.0
    cap: float | None = 1.5
    floor: float = 0.01

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"the scale of a meta-loss must be one of {SCALES}, got {self.scale!r}.")
        if self.split not in SPLITS:
            raise ValueError(f"the split of a meta-loss must be one of {SPLITS}, got {self.split!r}.")
        if not 0 < self.last <= 1:
            raise ValueError(f"last must lie in (0, 1], got {self.last!r}.")
        if self.cap is not None and not self.cap > 0:
            raise ValueError(f"cap must be positive or None, got {self.cap!r}.")
        check_positive(floor=self.floor)

    @property
    def config(self) -> dict[str, Any]:
        """JSON values, for cards and logs."""
        return asdict(self)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits whose batches are measured."""
        return ("train", "valid") if self.split == "both" else (self.split,)

    def of_losses(self, losses: Tensor) -> Tensor:
        r""":math:`\ell` of ``losses`` in units of ``loss_scale``, any shape; without a cap, NaN if not finite."""
        if self.cap is None:
            losses = torch.where(losses.isfinite(), losses, torch.nan)
        else:
            losses = torch.where(losses.isfinite(), losses, self.cap).clamp(max=self.cap)
        return losses if self.scale == "linear" else torch.log(losses.clamp(min=0.0) + self.floor)

    def weights(self, first: int, steps: int, horizon: int, device: torch.device | str = "cpu") -> Tensor:
        """Weight of each of ``steps`` steps from step ``first`` on, shape ``(steps,)``; the mean weight of a run is 1.

        >>> MetaLoss(last=0.5).weights(0, 8, 8)
        tensor([0., 0., 0., 0., 2., 2., 2., 2.])
        """
        counted = max(1, round(self.last * horizon))
        step_numbers = torch.arange(first, first + steps, device=device)
        return torch.where(step_numbers >= horizon - counted, horizon / counted, 0.0)
