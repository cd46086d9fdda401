"""The assessment of a module: cost, pilots, other batch sizes, coverage, verdict."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lightning_lopt.assessment.assessment import Assessment
from lightning_lopt.assessment.budget import budget_seconds
from lightning_lopt.assessment.coverage import gaps, meta_training_of, unrecorded
from lightning_lopt.assessment.ladder import SWEEPS, climb
from lightning_lopt.assessment.named_baselines import BaselinePilot, baseline_pilots, check_baselines
from lightning_lopt.assessment.outlook import Outlook, outlook
from lightning_lopt.assessment.passes import with_planned_passes
from lightning_lopt.assessment.pilot_task import PilotTask
from lightning_lopt.assessment.pilots import Level
from lightning_lopt.assessment.same_time import LongerRuns, in_the_same_time, longer_runs, time_for_levels
from lightning_lopt.assessment.stability import (
    FACTORS,
    OtherBatches,
    nobody_learns,
    troubles,
    with_other_batches,
)
from lightning_lopt.assessment.step_cost import StepCost, step_cost
from lightning_lopt.assessment.subject import Subject
from lightning_lopt.assessment.verdict import judge
from lightning_lopt.io import load_rule
from lightning_lopt.meta.runs import device_of
from lightning_lopt.optim.inputs import checked_horizon
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.base import Split
from lightning_lopt.tasks.side_effects import generators_kept, untouched
from lightning_lopt.tasks.users_code import named

if TYPE_CHECKING:
    import lightning.pytorch as L

MOST = 200  # batches that are read at all
FOR_COST, FOR_READING = 0.1, 0.2  # of the budget
FOR_BASELINES = 0.25  # likewise, where baselines are named
UNTIL_SAME_TIME, UNTIL_PASSES, UNTIL_BATCHES = 0.72, 0.87, 0.98  # likewise, counted from the start


def assess(
    model: L.LightningModule | Callable[[], L.LightningModule],
    data: Iterable[Any] | L.LightningDataModule | None = None,
    rule: str | os.PathLike[str] | UpdateRule = "base",
    *,
    total_steps: int,
    budget: float | str | None = None,
    valid: Iterable[Any] | None = None,
    against: Sequence[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Assessment:
    """Find out before a long training run whether a rule is to be trusted with it.

    Pilots, short complete runs with schedules to zero, compare the rule with AdamW at a swept and at the default
    learning rate, with three seeds each; the longest one is repeated with half and twice the batch size. AdamW also
    gets as much time as the rule takes, hence more steps. Trends over growing horizons are followed to ``total_steps``,
    with an uncertainty. Besides: what a step costs in time and memory, and what of this meta-training covered. Model,
    data and global random state are left as they are; ``self.trainer`` is a stand-in that answers and does nothing.

    Args:
        model: a module with automatic optimization and one optimizer, where pilots start from its present parameters;
            or a function without arguments that builds one (a class), called for each seed.
        data: a data module or batches of training; ``None`` for the module's own dataloaders.
        rule: what :class:`~lightning_lopt.LearnedOptimizer` takes.
        total_steps: optimizer steps of the planned run.
        budget: seconds all of this may take, or a text such as ``"5min"``, ``"10%"`` or ``"400steps"`` of the planned
            run; ``None`` for 5 % of it, and 20 seconds at least.
        valid: validation batches, where ``data`` is no data module; ``training_step`` gives their loss too.
        against: names of baselines (``"soap_3e-3"``, ``"prodigy"``) that run beside the pilots too, for the reader: the
            verdict compares with AdamW alone.
        tell: is given a line when something has been done.

    Raises:
        ImportError: if a baseline is of a package that is not installed.
        ValueError: with one sentence, for a module, data, a rule or a number that cannot be used, and for whatever the
            module or its data raise.

    Example::

        print(assess(Model(), DataModule(), total_steps=20_000))
    """
    began = time.perf_counter()
    check_baselines(against)
    steps = checked_horizon(total_steps)
    if steps is None:
        raise ValueError("total_steps is None; give the number of optimizer steps of the planned run.")
    meta_training = meta_training_of(rule)
    used = copy.deepcopy(rule) if isinstance(rule, UpdateRule) else load_rule(rule)
    name = rule.rule_name if isinstance(rule, UpdateRule) else str(rule)
    with untouched(), generators_kept(model, data, valid):
        try:
            subject = Subject(model, data, valid, steps)
            return _assess(subject, used, name, meta_training, steps, budget, began, against, tell)
        except (ValueError, OSError):  # sentences
            raise
        except Exception as error:
            module = name_of(model)
            raise ValueError(
                f"{module} cannot be assessed ({named(error)}); train it without, or report this."
            ) from error


def name_of(model: Any) -> str:
    """The class of a module, or the name of the function that builds it."""
    return getattr(model, "__name__", type(model).__name__)


def _assess(
    subject: Subject,
    rule: UpdateRule,
    name: str,
    meta_training: dict[str, Any],
    total_steps: int,
    budget: float | str | None,
    began: float,
    against: Sequence[str],
    tell: Callable[[str], None],
) -> Assessment:
    rule.to(subject.device)
    data_seconds = subject.train.seconds_per_batch

    def allowed(step: float) -> float:
        return budget_seconds(budget, data_seconds + step, total_steps)[0]

    cost = step_cost(subject.copies(2), subject.first, rule, total_steps, lambda step: FOR_COST * allowed(step))
    step, slowdown = data_seconds + cost.gradient + cost.adamw, cost.slowdown(data_seconds)
    seconds, allowance = budget_seconds(budget, step, total_steps)
    tell(f"a training step with AdamW takes {1000 * step:.2f} ms; {seconds:.1f} s for this")
    subject.read(min(MOST, total_steps), began + FOR_READING * seconds, 0.1 * seconds)
    pilots = _Pilots(rule, total_steps, began, seconds, against, tell)
    pilots.run(subject, cost, slowdown)
    size, levels = subject.size, pilots.levels
    missing = gaps(subject.module, meta_training, total_steps=total_steps, batch_size=size, parameters=cost.parameters)
    unknown = unrecorded(meta_training)
    if unknown:
        pilots.notes.append(f"the rule does not record of its meta-training: {', '.join(unknown)}")
    timed = in_the_same_time(levels, pilots.longer, slowdown)
    views = {
        "tuned": pilots.views(levels, len(missing)),
        "default": pilots.views(levels, len(missing), default=True),
        "in_the_same_time": pilots.views(timed, len(missing)),
    }
    verdict, reasons = judge(
        views["tuned"],
        views["default"],
        in_the_same_time=views["in_the_same_time"],
        troubles=troubles(levels, pilots.others),
        hopeless=bool(levels) and nobody_learns(levels),
        gaps=missing,
        slowdown=slowdown,
        pretrained=subject.pretrained,
    )
    numbers = {
        "module": subject.kind,
        "rule": name,
        "parameters": cost.parameters,
        "batch_size": size,
        "total_steps": total_steps,
        "batches_read": len(subject.train.batches),
        "pretrained": subject.pretrained,
        "cost": _cost_json(cost, data_seconds, slowdown),
        **pilots.to_json(),
        "outlook": {which: {s: vars(view) for s, view in found.items()} for which, found in views.items()},
        "gaps": missing,
        "notes": pilots.notes,
        "seconds": {
            "planned": step * total_steps,
            "budget": seconds,
            "allowance": allowance,
            "taken": time.perf_counter() - began,
        },
    }
    return Assessment(verdict, reasons, numbers)


class _Pilots:
    """All pilots of an assessment, each kind in its share of the time.

    Args:
        rule: on the module's device.
        total_steps: of the planned run.
        began: what ``time.perf_counter()`` showed at the start.
        seconds: that all of the assessment may take.
        against: names of baselines.
        tell: is given a line when something has been done.
    """

    def __init__(
        self,
        rule: UpdateRule,
        total_steps: int,
        began: float,
        seconds: float,
        against: Sequence[str],
        tell: Callable[[str], None],
    ) -> None:
        self.rule, self.total_steps, self.began, self.seconds, self.tell = rule, total_steps, began, seconds, tell
        self.against = against
        self.baselines: list[BaselinePilot] = []
        self.levels: list[Level] = []
        self.longer: LongerRuns | None = None
        self.matched: Level | None = None
        self.others: list[OtherBatches] = []
        self.notes: list[str] = []

    def _until(self, share: float) -> float:
        return self.began + share * self.seconds * (1 - FOR_BASELINES if self.against else 1)

    def run(self, subject: Subject, cost: StepCost, slowdown: float) -> None:
        """Make them, as far as there is time."""
        task, resized = subject.pilot_tasks(self.notes)
        if task.reason:
            self.notes.append(f"runs go one by one: {task.reason}")
        self.tell(f"{task.batches} batches read, {task.name} is ready")
        now = time.perf_counter()
        self.levels = climb(
            self.rule,
            task,
            total_steps=self.total_steps,
            seconds_per_step=cost.gradient + (cost.learned + len(SWEEPS[0]) * cost.adamw) / (1 + len(SWEEPS[0])),
            until=now + time_for_levels(self._until(UNTIL_SAME_TIME) - now, slowdown),
            at_most=self._until(UNTIL_PASSES),
            tell=self.tell,
        )
        if self.levels:
            self._beside_the_levels(subject, task, resized, slowdown)

    def _beside_the_levels(
        self, subject: Subject, task: PilotTask, resized: Callable[[float], PilotTask | None], slowdown: float
    ) -> None:
        self.longer = longer_runs(
            self.rule,
            task,
            self.levels,
            slowdown=slowdown,
            until=self._until(UNTIL_SAME_TIME),
            at_most=self._until(UNTIL_PASSES),
        )
        if self.longer is not None:
            self.tell(f"AdamW made {self.longer.steps} steps, in the time of {self.longer.horizon} of the rule")
        self.matched = with_planned_passes(
            self.rule,
            task,
            self.levels,
            total_steps=self.total_steps,
            length=subject.train.length,
            until=self._until(UNTIL_PASSES),
            at_most=self._until(UNTIL_BATCHES),
        )
        if self.matched is not None:
            self.tell(f"pilots of {self.matched.horizon} steps, {self.matched.seconds:.1f} s: passes as planned")
        tasks = [(f, int((subject.size or 0) * f), other) for f in FACTORS if (other := resized(f)) is not None]
        if len(tasks) < len(FACTORS):
            self.notes.append("not all other batch sizes could be tried: batches are too few or no stacks of examples")
        self.others = with_other_batches(self.rule, tasks, self.levels, self._until(UNTIL_BATCHES), self.notes)
        self.tell(f"{len(self.others)} other batch sizes tried")
        if self.against:
            until = self.began + UNTIL_BATCHES * self.seconds
            device = device_of(self.rule)
            self.baselines = baseline_pilots(
                self.against, task, self.levels, device=device, until=until, notes=self.notes
            )
            self.tell(f"{len(self.baselines)} baselines tried")

    def views(self, levels: list[Level], missing: int, *, default: bool = False) -> dict[Split, Outlook]:
        """The outlook from some levels, by split; empty without a level."""
        splits = list(levels[0].rule) if levels else []
        return {
            split: outlook(levels, split, self.total_steps, gaps=missing, default=default, matched=self.matched)
            for split in splits
        }

    def to_json(self) -> dict[str, Any]:
        """What was measured, as JSON values."""
        return {
            "pilots": [level.to_json() for level in self.levels],
            "same_time": None if self.longer is None else self.longer.to_json(),
            "planned_passes": None if self.matched is None else self.matched.to_json(),
            "other_batches": [other.to_json() for other in self.others],
            "baselines": [pilot.to_json() for pilot in self.baselines],
        }


def _cost_json(cost: StepCost, data_seconds: float, slowdown: float) -> dict[str, float]:
    whole = data_seconds + cost.gradient + cost.learned
    return {
        "data": data_seconds,
        "gradient": cost.gradient,
        "learned": cost.learned,
        "adamw": cost.adamw,
        "share": cost.learned / whole,
        "slowdown": slowdown,
        "learned_bytes": cost.learned_bytes,
        "adamw_bytes": cost.adamw_bytes,
    }
