"""Complete inner runs for measuring: many seeds, and many settings of a rule, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from lightning_lopt.meta.inner import start_runs, unroll
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.rules.hand_designed import AdamRule
from lightning_lopt.seeding import generator
from lightning_lopt.tasks.base import Task

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


@dataclass(frozen=True)
class Curves:
    """What one optimizer did on one task.

    Attributes:
        name: of the optimizer.
        train: loss of each mini-batch before its step, shape ``(T, S)`` for S seeds.
        final_train: loss on the training split after the last step, shape ``(S,)``.
        final_valid: loss on the validation split after the last step, shape ``(S,)``.
    """

    name: str
    train: Tensor
    final_train: Tensor
    final_valid: Tensor


def run_rules(rules: Sequence[UpdateRule], task: Task, *, horizon: int, seeds: int, seed: int = 0) -> list[Curves]:
    """Train ``seeds`` models with each of several rules of one class and config that differ in θ alone.

    Every rule sees the same initial models and the same mini-batches. Names are ``"0"``, ``"1"``, ...
    """
    theta = {
        name: torch.stack([dict(rule.named_parameters())[name].detach() for rule in rules]).repeat_interleave(seeds, 0)
        for name, _ in rules[0].named_parameters()
    }
    runs = start_runs(rules[0], task, pairs=seeds, horizon=horizon, seed=seed, copies=len(rules))
    with torch.no_grad():
        runs, losses = unroll(rules[0], theta, runs, horizon, generator(seed, "batches"))
        final = {
            split: torch.stack(
                [
                    vmap(task.loss, in_dims=(0, None))(
                        {name: value[copy * seeds : (copy + 1) * seeds] for name, value in runs.params.items()}, full
                    )
                    for copy in range(len(rules))
                ]
            )
            for split, full in (("train", task.full_batch("train")), ("valid", task.full_batch("valid")))
        }
    train = losses[0].reshape(horizon, len(rules), seeds)
    return [Curves(str(copy), train[:, copy], final["train"][copy], final["valid"][copy]) for copy in range(len(rules))]


def tuned_adamw(
    task: Task,
    *,
    horizon: int,
    seeds: int,
    seed: int = 0,
    weight_decay: float = 0.01,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> tuple[Curves, float]:
    """AdamW with a cosine schedule at the learning rate whose median final training loss is lowest, and that rate."""
    rules = [AdamRule(lr, weight_decay=weight_decay, schedule="cosine") for lr in learning_rates]
    curves = run_rules(rules, task, horizon=horizon, seeds=seeds, seed=seed)
    medians = [float(torch.nan_to_num(curve.final_train, nan=torch.inf).median()) for curve in curves]
    best = medians.index(min(medians))
    chosen = curves[best]
    name = f"AdamW lr={learning_rates[best]:g} cosine"
    return Curves(name, chosen.train, chosen.final_train, chosen.final_valid), learning_rates[best]
