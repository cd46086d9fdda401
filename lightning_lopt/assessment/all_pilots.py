"""All pilots of an assessment: the kinds of pilots run one after the other, each within a share of the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_lopt.assessment.budget import Deadline
from lightning_lopt.assessment.findings import PilotFindings, TrainingCost
from lightning_lopt.assessment.ladder import SWEEPS, run_levels
from lightning_lopt.assessment.named_baselines import baseline_pilots
from lightning_lopt.assessment.other_batches import FACTORS, with_other_batches, with_planned_passes
from lightning_lopt.assessment.pilot_task import PilotTask
from lightning_lopt.assessment.same_time import longer_runs, time_for_levels
from lightning_lopt.assessment.subject import Subject
from lightning_lopt.meta.runs import device_of
from lightning_lopt.rules.base import UpdateRule

FOR_BASELINES = 0.25  # share of the time for named baselines
UNTIL_SAME_TIME, UNTIL_PASSES, UNTIL_BATCHES = 0.72, 0.87, 0.98  # share of the time that has passed at each part's end


@dataclass(frozen=True)
class AllPilots:
    """The pilots of a rule, of AdamW and of named baselines on one module.

    Attributes:
        rule: the rule, on the module's device.
        total_steps: steps of the planned run.
        cost: cost of a training step.
        assessment_deadline: deadline of the whole assessment.
        against: names of baselines.
        tell: function that receives a line of text when a kind of pilots begins or ends.
    """

    rule: UpdateRule
    total_steps: int
    cost: TrainingCost
    assessment_deadline: Deadline
    against: Sequence[str]
    tell: Callable[[str], None]

    @property
    def deadline(self) -> Deadline:
        """Deadline for the pilots of the rule and of AdamW."""
        return self.assessment_deadline.shortened(1 - FOR_BASELINES) if self.against else self.assessment_deadline

    def run(self, subject: Subject) -> PilotFindings:
        """Run the pilots for which there is time."""
        findings = PilotFindings()
        task, resized = subject.pilot_tasks(findings.notes)
        if task.reason:
            findings.notes.append(f"the runs are made one after the other, not together: {task.reason}")
        self.tell(f"{task.batches} batches read, {task.name} is ready")
        self._levels(task, findings)
        if findings.levels:
            self._same_time(task, findings)
            self._planned_passes(task, subject.train.length, findings)
            self._other_batches(subject.size, resized, findings)
            self._baselines(task, findings)
        return findings

    def _levels(self, task: PilotTask, findings: PilotFindings) -> None:
        step, rates = self.cost.module, len(SWEEPS[0])
        now = time.perf_counter()
        findings.levels = run_levels(
            self.rule,
            task,
            total_steps=self.total_steps,
            seconds_per_step=step.gradient + (step.learned + rates * step.adamw) / (1 + rates),
            until=now + time_for_levels(self.deadline.at(UNTIL_SAME_TIME) - now, self.cost.slowdown),
            at_most=self.deadline.at(UNTIL_PASSES),
            tell=self.tell,
        )

    def _same_time(self, task: PilotTask, findings: PilotFindings) -> None:
        self.tell("AdamW in the time of the rule")
        findings.longer = longer_runs(
            self.rule,
            task,
            findings.levels,
            slowdown=self.cost.slowdown,
            until=self.deadline.at(UNTIL_SAME_TIME),
            at_most=self.deadline.at(UNTIL_PASSES),
        )
        if findings.longer is not None:
            steps, horizon = findings.longer.steps, findings.longer.horizon
            self.tell(f"AdamW made {steps} steps in the time of {horizon} steps of the rule")

    def _planned_passes(self, task: PilotTask, length: int | None, findings: PilotFindings) -> None:
        self.tell("pilots that see each batch as often as the planned run")
        findings.matched = with_planned_passes(
            self.rule,
            task,
            findings.levels,
            total_steps=self.total_steps,
            length=length,
            until=self.deadline.at(UNTIL_PASSES),
            at_most=self.deadline.at(UNTIL_BATCHES),
        )
        if findings.matched is not None:
            self.tell(
                f"pilots of {findings.matched.horizon} steps, with the planned passes: {findings.matched.seconds:.1f} s"
            )

    def _other_batches(
        self, size: int | None, resized: Callable[[float], PilotTask | None], findings: PilotFindings
    ) -> None:
        self.tell("pilots with other batch sizes")
        tasks = [(f, int((size or 0) * f), resized_task) for f in FACTORS if (resized_task := resized(f)) is not None]
        if len(tasks) < len(FACTORS):
            findings.notes.append(
                "not all other batch sizes could be tried: batches are too few, or they are not stacks of examples"
            )
        until = self.deadline.at(UNTIL_BATCHES)
        findings.other_batches = with_other_batches(self.rule, tasks, findings.levels, until, findings.notes)
        self.tell(f"{len(findings.other_batches)} other batch sizes tried")

    def _baselines(self, task: PilotTask, findings: PilotFindings) -> None:
        if not self.against:
            return
        self.tell(f"baselines: {', '.join(self.against)}")
        findings.baselines = baseline_pilots(
            self.against,
            task,
            findings.levels,
            device=device_of(self.rule),
            until=self.assessment_deadline.at(UNTIL_BATCHES),
            notes=findings.notes,
        )
        self.tell(f"{len(findings.baselines)} baselines tried")
