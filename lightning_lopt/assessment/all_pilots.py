"""All pilots of an assessment, one kind after the other, each in its share of the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_lopt.assessment.budget import Deadline
from lightning_lopt.assessment.findings import PilotFindings, TrainingCost
from lightning_lopt.assessment.ladder import SWEEPS, climb
from lightning_lopt.assessment.named_baselines import baseline_pilots
from lightning_lopt.assessment.other_batches import FACTORS, with_other_batches, with_planned_passes
from lightning_lopt.assessment.pilot_task import PilotTask
from lightning_lopt.assessment.same_time import longer_runs, time_for_levels
from lightning_lopt.assessment.subject import Subject
from lightning_lopt.meta.runs import device_of
from lightning_lopt.rules.base import UpdateRule

FOR_BASELINES = 0.25  # of the time, where baselines are named
UNTIL_SAME_TIME, UNTIL_PASSES, UNTIL_BATCHES = 0.72, 0.87, 0.98  # likewise, counted from the start


@dataclass(frozen=True)
class AllPilots:
    """The pilots of a rule, of AdamW and of named baselines on one module.

    Attributes:
        rule: on the module's device.
        total_steps: of the planned run.
        cost: of a training step.
        whole: time of the assessment.
        against: names of baselines.
        tell: is given a line when something begins, or has been done.
    """

    rule: UpdateRule
    total_steps: int
    cost: TrainingCost
    whole: Deadline
    against: Sequence[str]
    tell: Callable[[str], None]

    @property
    def deadline(self) -> Deadline:
        """Time of the pilots of the rule and of AdamW."""
        return self.whole.shortened(1 - FOR_BASELINES) if self.against else self.whole

    def run(self, subject: Subject) -> PilotFindings:
        """Make them, as far as there is time."""
        found = PilotFindings()
        task, resized = subject.pilot_tasks(found.notes)
        if task.reason:
            found.notes.append(f"runs go one by one: {task.reason}")
        self.tell(f"{task.batches} batches read, {task.name} is ready")
        self._levels(task, found)
        if found.levels:
            self._same_time(task, found)
            self._planned_passes(task, subject.train.length, found)
            self._other_batches(subject.size, resized, found)
            self._baselines(task, found)
        return found

    def _levels(self, task: PilotTask, found: PilotFindings) -> None:
        step, rates = self.cost.module, len(SWEEPS[0])
        now = time.perf_counter()
        found.levels = climb(
            self.rule,
            task,
            total_steps=self.total_steps,
            seconds_per_step=step.gradient + (step.learned + rates * step.adamw) / (1 + rates),
            until=now + time_for_levels(self.deadline.at(UNTIL_SAME_TIME) - now, self.cost.slowdown),
            at_most=self.deadline.at(UNTIL_PASSES),
            tell=self.tell,
        )

    def _same_time(self, task: PilotTask, found: PilotFindings) -> None:
        self.tell("AdamW in the time of the rule")
        found.longer = longer_runs(
            self.rule,
            task,
            found.levels,
            slowdown=self.cost.slowdown,
            until=self.deadline.at(UNTIL_SAME_TIME),
            at_most=self.deadline.at(UNTIL_PASSES),
        )
        if found.longer is not None:
            self.tell(f"AdamW made {found.longer.steps} steps, in the time of {found.longer.horizon} of the rule")

    def _planned_passes(self, task: PilotTask, length: int | None, found: PilotFindings) -> None:
        self.tell("pilots that see each batch as often as the planned run")
        found.matched = with_planned_passes(
            self.rule,
            task,
            found.levels,
            total_steps=self.total_steps,
            length=length,
            until=self.deadline.at(UNTIL_PASSES),
            at_most=self.deadline.at(UNTIL_BATCHES),
        )
        if found.matched is not None:
            self.tell(f"pilots of {found.matched.horizon} steps, {found.matched.seconds:.1f} s: passes as planned")

    def _other_batches(
        self, size: int | None, resized: Callable[[float], PilotTask | None], found: PilotFindings
    ) -> None:
        self.tell("pilots with other batch sizes")
        tasks = [(f, int((size or 0) * f), other) for f in FACTORS if (other := resized(f)) is not None]
        if len(tasks) < len(FACTORS):
            found.notes.append("not all other batch sizes could be tried: batches are too few or no stacks of examples")
        until = self.deadline.at(UNTIL_BATCHES)
        found.others = with_other_batches(self.rule, tasks, found.levels, until, found.notes)
        self.tell(f"{len(found.others)} other batch sizes tried")

    def _baselines(self, task: PilotTask, found: PilotFindings) -> None:
        if not self.against:
            return
        self.tell(f"baselines: {', '.join(self.against)}")
        found.baselines = baseline_pilots(
            self.against,
            task,
            found.levels,
            device=device_of(self.rule),
            until=self.whole.at(UNTIL_BATCHES),
            notes=found.notes,
        )
        self.tell(f"{len(found.baselines)} baselines tried")
