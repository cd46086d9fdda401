"""The measurements of an assessment, and their JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_lopt.assessment.module_step_cost import ModuleStepCost
from lightning_lopt.assessment.named_baselines import BaselinePilot
from lightning_lopt.assessment.other_batches import OtherBatches
from lightning_lopt.assessment.outlook import Outlook
from lightning_lopt.assessment.pilots import Level
from lightning_lopt.assessment.same_time import LongerRuns
from lightning_lopt.tasks.base import Split

OutlookBySplit = Mapping[Split, Outlook]


@dataclass(frozen=True)
class TrainingCost:
    """Seconds of a whole training step, with the learned optimizer and with AdamW.

    Attributes:
        data: seconds to get a batch.
        module: forward and backward pass, and the steps of both optimizers.
    """

    data: float
    module: ModuleStepCost

    @property
    def with_adamw(self) -> float:
        """Seconds of a training step with AdamW."""
        return self.data + self.module.gradient + self.module.adamw

    @property
    def slowdown(self) -> float:
        """Time of a training step with the learned optimizer, divided by the time with AdamW."""
        return self.module.slowdown(self.data)

    @property
    def share(self) -> float:
        """Share of the learned optimizer's step in the time of a training step with it."""
        return self.module.learned / (self.data + self.module.gradient + self.module.learned)

    def to_json(self) -> dict[str, float]:
        """JSON values."""
        return {
            "data": self.data,
            "gradient": self.module.gradient,
            "learned": self.module.learned,
            "adamw": self.module.adamw,
            "share": self.share,
            "slowdown": self.slowdown,
            "learned_bytes": self.module.learned_bytes,
            "adamw_bytes": self.module.adamw_bytes,
        }


@dataclass
class PilotFindings:
    """Losses of all pilots.

    Attributes:
        levels: pilots of the rule and of AdamW at growing horizons.
        longer: AdamW with as much time as the rule takes; ``None`` if it was not run.
        matched: pilots with as many passes over the data as planned; ``None`` if they were not run.
        other_batches: pilots with other batch sizes.
        baselines: pilots of named baselines.
        notes: sentences about pilots that could not be run.
    """

    levels: list[Level] = field(default_factory=list)
    longer: LongerRuns | None = None
    matched: Level | None = None
    other_batches: list[OtherBatches] = field(default_factory=list)
    baselines: list[BaselinePilot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "pilots": [level.to_json() for level in self.levels],
            "same_time": None if self.longer is None else self.longer.to_json(),
            "planned_passes": None if self.matched is None else self.matched.to_json(),
            "other_batches": [pilot.to_json() for pilot in self.other_batches],
            "baselines": [pilot.to_json() for pilot in self.baselines],
        }


@dataclass(frozen=True)
class Seconds:
    """Times of an assessment.

    Attributes:
        planned: seconds of the planned run with AdamW.
        budget: seconds that the assessment was allowed to take.
        allowance: source of the budget, in words.
        taken: seconds that the assessment took.
    """

    planned: float
    budget: float
    allowance: str
    taken: float


@dataclass(frozen=True)
class Findings:
    """All measurements of an assessment.

    Attributes:
        module: name of the module's class.
        rule: name of the rule.
        batch_size: number of examples in a batch; ``None`` if it is unknown.
        total_steps: steps of the planned run.
        batches_read: number of training batches that were read.
        pretrained: the sign that the module was trained before; ``None`` if there is no such sign.
        cost: cost of a training step.
        pilots: losses of all pilots.
        outlooks: outlooks for the planned run by comparison and by split. The comparisons are with AdamW at the best
            learning rate (``"tuned"``), at the default rate (``"default"``), and at the best rate with as much time as
            the rule takes (``"in_the_same_time"``).
        gaps: sentences about properties of the plan that meta-training did not cover.
        seconds: times of the assessment and of the planned run.
    """

    module: str
    rule: str
    batch_size: int | None
    total_steps: int
    batches_read: int
    pretrained: str | None
    cost: TrainingCost
    pilots: PilotFindings
    outlooks: Mapping[str, OutlookBySplit]
    gaps: list[str]
    seconds: Seconds

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return self.cost.module.parameters

    def to_json(self) -> dict[str, Any]:
        """JSON values; some numbers may not be finite."""
        return {
            "module": self.module,
            "rule": self.rule,
            "parameters": self.parameters,
            "batch_size": self.batch_size,
            "total_steps": self.total_steps,
            "batches_read": self.batches_read,
            "pretrained": self.pretrained,
            "cost": self.cost.to_json(),
            **self.pilots.to_json(),
            "outlook": {
                comparison: {split: vars(outlook) for split, outlook in outlooks.items()}
                for comparison, outlooks in self.outlooks.items()
            },
            "gaps": self.gaps,
            "notes": self.pilots.notes,
            "seconds": vars(self.seconds),
        }
