"""The assessment of a module: cost of a step, pilots, coverage by meta-training, verdict."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_lopt.assessment.all_pilots import AllPilots
from lightning_lopt.assessment.assessment import Assessment
from lightning_lopt.assessment.budget import Deadline, budget_seconds
from lightning_lopt.assessment.coverage import gaps, meta_training_of, unrecorded
from lightning_lopt.assessment.findings import Findings, OutlookBySplit, PilotFindings, Seconds, TrainingCost
from lightning_lopt.assessment.module_step_cost import module_step_cost
from lightning_lopt.assessment.named_baselines import check_baselines
from lightning_lopt.assessment.outlook import outlook
from lightning_lopt.assessment.pilots import Level
from lightning_lopt.assessment.same_time import in_the_same_time
from lightning_lopt.assessment.subject import Subject
from lightning_lopt.assessment.verdict import judge, no_optimizer_learns, troubles
from lightning_lopt.io import load_rule
from lightning_lopt.optim.inputs import checked_horizon
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.side_effects import generators_restored, random_states_restored
from lightning_lopt.tasks.users_code import named

if TYPE_CHECKING:
    import lightning.pytorch as L

MAX_BATCHES = 200  # largest number of batches that are read
FOR_COST, FOR_READING, FOR_READING_VALIDATION = 0.1, 0.2, 0.1  # shares of the budget


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
    """Assess before a long training run whether a rule is suited for it.

    Pilots are short complete runs with schedules to zero. They compare the rule with AdamW at a swept and at the
    default learning rate, with three seeds each. The longest pilots are repeated with half and twice the batch size.
    In a further comparison AdamW has as much time as the rule takes, and so makes more steps. Trends over growing
    horizons are extrapolated to ``total_steps``, with an uncertainty. The assessment also measures time and memory of a
    step, and compares the plan with the record of meta-training. Model, data and global random state are not changed;
    ``self.trainer`` is a placeholder that does nothing.

    Args:
        model: a module with automatic optimization and one optimizer, or a function without arguments that builds such
            a module (for instance its class). Pilots start from the present parameters of a module; a function is
            called for each seed.
        data: a data module or training batches; ``None`` for the dataloaders of the module.
        rule: any value that :class:`~lightning_lopt.LearnedOptimizer` accepts as a rule.
        total_steps: optimizer steps of the planned run.
        budget: seconds for the assessment, or a text such as ``"5min"``, ``"10%"`` or ``"400steps"`` of the planned
            run; ``None`` for 5 % of the planned run, and at least 20 seconds.
        valid: validation batches, if ``data`` is not a data module; ``training_step`` computes their loss, too.
        against: names of baselines (``"soap_3e-3"``, ``"prodigy"``) for further pilots; they are for information, and
            the verdict depends on AdamW alone.
        tell: function that receives a line of text when a phase of the assessment begins or ends.

    Raises:
        ImportError: if the package of a baseline is not installed.
        ValueError: with one sentence, if the module, the data, the rule or a number cannot be used, or if the module or
            its data raise an error.

    Example::

        print(assess(Model(), DataModule(), total_steps=20_000))

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> assessment = assess(BoringModel, total_steps=100, budget=1)  # the module has dataloaders
        >>> assessment.verdict in ("use it", "use it with care", "don't")
        True
    """
    began = time.perf_counter()
    check_baselines(against)
    steps = checked_horizon(total_steps)
    if steps is None:
        raise ValueError("total_steps is None; give the number of optimizer steps of the planned run.")
    meta_training = meta_training_of(rule)
    rule_copy = copy.deepcopy(rule) if isinstance(rule, UpdateRule) else load_rule(rule)
    name = rule.rule_name if isinstance(rule, UpdateRule) else str(rule)
    plan = _Plan(rule_copy, name, meta_training, steps, budget, began, against, tell)
    with random_states_restored(), generators_restored(model, data, valid):
        try:
            return plan.assess(Subject(model, data, valid, steps))
        except (ValueError, OSError):  # the messages of these errors are sentences already
            raise
        except Exception as error:
            module = name_of(model)
            raise ValueError(
                f"{module} cannot be assessed ({named(error)}); train it without an assessment, or report this error."
            ) from error


def name_of(model: Any) -> str:
    """The class of a module, or the name of the function that builds it."""
    return getattr(model, "__name__", type(model).__name__)


@dataclass(frozen=True)
class _Plan:
    """The settings and the phases of an assessment.

    Attributes:
        rule: the rule; it is moved to the module's device.
        name: name of the rule.
        meta_training: record of meta-training in the rule's config.
        total_steps: steps of the planned run.
        budget: the budget, as in :func:`assess`.
        began: clock ``time.perf_counter()`` at the start.
        against: names of baselines.
        tell: function that receives a line of text when a phase of the assessment begins or ends.
    """

    rule: UpdateRule
    name: str
    meta_training: dict[str, Any]
    total_steps: int
    budget: float | str | None
    began: float
    against: Sequence[str]
    tell: Callable[[str], None]

    def assess(self, subject: Subject) -> Assessment:
        """Run all phases, one after the other."""
        self.rule.to(subject.device)
        self.tell("measuring the cost of a training step")
        cost = self._measure_cost(subject)
        deadline = self._deadline(cost)
        self.tell("reading batches")
        subject.read(
            min(MAX_BATCHES, self.total_steps), deadline.at(FOR_READING), FOR_READING_VALIDATION * deadline.seconds
        )
        pilots = AllPilots(self.rule, self.total_steps, cost, deadline, self.against, self.tell).run(subject)
        plan_gaps = self._gaps(subject, cost, pilots.notes)
        outlooks = self._outlooks(pilots, cost, len(plan_gaps))
        verdict, reasons = judge(
            outlooks["tuned"],
            outlooks["default"],
            in_the_same_time=outlooks["in_the_same_time"],
            troubles=troubles(pilots.levels, pilots.other_batches),
            hopeless=bool(pilots.levels) and no_optimizer_learns(pilots.levels),
            gaps=plan_gaps,
            slowdown=cost.slowdown,
            pretrained=subject.pretrained,
        )
        seconds = Seconds(cost.with_adamw * self.total_steps, deadline.seconds, deadline.allowance, deadline.elapsed)
        findings = Findings(
            subject.kind,
            self.name,
            subject.size,
            self.total_steps,
            len(subject.train.batches),
            subject.pretrained,
            cost,
            pilots,
            outlooks,
            plan_gaps,
            seconds,
        )
        return Assessment(verdict, reasons, findings)

    def _measure_cost(self, subject: Subject) -> TrainingCost:
        data = subject.train.seconds_per_batch

        def allowed(step: float) -> float:
            return FOR_COST * budget_seconds(self.budget, data + step, self.total_steps)[0]

        (step,) = subject.copies(1)
        return TrainingCost(data, module_step_cost(step, subject.first, self.rule, self.total_steps, allowed))

    def _deadline(self, cost: TrainingCost) -> Deadline:
        """The deadline of the assessment; it depends on the time of a step of the planned run."""
        seconds, allowance = budget_seconds(self.budget, cost.with_adamw, self.total_steps)
        milliseconds = 1000 * cost.with_adamw
        self.tell(f"a training step with AdamW takes {milliseconds:.2f} ms; the assessment may take {seconds:.1f} s")
        return Deadline(self.began, seconds, allowance)

    def _gaps(self, subject: Subject, cost: TrainingCost, notes: list[str]) -> list[str]:
        """Gaps of meta-training; missing entries of its record are named in a note."""
        missing_entries = unrecorded(self.meta_training)
        if missing_entries:
            notes.append(f"the rule's record of meta-training lacks: {', '.join(missing_entries)}")
        return gaps(
            subject.module,
            self.meta_training,
            total_steps=self.total_steps,
            batch_size=subject.size,
            parameters=cost.module.parameters,
        )

    def _outlooks(self, pilots: PilotFindings, cost: TrainingCost, gap_count: int) -> dict[str, OutlookBySplit]:
        def by_split(levels: list[Level], default: bool = False) -> OutlookBySplit:
            splits = list(levels[0].rule) if levels else []
            return {
                split: outlook(levels, split, self.total_steps, gaps=gap_count, default=default, matched=pilots.matched)
                for split in splits
            }

        return {
            "tuned": by_split(pilots.levels),
            "default": by_split(pilots.levels, default=True),
            "in_the_same_time": by_split(in_the_same_time(pilots.levels, pilots.longer, cost.slowdown)),
        }
