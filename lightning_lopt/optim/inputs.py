"""Inputs of an optimizer between two steps: the loss, the horizon, and requests for diagnostics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor


class StepSignals:
    """Inputs of an optimizer between two steps. Wrappers of an optimizer share this object, so they may write to it.

    Attributes:
        loss: loss of the next step from the adapter; it is the mean over ranks.
        user_loss: loss of the next step from :meth:`~lightning_lopt.LearnedOptimizer.set_loss`.
        reduce: computes the mean over ranks of a loss from the user.
        wants_diagnostics: whether the next step fills ``diagnostics``; that step resets it to ``False``.
        diagnostics: 0-dim tensors by name, of the last step with ``wants_diagnostics``.
        warned: topics of the warnings so far; each warning is given once.
    """

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self.user_loss: Tensor | None = None
        self.reduce: Callable[[Tensor], Tensor] | None = None
        self.wants_diagnostics = False
        self.diagnostics: dict[str, Tensor] = {}
        self.warned: set[str] = set()


@dataclass
class RunState:
    """State of a run on the host. Wrappers of an optimizer share this object, so they see and make the same changes.

    Attributes:
        total_steps: the planned number of steps, or a function that returns it at the first step.
        calls: number of steps, including skipped steps.
        trained: the trained values of the parameters, while the parameters hold evaluation weights.
        saved_total: horizon of the loaded checkpoint, until the first step.
        epochs: the planned number of passes over the training data; ``None`` if it is unknown.
        best_statistics: copies of the running statistics at the lowest validation loss, see
            :func:`~lightning_lopt.optim.copies.statistics_of`.
    """

    total_steps: int | Callable[[], int] | None = None
    calls: int = 0
    trained: dict[Tensor, Tensor] | None = None
    saved_total: int | None = None
    epochs: float | None = None
    best_statistics: list[Tensor] = field(default_factory=list)


def scalar_loss(loss: Any, device: torch.device) -> Tensor:
    """A loss as a float32 tensor of no dimensions, without its graph, on ``device``.

    Raises:
        TypeError: if ``loss`` is no number.
        ValueError: if ``loss`` has several entries, or is complex.
    """
    try:
        # The type is explicit for Python numbers, since the default type is half under "16-true".
        dtype = torch.float32 if isinstance(loss, float | int) else None
        value = loss.detach() if isinstance(loss, Tensor) else torch.as_tensor(loss, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"the loss must be a number or a tensor of one entry, got a {type(loss).__name__}; call step(loss=loss), "
            "step(loss) or step(lambda: loss)."
        ) from error
    if value.numel() != 1 or value.is_complex():
        raise ValueError(
            f"the loss must be one number, got a tensor of shape {tuple(value.shape)} and type {value.dtype}; pass the "
            "loss that was differentiated."
        )
    if value.ndim == 0 and value.dtype == torch.float32 and value.device == device:
        return value
    return value.to(device, non_blocking=True).reshape(()).float()


def checked_horizon(total_steps: Any) -> int | None:
    """A whole number of any type as ``int``; ``None`` stays ``None``.

    Raises:
        ValueError: if ``total_steps`` is no whole number of at least 1.
    """
    if total_steps is None:
        return None
    try:
        steps = int(total_steps)
    except (TypeError, ValueError, OverflowError):  # no number, nan, inf
        steps = 0
    if steps < 1 or steps != total_steps:
        raise ValueError(f"total_steps must be a whole number of at least 1, got {total_steps!r}.")
    return steps


def checked_epochs(epochs: Any) -> float | None:
    """A number of passes over the training data as ``float``; ``None`` stays ``None``.

    Raises:
        ValueError: if ``epochs`` is no finite number above 0.
    """
    if epochs is None:
        return None
    if isinstance(epochs, bool) or not isinstance(epochs, Real) or not 0 < float(epochs) < math.inf:
        raise ValueError(f"epochs must be a finite number above 0, got {epochs!r}.")
    return float(epochs)
