"""Pilots of named baselines on the user's module, for information: the verdict does not depend on them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.assessment.ladder import SHORTEST
from lightning_lopt.assessment.pilots import Level, OutOfTime, losses_by_split_json
from lightning_lopt.evaluation.baselines import BASELINES
from lightning_lopt.evaluation.measurement import SideBySide
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.base import Batch, MissingSplitError, Split, Task
from lightning_lopt.tasks.users_code import named

SHARE = 0.8  # share of a baseline's time for its run; a short run before measures the speed


@dataclass(frozen=True)
class BaselinePilot:
    """Losses of a baseline after as many steps as the rule on one level, on the same models and batches.

    Attributes:
        name: name of the baseline.
        horizon: number of steps.
        learning_rate: the learning rate with the lowest median training loss; ``None`` without tuning.
        losses: losses after the last step by split, shape ``(S,)`` for S seeds.
        rule: losses of the rule, by split, shape ``(S,)``.
    """

    name: str
    horizon: int
    learning_rate: float | None
    losses: dict[Split, Tensor]
    rule: dict[Split, Tensor]

    def to_json(self) -> dict[str, Any]:
        """JSON values; a loss that is not finite becomes ``None``."""
        return {
            "name": self.name,
            "horizon": self.horizon,
            "learning_rate": self.learning_rate,
            "losses": losses_by_split_json(self.losses),
            "rule": losses_by_split_json(self.rule),
        }


def check_baselines(names: Sequence[str]) -> None:
    """Check that every baseline can be run in this installation.

    Raises:
        ValueError: if there is no baseline of a name.
        ImportError: if the package of a baseline is not installed.
    """
    for name in names:
        if name not in BASELINES:
            raise ValueError(f"there is no baseline {name!r}; use some of {', '.join(map(repr, BASELINES))}.")
        BASELINES[name].require()


def baseline_pilots(
    names: Sequence[str],
    task: Task,
    levels: Sequence[Level],
    *,
    device: torch.device,
    until: float,
    notes: list[str],
) -> list[BaselinePilot]:
    """Pilots of each baseline, at the longest horizon of the levels for which there is time.

    Args:
        names: names of baselines.
        task: the user's module.
        levels: levels of the rule, at least one; levels with fewer seeds than the last level are not used.
        device: device of the module.
        until: latest end, on the clock ``time.perf_counter()``.
        notes: a sentence is added to this list for each baseline that could not be run.
    """
    seeds = len(levels[-1].rule["train"])
    levels = [level for level in levels if len(level.rule["train"]) == seeds]
    pilots = []
    for index, name in enumerate(names):
        end = time.perf_counter() + (until - time.perf_counter()) / (len(names) - index)
        try:
            pilot = _pilot(name, task, levels, device, end)
        except OutOfTime:
            notes.append(f"there was no time for the baseline {name}")
        except Exception as error:
            notes.append(f"the baseline {name} fails on this module ({named(error)})")
        else:
            pilots.append(pilot)
    return pilots


def _pilot(name: str, task: Task, levels: Sequence[Level], device: torch.device, until: float) -> BaselinePilot:
    sweep, seeds = BASELINES[name], len(levels[-1].rule["train"])
    began = time.perf_counter()
    _final(sweep.start(task, SHORTEST, seeds=seeds, device=device), task, SHORTEST, until)
    seconds_per_step, seconds_left = (time.perf_counter() - began) / SHORTEST, SHARE * (until - time.perf_counter())
    level = next((level for level in reversed(levels) if level.horizon * seconds_per_step < seconds_left), None)
    if level is None:
        raise OutOfTime
    models = sweep.start(task, level.horizon, seeds=seeds, device=device)
    finals = _final(models, task, level.horizon, until)
    by_rate = finals["train"].reshape(-1, seeds).nan_to_num(nan=torch.inf).median(1).values
    best = int(by_rate.argmin())
    return BaselinePilot(
        name,
        level.horizon,
        sweep.learning_rates[best] if sweep.tuned else None,
        {split: losses.reshape(-1, seeds)[best] for split, losses in finals.items()},
        level.rule,
    )


def _final(models: SideBySide, task: Task, horizon: int, until: float) -> dict[Split, Tensor]:
    """Train models to the last step, and return their losses by split, shape ``(models,)``."""

    def loss(params: Params, batch: Batch) -> Batch:
        return {"loss": task.loss(params, batch)}

    finals: dict[Split, Tensor] = {}
    splits: tuple[Split, ...] = ("train", "valid")
    steps_made = 0
    with torch.no_grad():
        while steps_made < horizon:
            if time.perf_counter() > until:
                raise OutOfTime
            steps = min(max(1, horizon // 20), horizon - steps_made)
            models.advance(steps)
            steps_made += steps
        for split in splits:
            try:
                finals[split] = models.on_full_batch(split, loss)["loss"].cpu()
            except MissingSplitError:
                continue
    return finals
