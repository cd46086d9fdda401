"""Pilots: complete short runs of a rule and of AdamW at several learning rates, on the same models and batches.

A pilot is a run as in a measurement (:class:`~lightning_lopt.meta.rule_models.RuleModels`) with a time limit. Only the
losses before the first step and after the last step are stored.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.evaluation.measurement import six_digits
from lightning_lopt.meta.rule_models import RuleModels
from lightning_lopt.meta.runs import device_of
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.rules.hand_designed import AdamRule
from lightning_lopt.tasks.base import MissingSplitError, Split, Task

SEEDS = 3
WEIGHT_DECAY = 0.01  # default of torch.optim.AdamW
DEFAULT = -6  # exponent of the default learning rate of torch.optim.AdamW, in half decades


class OutOfTime(Exception):
    """The time limit was reached before a pilot was finished."""


def learning_rate(exponent: int) -> float:
    """The learning rate 10^(exponent / 2); exponents count half decades.

    >>> [f"{learning_rate(exponent):.2g}" for exponent in (-6, -5, -4)]
    ['0.001', '0.0032', '0.01']
    """
    return float(10 ** (exponent / 2))


@dataclass(frozen=True)
class Level:
    """Pilots with one horizon.

    Attributes:
        horizon: steps of each pilot; the schedule goes to zero over these steps.
        start: loss before the first step by split, shape ``(S,)`` for S seeds.
        rule: loss of the rule after the last step by split, shape ``(S,)``.
        adamw: loss of AdamW after the last step, by the exponent of the learning rate and by split, shape ``(S,)``.
        seconds: seconds of the level.
        measuring: the part of these seconds for measuring the losses before the first step and after the last step.
    """

    horizon: int
    start: dict[Split, Tensor]
    rule: dict[Split, Tensor]
    adamw: dict[int, dict[Split, Tensor]]
    seconds: float
    measuring: float

    @property
    def runs(self) -> int:
        return (1 + len(self.adamw)) * len(self.rule["train"])

    def best(self, split: Split) -> int:
        """Exponent of the learning rate with the lowest median loss."""
        return min(self.adamw, key=lambda exponent: float(_capped(self.adamw[exponent][split]).median()))

    def to_json(self) -> dict[str, Any]:
        """JSON values; a loss that is not finite becomes ``None``."""
        return {
            "horizon": self.horizon,
            "seconds": round(self.seconds, 3),
            "start": losses_by_split_json(self.start),
            "rule": losses_by_split_json(self.rule),
            "adamw": losses_json(self.adamw),
        }


def run_level(
    rule: UpdateRule,
    task: Task,
    exponents: Sequence[int],
    *,
    horizon: int,
    until: float,
    seeds: int = SEEDS,
    seed: int = 0,
) -> Level:
    """Run the pilots of one horizon; all pilots of one optimizer run side by side.

    Args:
        until: latest end, on the clock ``time.perf_counter()``.
        seeds: number of models and orders of batches, >= 1.
        seed: seed of models and orders.

    Raises:
        OutOfTime: if the level takes longer than ``until``; its results are lost.
    """
    began = time.perf_counter()
    clock = [0.0]
    models = RuleModels([rule], task, horizon, seeds, seed)
    start = _losses(models, clock)
    rule_losses = _final_losses(models, until, clock)[0]
    adamw = adamw_runs(rule, task, exponents, horizon=horizon, until=until, seeds=seeds, seed=seed, clock=clock)
    return Level(horizon, start, rule_losses, adamw, time.perf_counter() - began, clock[0])


def adamw_runs(
    rule: UpdateRule,
    task: Task,
    exponents: Sequence[int],
    *,
    horizon: int,
    until: float,
    seeds: int = SEEDS,
    seed: int = 0,
    clock: list[float] | None = None,
) -> dict[int, dict[Split, Tensor]]:
    """Final losses of AdamW by exponent of the learning rate and by split, shape ``(S,)``.

    The arguments are those of :func:`run_level`. AdamW runs on the device of ``rule``.
    """
    adams = [AdamRule(learning_rate(e), weight_decay=WEIGHT_DECAY, schedule="cosine") for e in exponents]
    models = RuleModels([adam.to(device_of(rule)) for adam in adams], task, horizon, seeds, seed)
    return dict(zip(exponents, _final_losses(models, until, clock or [0.0]), strict=True))


def losses_json(adamw: dict[int, dict[Split, Tensor]]) -> dict[str, Any]:
    """Losses by learning rate as JSON values."""
    return {f"{learning_rate(exponent):.3g}": losses_by_split_json(losses) for exponent, losses in adamw.items()}


def _final_losses(models: RuleModels, until: float, clock: list[float]) -> list[dict[Split, Tensor]]:
    """Train models to the last step, and return the final losses by split, for each rule that trains them."""
    with torch.no_grad():
        while not models.runs.finished:
            if time.perf_counter() > until:
                raise OutOfTime
            models.advance(max(1, models.runs.horizon // 20))
    final, copies = _losses(models, clock), models.runs.copies
    return [{split: losses.chunk(copies)[index] for split, losses in final.items()} for index in range(copies)]


def _losses(models: RuleModels, clock: list[float]) -> dict[Split, Tensor]:
    """Present loss on whole splits, by split, shape ``(runs,)``; the seconds for it are added to ``clock[0]``."""
    began = time.perf_counter()
    task = models.runs.task
    losses_by_split: dict[Split, Tensor] = {}
    splits: tuple[Split, ...] = ("train", "valid")
    with torch.no_grad():
        for split in splits:
            try:
                losses = models.on_full_batch(split, lambda params, batch: {"loss": task.loss(params, batch)})
            except MissingSplitError:
                continue
            losses_by_split[split] = losses["loss"].cpu()
    clock[0] += time.perf_counter() - began
    return losses_by_split


def _capped(losses: Tensor) -> Tensor:
    return torch.nan_to_num(losses, nan=torch.inf)


def losses_by_split_json(losses: dict[Split, Tensor]) -> dict[str, list[float | None]]:
    """Losses by split as JSON values; losses that are not finite become ``None``."""
    return {split: [six_digits(value) for value in values.tolist()] for split, values in losses.items()}
