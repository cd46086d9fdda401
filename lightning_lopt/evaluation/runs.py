"""Complete inner runs for measurements: many seeds and many settings of a rule, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from torch.func import vmap

from lightning_lopt.evaluation.measurement import CHECKPOINTS, Measurement, window_ends
from lightning_lopt.evaluation.problem import Problem
from lightning_lopt.meta.engine import Recorded
from lightning_lopt.meta.runs import InnerRuns, start_runs
from lightning_lopt.meta.theta import stacked_theta
from lightning_lopt.meta.unroll import unroll
from lightning_lopt.rules.base import Params, State, UpdateRule
from lightning_lopt.seeding import generator
from lightning_lopt.tasks.base import Batch, Split, Task

PerModel = Callable[[Params, Batch], Batch]
"""A pure function of one model's parameters and a batch, with 0-dim tensors in its result."""


def run_rules(
    rules: Sequence[UpdateRule], problem: Problem | Task, *, horizon: int | None = None, seeds: int, seed: int = 0
) -> list[Measurement]:
    """Train ``seeds`` models with each of several rules of one class and config, which differ only in θ.

    All rules have the same initial models and the same mini-batches, side by side under ``vmap``. Losses and metrics of
    whole splits are those of the evaluation weights, :meth:`~lightning_lopt.UpdateRule.evaluation_params`. Rules that
    read the validation loss get it at each checkpoint, 20 times in a run.

    Args:
        rules: at least one; the runs are on their device.
        problem: a problem, or a task.
        horizon: inner steps; ``None`` means those of the problem.
        seeds: models for each rule, >= 1.
        seed: seed of models and mini-batches.

    Returns:
        one measurement for each rule, on the CPU, named ``"0"``, ``"1"``, ...

    Raises:
        ValueError: if a bare task comes without a horizon, or there is nothing to run.
    """
    task, planned = (problem.task, problem.horizon) if isinstance(problem, Problem) else (problem, None)
    steps = planned if horizon is None else horizon
    if steps is None:
        raise ValueError(f"{task.name} is a task, which has no horizon; give horizon, or a Problem.")
    if not rules or seeds < 1 or steps < 1:
        raise ValueError(f"got {len(rules)} rules, {seeds} seeds and {steps} steps; give at least one of each.")
    return measured_in_windows(RuleModels(rules, task, steps, seeds, seed), task, steps, copies=len(rules))


class SideBySide(Protocol):
    """N models that are trained side by side, in the order of the optimizers."""

    def advance(self, steps: int) -> Tensor:
        """Make some steps, and return the losses before each of them, shape ``(steps, N)``."""

    def on_full_batch(self, split: Split, function: PerModel) -> Batch:
        """``function`` of the parameters of each model and of the whole split, shape ``(N,)`` for each result."""

    def validated(self, losses: Tensor) -> None:
        """Take note of the validation loss of each model, shape ``(N,)``, where the optimizer reads it."""


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
    made = 0
    with torch.no_grad():
        for end in window_ends(steps):  # every checkpoint is the end of a window too
            windows.append(models.advance(end - made).mean(0))
            made = end
            if end in window_ends(steps, CHECKPOINTS):
                checkpoints.append(models.on_full_batch("valid", loss) | models.on_full_batch("valid", task.metrics))
                models.validated(checkpoints[-1]["loss"])
        final = models.on_full_batch("train", loss)["loss"]

    def of(copy: int, values: Tensor) -> Tensor:
        return values.reshape(*values.shape[:-1], copies, -1)[..., copy, :].cpu()

    curves = {key: torch.stack([point[key] for point in checkpoints]) for key in checkpoints[0]}
    return [
        Measurement(
            str(copy),
            steps,
            of(copy, torch.stack(windows)),
            of(copy, curves["loss"]),
            of(copy, final),
            metrics={key: of(copy, values) for key, values in curves.items() if key != "loss"},
        )
        for copy in range(copies)
    ]


class RuleModels:
    """Models trained by rules of one class and config, ``seeds`` by each; arguments as of :func:`run_rules`."""

    def __init__(self, rules: Sequence[UpdateRule], task: Task, steps: int, seeds: int, seed: int) -> None:
        self.rule, self.theta = rules[0], stacked_theta(rules, seeds)
        self.runs = start_runs(self.rule, task, pairs=seeds, horizon=steps, seed=seed, copies=len(rules))
        self.draws, self.execution = generator(seed, "batches"), Recorded()

    def advance(self, steps: int) -> Tensor:
        self.runs, losses = unroll(self.rule, self.theta, self.runs, steps, self.draws, execution=self.execution)
        return losses[0]

    def on_full_batch(self, split: Split, function: PerModel) -> Batch:
        return _on_full_batch(self.rule, self.runs, split, function)

    def validated(self, losses: Tensor) -> None:
        if self.rule.reads_validation:
            progress = losses.new_tensor(self.runs.step / self.runs.horizon)

            def after(shared: dict[str, Tensor], loss: Tensor) -> dict[str, Tensor]:
                return self.rule.validated(State({}, shared), loss, progress).shared

            shared = vmap(after)(self.runs.state.shared, losses)
            self.runs = replace(self.runs, state=State(self.runs.state.tensors, shared))


def _on_full_batch(rule: UpdateRule, runs: InnerRuns, split: Split, function: PerModel) -> Batch:
    """``function`` of the parameters of each run and of the whole split, one copy at a time to bound the memory."""

    def of_model(params: Params, state: State, batch: Batch) -> Batch:
        trained = {name: value for name, value in params.items() if name in runs.task.roles}
        return function(params | rule.evaluation_params(trained, state), batch)

    device = next(iter(runs.params.values())).device
    full = {name: value.to(device) for name, value in runs.task.full_batch(split).items()}
    parts = []
    for params, state in _copies(runs):
        parts.append(vmap(of_model, in_dims=(0, 0, None))(params, state, full))
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _copies(runs: InnerRuns) -> list[tuple[Params, State]]:
    """Parameters and states of the runs of each copy."""
    count = runs.count // runs.copies
    pieces = []
    for copy in range(runs.copies):
        rows = slice(copy * count, (copy + 1) * count)
        tensors = {
            name: {key: value[rows] for key, value in state.items()} for name, state in runs.state.tensors.items()
        }
        shared = {key: value[rows] for key, value in runs.state.shared.items()}
        pieces.append(({name: value[rows] for name, value in runs.params.items()}, State(tensors, shared)))
    return pieces
