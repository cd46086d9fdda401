"""Models that rules of one class and config train side by side, from their first to their last step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import vmap

from lightning_lopt.meta.engine import Recorded
from lightning_lopt.meta.runs import InnerRuns, rolled_back, start_runs, validated
from lightning_lopt.meta.theta import stacked_theta
from lightning_lopt.meta.unroll import unroll
from lightning_lopt.rules.base import Params, State, UpdateRule
from lightning_lopt.seeding import generator
from lightning_lopt.tasks.base import Batch, Split, Task

PerModel = Callable[[Params, Batch], Batch]
"""A pure function of one model's parameters and a batch, which returns 0-dim tensors."""


class RuleModels:
    """Models trained by rules of one class and config.

    Args:
        rules: at least one; they differ only in θ.
        task: the task.
        steps: steps of a run.
        seeds: models for each rule, >= 1.
        seed: seed of models and mini-batches.
    """

    def __init__(self, rules: Sequence[UpdateRule], task: Task, steps: int, seeds: int, seed: int) -> None:
        self.rule, self.theta = rules[0], stacked_theta(rules, seeds)
        self.runs = start_runs(self.rule, task, pairs=seeds, horizon=steps, seed=seed, copies=len(rules))
        self.best = self.runs.params if self.rule.reads_validation else {}  # best parameters by validation loss
        self.draws, self.execution = generator(seed, "batches"), Recorded()

    def advance(self, steps: int) -> Tensor:
        self.runs, losses = unroll(self.rule, self.theta, self.runs, steps, self.draws, execution=self.execution)
        return losses[0]

    def validated(self, losses: Tensor) -> None:
        runs = validated(self.rule, self.runs, losses)
        self.runs, self.best = rolled_back(self.rule, runs, losses, self.best)

    def on_full_batch(self, split: Split, function: PerModel) -> Batch:
        """Apply ``function`` to each model and the whole split, one rule at a time to bound the memory."""

        def of_model(params: Params, state: State, batch: Batch) -> Batch:
            trained = {name: value for name, value in params.items() if name in task.roles}
            return function(params | self.rule.evaluation_params(trained, state), batch)

        task, device = self.runs.task, next(iter(self.runs.params.values())).device
        batch = {name: value.to(device) for name, value in task.full_batch(split).items()}
        outputs_by_rule = [
            vmap(of_model, in_dims=(0, 0, None))(*models, batch) for models in _models_by_rule(self.runs)
        ]
        return {key: torch.cat([outputs[key] for outputs in outputs_by_rule]) for key in outputs_by_rule[0]}


def _models_by_rule(runs: InnerRuns) -> list[tuple[Params, State]]:
    """Parameters and states of the models of each rule."""
    count = runs.count // runs.copies
    pieces = []
    for index in range(runs.copies):
        rows = slice(index * count, (index + 1) * count)
        tensors = {
            name: {key: value[rows] for key, value in state.items()} for name, state in runs.state.tensors.items()
        }
        shared = {key: value[rows] for key, value in runs.state.shared.items()}
        pieces.append(({name: value[rows] for name, value in runs.params.items()}, State(tensors, shared)))
    return pieces
