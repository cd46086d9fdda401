"""Problems, measurements of optimizers on problems, and the complete inner runs that give their values.

Models of many seeds and of many settings of an optimizer run side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_lopt.meta.rule_models import PerModel, RuleModels
from lightning_lopt.meta.runs import device_of
from lightning_lopt.rules.base import Params, UpdateRule
from lightning_lopt.tasks.base import Batch, Split, Task

WINDOWS = 100  # number of windows of the training loss of one run, for any horizon
CHECKPOINTS = 20  # number of checkpoints of the validation loss of one run


@dataclass(frozen=True)
class Problem:
    """A task with a horizon, on which optimizers are measured.

    Attributes:
        name: name of the problem, short and unique within a suite.
        task: the task.
        horizon: number of inner steps of a run.
        family: name of the task family that could have drawn the task (``"image_mlp"``), for a comparison with a rule's
            record of meta-training; empty if no family fits.
        data: name of the data (``"digits"``), for the same comparison.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), horizon=100)
        >>> bowl.task.roles, bowl.horizon
        ({'x': 'vector'}, 100)
    """

    name: str
    task: Task
    horizon: int
    family: str = ""
    data: str = ""


def window_ends(horizon: int, windows: int = WINDOWS) -> list[int]:
    """Number of steps at the end of each of ``min(windows, horizon)`` windows of nearly equal length.

    >>> window_ends(10, 4)
    [2, 5, 7, 10]
    """
    windows = min(windows, horizon)
    return [horizon * (window + 1) // windows for window in range(windows)]


@dataclass(frozen=True)
class Measurement:
    """The measurement of one optimizer on one problem.

    Axes: W windows of the run, V checkpoints of the run, S seeds. Losses have the unit of the task; values that are not
    finite are stored unchanged. :func:`window_ends` gives the ends of windows and checkpoints.

    Attributes:
        optimizer: name of the optimizer in tables and files (``"base"``, ``"adamw"``).
        horizon: inner steps of the run.
        train: mean over each window of the mini-batch loss before the step, shape ``(W, S)``.
        valid: loss on the validation split at each checkpoint, shape ``(V, S)``; the last checkpoint is the run's end.
        final_train: loss on the training split after the last step, shape ``(S,)``.
        learning_rate: the learning rate that tuning has chosen; ``None`` without tuning.
        metrics: further metrics of the validation split (``"accuracy"``) by name, shape ``(V, S)`` each.

    Example:
        >>> losses = torch.tensor([[4.0, 4.0], [2.0, 3.0], [1.0, 2.0]])  # three steps with two seeds
        >>> Measurement.of_losses(losses, optimizer="mine").final_train
        tensor([1., 2.])
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
        expected_shapes = {
            "train": (len(window_ends(self.horizon)), seeds),
            "valid": (len(window_ends(self.horizon, CHECKPOINTS)), seeds),
            "final_train": (seeds,),
        }
        for name, shape in expected_shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(getattr(self, name).shape)}.")
        for name, values in self.metrics.items():
            if values.shape != self.valid.shape:
                raise ValueError(
                    f"metric {name!r} must have shape {tuple(self.valid.shape)}, got {tuple(values.shape)}."
                )

    @classmethod
    def of_losses(cls, train: Tensor, valid: Tensor | None = None, *, optimizer: str = "") -> Measurement:
        """A measurement from the losses of any training loop, for instance for metrics of logged runs.

        Args:
            train: training loss at each of T steps, shape ``(T,)``, or ``(T, S)`` for S seeds.
            valid: validation loss after each of these steps, same shape; ``None`` to use the losses ``train``.
            optimizer: name of the optimizer.

        Raises:
            ValueError: if the shapes differ, or are neither ``(T,)`` nor ``(T, S)``.

        >>> measurement = Measurement.of_losses(torch.linspace(1.0, 0.0, 201))
        >>> measurement.train.shape, measurement.valid.shape, measurement.final_valid
        (torch.Size([100, 1]), torch.Size([20, 1]), tensor([0.]))
        """
        if not (train.ndim in (1, 2) and train.numel() and train.is_floating_point()):
            raise ValueError(
                f"train must have floating losses of shape (T,) or (T, S), got {train.dtype} of {tuple(train.shape)}."
            )
        if valid is not None and valid.shape != train.shape:
            raise ValueError(f"valid must have the shape of train, {tuple(train.shape)}, got {tuple(valid.shape)}.")
        train, valid = (losses.reshape(len(losses), -1) for losses in (train, train if valid is None else valid))
        checkpoints = torch.tensor(window_ends(len(train), CHECKPOINTS)) - 1
        return cls(optimizer, len(train), in_windows(train), valid[checkpoints], train[-1])

    @property
    def final_valid(self) -> Tensor:
        """Loss on the validation split after the last step, shape ``(S,)``."""
        return self.valid[-1]

    def to_json(self) -> dict[str, Any]:
        """JSON values with six significant digits; values that are not finite become ``None``."""
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
            ValueError: if an entry is missing, or has another type or another shape.
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
            raise ValueError(f"this is not a measurement: {reason}.") from None


def in_windows(values: Tensor, windows: int = WINDOWS) -> Tensor:
    """Means over the windows of a run: shape ``(T, ...)`` to ``(W, ...)``."""
    ends = window_ends(len(values), windows)
    return torch.stack([values[begin:end].mean(0) for begin, end in zip([0, *ends[:-1]], ends, strict=True)])


def six_digits(value: float) -> float | None:
    """A number in the form for files: six significant digits, or ``None`` if the number is not finite."""
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


def run_rules(
    rules: Sequence[UpdateRule],
    problem: Problem | Task,
    *,
    horizon: int | None = None,
    seeds: int,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> list[Measurement]:
    """Train ``seeds`` models with each of several rules of one class and config, which differ only in θ.

    All rules have the same initial models and mini-batches, and run side by side under ``vmap``. Losses and metrics of
    whole splits are measured at the evaluation weights, :meth:`~lightning_lopt.UpdateRule.evaluation_params`. A rule
    that reads validation losses receives the losses of the 20 checkpoints.

    Args:
        rules: at least one rule; the rules are not changed.
        problem: a problem, or a task.
        horizon: number of inner steps; ``None`` for the horizon of the problem.
        seeds: number of models for each rule, >= 1.
        seed: seed of models and mini-batches.
        device: device of the runs; ``None`` for the device of the rules.

    Returns:
        one measurement for each rule, on the CPU, named ``"0"``, ``"1"``, ...

    Raises:
        ValueError: if a task comes without a horizon, or a number is below 1.
    """
    task, problem_horizon = (problem.task, problem.horizon) if isinstance(problem, Problem) else (problem, None)
    steps = problem_horizon if horizon is None else horizon
    if steps is None:
        raise ValueError(f"{task.name} is a task, which has no horizon; give horizon, or a Problem.")
    if not rules or seeds < 1 or steps < 1:
        raise ValueError(f"got {len(rules)} rules, {seeds} seeds and {steps} steps; give at least one of each.")
    if device is not None:
        rules = [rule if device_of(rule) == torch.device(device) else deepcopy(rule).to(device) for rule in rules]
    return measured_in_windows(RuleModels(rules, task, steps, seeds, seed), task, steps, copies=len(rules))


class SideBySide(Protocol):
    """N models that are trained side by side, in the order of the optimizers."""

    def advance(self, steps: int) -> Tensor:
        """Make ``steps`` steps, and return the losses before each step, shape ``(steps, N)``."""

    def on_full_batch(self, split: Split, function: PerModel) -> Batch:
        """``function`` of the parameters of each model and of the whole split, shape ``(N,)`` for each result."""

    def validated(self, losses: Tensor) -> None:
        """Pass the validation loss of each model, shape ``(N,)``, to an optimizer that reads it."""


def measured_in_windows(models: SideBySide, task: Task, steps: int, *, copies: int) -> list[Measurement]:
    """Train models from their first to their last step, and measure them during the run.

    Args:
        models: the models before their first step.
        task: the task.
        steps: number of steps of the run.
        copies: number of optimizers; all have the same number of models.

    Returns:
        one measurement for each optimizer, on the CPU, named ``"0"``, ``"1"``, ...
    """

    def loss(params: Params, batch: Batch) -> Batch:
        return {"loss": task.loss(params, batch)}

    windows: list[Tensor] = []
    checkpoints: list[Batch] = []
    steps_made = 0
    with torch.no_grad():
        for end in window_ends(steps):  # every checkpoint is at the end of a window
            windows.append(models.advance(end - steps_made).mean(0))
            steps_made = end
            if end in window_ends(steps, CHECKPOINTS):
                checkpoints.append(models.on_full_batch("valid", loss) | models.on_full_batch("valid", task.metrics))
                if end < steps:  # both final losses belong to the parameters after the last step
                    models.validated(checkpoints[-1]["loss"])
        final = models.on_full_batch("train", loss)["loss"]

    def values_of(copy: int, values: Tensor) -> Tensor:
        return values.reshape(*values.shape[:-1], copies, -1)[..., copy, :].cpu()

    curves = {key: torch.stack([point[key] for point in checkpoints]) for key in checkpoints[0]}
    return [
        Measurement(
            str(copy),
            steps,
            values_of(copy, torch.stack(windows)),
            values_of(copy, curves["loss"]),
            values_of(copy, final),
            metrics={key: values_of(copy, values) for key, values in curves.items() if key != "loss"},
        )
        for copy in range(copies)
    ]
