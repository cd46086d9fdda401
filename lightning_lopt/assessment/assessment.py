"""What an assessment found, as values, as text and as JSON."""

from __future__ import annotations

import json
import math
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_lopt.assessment.assessment_html import assessment_html
from lightning_lopt.assessment.findings import Findings, PilotFindings, TrainingCost
from lightning_lopt.assessment.pilots import DEFAULT, Level, learning_rate
from lightning_lopt.evaluation.measurement import six_digits
from lightning_lopt.io.whole import write_whole
from lightning_lopt.tasks.base import Split

LossesBySplit = Mapping[Split, Tensor]


@dataclass(frozen=True)
class Assessment:
    """Whether to train a module with a rule.

    ``print`` shows it as a compact text that begins with the verdict, a notebook as a table.

    Attributes:
        verdict: ``"use it"``, ``"use it with care"`` or ``"don't"``.
        reasons: why, the most important one first.
        findings: everything that was measured.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_lopt import assess
        >>> assessment = assess(BoringModel, total_steps=100, budget=1)
        >>> findings = assessment.findings
        >>> findings.module, findings.total_steps, len(assessment.reasons) > 0  # print(assessment) shows all
        ('BoringModel', 100, True)
    """

    verdict: str
    reasons: list[str]
    findings: Findings

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """The findings as JSON values, those that are not finite among them."""
        return self.findings.to_json()

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values; a number that is not finite becomes ``None``."""
        found: dict[str, Any] = _finite({"verdict": self.verdict, "reasons": self.reasons, "numbers": self.numbers})
        return found

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_json` to a file."""
        target = Path(path)
        write_whole(target, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        return target

    def __str__(self) -> str:
        found, seconds = self.findings, self.findings.seconds
        batches = f"batches of {found.batch_size}" if found.batch_size else "batches of no known size"
        lines = [
            textwrap.fill(self.paragraph, 120),
            "",
            f"{found.module}: {found.parameters:,} parameters, {batches}, {found.total_steps:,} steps planned, rule "
            f"{found.rule}",
            *_cost_lines(found.cost),
            *_pilot_lines(found.pilots, found.batch_size),
            *(f"note: {note}" for note in found.pilots.notes),
            f"this took {seconds.taken:.1f} s of {seconds.budget:.1f} s allowed ({seconds.allowance}); the planned run "
            f"takes about {seconds.planned:.1f} s",
        ]
        return "\n".join(lines)

    @property
    def paragraph(self) -> str:
        """The verdict and its reasons in sentences."""
        return " ".join(f"{part[0].upper()}{part[1:]}." for part in (self.verdict, *self.reasons))

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, the reasons, and the rest folded."""
        return assessment_html(self.verdict, self.reasons, str(self), self.findings.pilots.levels)


def _cost_lines(cost: TrainingCost) -> list[str]:
    step = cost.module
    data, gradient, learned, adamw = (1000 * part for part in (cost.data, step.gradient, step.learned, step.adamw))
    return [
        f"a step: batch {data:.2f} ms, forward and backward {gradient:.2f} ms, optimizer {learned:.2f} ms (AdamW "
        f"{adamw:.2f} ms): {cost.share:.0%} of the step, {cost.slowdown:.2f} times a step with AdamW",
        f"optimizer state: {step.learned_bytes:.1f} bytes a parameter (AdamW {step.adamw_bytes:.1f})",
    ]


def _pilot_lines(pilots: PilotFindings, batch_size: int | None) -> list[str]:
    if not pilots.levels:
        return []
    lines = ["pilots, each a run with a schedule to zero; medians over seeds of training / validation loss:"]
    lines.append(f"  {'steps':>6} {'batch':>6} {'rule':>19} {'swept AdamW':>19} {'at':>15} {'default AdamW':>19}")
    lines += [_level_line(level, batch_size) for level in pilots.levels]
    lines += [_level_line(other.level, other.size or batch_size) for other in pilots.others]
    if pilots.matched is not None:
        lines.append("the same over so few batches that each is seen as often as in the planned run:")
        lines.append(_level_line(pilots.matched, batch_size))
    if pilots.longer is not None:
        losses, rates = _swept(pilots.longer.adamw)
        lines.append(
            f"AdamW makes {pilots.longer.steps} steps in the time of {pilots.longer.horizon} of the rule: {losses} at "
            f"{rates}"
        )
    for pilot in pilots.baselines:
        rate = "" if pilot.learning_rate is None else f" at learning rate {pilot.learning_rate:g}"
        lines.append(
            f"{pilot.name}{rate} after {pilot.horizon} steps: {_losses(pilot.losses)} (rule {_losses(pilot.rule)})"
        )
    return lines


def _level_line(level: Level, size: int | None) -> str:
    losses, rates = _swept(level.adamw)
    default = _losses(level.adamw[DEFAULT]) if DEFAULT in level.adamw else ""
    return f"  {level.horizon:>6} {size or '':>6} {_losses(level.rule):>19} {losses:>19} {rates:>15} {default:>19}"


def _swept(adamw: Mapping[int, LossesBySplit]) -> tuple[str, str]:
    """AdamW's losses, each at the learning rate that is best for it, and these rates."""
    splits = list(next(iter(adamw.values())))
    best = {split: min(adamw, key=lambda rate, split=split: _middle(adamw[rate][split])) for split in splits}  # type: ignore[misc]
    losses = _losses({split: adamw[best[split]][split] for split in splits})
    rates = [f"{learning_rate(exponent):.3g}" for exponent in best.values()]
    return losses, " / ".join(rates if len(set(rates)) > 1 else rates[:1])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _middle(losses: Tensor) -> float:
    """The upper median of the losses with six digits, as files keep them; what is not finite counts as infinite."""
    digits = [six_digits(loss) for loss in losses.tolist()]
    return sorted(math.inf if loss is None else loss for loss in digits)[len(digits) // 2]


def _losses(losses: LossesBySplit) -> str:
    return " / ".join(f"{_middle(of_split):.4g}" for of_split in losses.values())
