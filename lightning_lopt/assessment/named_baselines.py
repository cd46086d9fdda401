"""Baselines by name on the user's module, beside the pilots of the rule: for the reader, not for the verdict."""

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
from lightning_lopt.evaluation.runs import SideBySide
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.base import Batch, MissingSplitError, Split, Task
from lightning_lopt.tasks.users_code import named

SHARE = 0.8  # of the time of a baseline that its run may take by the speed of a short one


@dataclass(frozen=True)
class BaselinePilot:
    """A baseline after as many steps as the rule on one level, on the same models and batches.

    Attributes:
        name: of the baseline.
        horizon: steps.
        learning_rate: the one whose median training loss is lowest; ``None`` where nothing is tuned.
        losses: after the last step by split, shape ``(S,)`` for S seeds.
        rule: those of the rule, likewise.
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
    """Nothing, where every baseline can be run here.

    Raises:
        ValueError: if there is no such baseline.
        ImportError: if it is of a package that is not installed.
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
    """Each baseline at the longest of the levels' horizons that there is time for.

    Args:
        names: of baselines.
        task: the user's module.
        levels: of the rule, at least one; those with fewer seeds than the last are left out.
        device: where the module is.
        until: what ``time.perf_counter()`` may show at the end.
        notes: is given a sentence for each baseline that could not be run.
    """
    seeds = len(levels[-1].rule["train"])
    levels = [level for level in levels if len(level.rule["train"]) == seeds]
    found = []
    for index, name in enumerate(names):
        end = time.perf_counter() + (until - time.perf_counter()) / (len(names) - index)
        try:
            pilot = _pilot(name, task, levels, device, end)
        except OutOfTime:
            notes.append(f"there was no time for the baseline {name}")
        except Exception as error:
            notes.append(f"the baseline {name} fails on this module ({named(error)})")
        else:
            found.append(pilot)
    return found


def _pilot(name: str, task: Task, levels: Sequence[Level], device: torch.device, until: float) -> BaselinePilot:
    sweep, seeds = BASELINES[name], len(levels[-1].rule["train"])
    began = time.perf_counter()
    _final(sweep.start(task, SHORTEST, seeds=seeds, device=device), task, SHORTEST, until)
    step, left = (time.perf_counter() - began) / SHORTEST, SHARE * (until - time.perf_counter())
    level = next((level for level in reversed(levels) if level.horizon * step < left), None)
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
    """Train models to their end; their losses by split, shape ``(models,)``."""

    def loss(params: Params, batch: Batch) -> Batch:
        return {"loss": task.loss(params, batch)}

    finals: dict[Split, Tensor] = {}
    splits: tuple[Split, ...] = ("train", "valid")
    made = 0
    with torch.no_grad():
        while made < horizon:
            if time.perf_counter() > until:
                raise OutOfTime
            steps = min(max(1, horizon // 20), horizon - made)
            models.advance(steps)
            made += steps
        for split in splits:
            try:
                finals[split] = models.on_full_batch(split, loss)["loss"].cpu()
            except MissingSplitError:
                continue
    return finals
