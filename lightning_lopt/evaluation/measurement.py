"""The measurement of an optimizer on a problem, which JSON files store and metrics read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

WINDOWS = 100  # number of windows of the training loss of one run, for any horizon
CHECKPOINTS = 20  # number of checkpoints of the validation loss of one run


def window_ends(horizon: int, windows: int = WINDOWS) -> list[int]:
    """Steps made at the end of each of ``min(windows, horizon)`` windows of nearly equal length.

    >>> window_ends(10, 4)
    [2, 5, 7, 10]
    """
    windows = min(windows, horizon)
    return [horizon * (window + 1) // windows for window in range(windows)]


@dataclass(frozen=True)
class Measurement:
    """The measurement of one optimizer on one problem.

    Axes: W windows of the run, V checkpoints of it, S seeds. Losses have the unit of the task; losses that are not
    finite are stored as they are. :func:`window_ends` gives the ends of windows and checkpoints.

    Attributes:
        optimizer: name of the optimizer in tables and files (``"base"``, ``"adamw"``).
        horizon: inner steps of the run.
        train: mean over each window of the mini-batch loss before the step, shape ``(W, S)``.
        valid: loss on the validation split at each checkpoint, shape ``(V, S)``; the last is after the last step.
        final_train: loss on the training split after the last step, shape ``(S,)``.
        learning_rate: the learning rate that tuning has chosen; ``None`` without tuning.
        metrics: further metrics of the validation split at each checkpoint (``"accuracy"``), shape ``(V, S)`` each.
    """

    optimizer: str
    horizon: int
    train: Tensor
    valid: Tensor
    final_train: Tensor
    learning_rate: float | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seeds = len(self.final_train)
        needed_shapes = {
            "train": (len(window_ends(self.horizon)), seeds),
            "valid": (len(window_ends(self.horizon, CHECKPOINTS)), seeds),
            "final_train": (seeds,),
        }
        for name, shape in needed_shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(getattr(self, name).shape)}.")
        for name, values in self.metrics.items():
            if values.shape != self.valid.shape:
                raise ValueError(
                    f"metric {name!r} must have shape {tuple(self.valid.shape)}, got {tuple(values.shape)}."
                )

    @property
    def final_valid(self) -> Tensor:
        """Loss on the validation split after the last step, shape ``(S,)``."""
        return self.valid[-1]

    def to_json(self) -> dict[str, Any]:
        """JSON values, six significant digits each; values that are not finite become ``None``."""
        return {
            "optimizer": self.optimizer,
            "horizon": self.horizon,
            "learning_rate": self.learning_rate,
            "train": _to_json(self.train),
            "valid": _to_json(self.valid),
            "final_train": _to_json(self.final_train),
            "metrics": {name: _to_json(values) for name, values in self.metrics.items()},
        }

    @classmethod
    def from_json(cls, content: Any) -> Measurement:
        """The measurement from JSON values of :meth:`to_json`; ``None`` becomes NaN.

        Raises:
            ValueError: if anything is missing, of another type or of another shape.
        """
        try:
            rate = content["learning_rate"]
            return cls(
                str(content["optimizer"]),
                _count(content["horizon"]),
                _from_json(content["train"]),
                _from_json(content["valid"]),
                _from_json(content["final_train"]),
                None if rate is None else float(rate),
                {str(name): _from_json(values) for name, values in content["metrics"].items()},
            )
        except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"this is no measurement: {reason}.") from None


def in_windows(values: Tensor, windows: int = WINDOWS) -> Tensor:
    """Means over the windows of a run: shape ``(T, ...)`` to ``(W, ...)``."""
    ends = window_ends(len(values), windows)
    return torch.stack([values[begin:end].mean(0) for begin, end in zip([0, *ends[:-1]], ends, strict=True)])


def six_digits(value: float) -> float | None:
    """A number as files store it: six significant digits, ``None`` if it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _to_json(values: Tensor) -> list[Any]:
    if values.dim() > 1:
        return [_to_json(row) for row in values]
    return [six_digits(value) for value in values.tolist()]


def _from_json(values: Sequence[Any]) -> Tensor:
    if values and isinstance(values[0], list):
        return torch.stack([_from_json(row) for row in values])
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)


def _count(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 10**9:
        raise ValueError(f"horizon must be a whole number of at least 1, got {value!r}")
    return value
