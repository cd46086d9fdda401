"""The result of an assessment: verdict, reasons and findings, available as values, as text and as JSON."""

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
    """The recommendation whether to train a module with a rule.

    ``print`` shows a compact text that begins with the verdict; a notebook shows a table.

    Attributes:
        verdict: ``"use it"``, ``"use it with care"`` or ``"don't"``.
        reasons: reasons of the verdict, the most important one first.
        findings: all measurements.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_lopt import assess
        >>> assessment = assess(BoringModel, total_steps=100, budget=1)
        >>> findings = assessment.findings
        >>> findings.module, findings.total_steps, len(assessment.reasons) > 0  # print(assessment) shows them
        ('BoringModel', 100, True)
    """

    verdict: str
    reasons: list[str]
    findings: Findings

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """The findings as JSON values; some may not be finite."""
        return self.findings.to_json()

    def to_json(self) -> dict[str, Any]:
        """Verdict, reasons and findings as JSON values; a number that is not finite becomes ``None``."""
        values: dict[str, Any] = _finite({"verdict": self.verdict, "reasons": self.reasons, "numbers": self.numbers})
        return values

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_json` to a file."""
        target = Path(path)
        write_whole(target, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        return target

    def __str__(self) -> str:
        findings, seconds = self.findings, self.findings.seconds
        batches = f"batches of {findings.batch_size}" if findings.batch_size else "batches of unknown size"
        lines = [
            textwrap.fill(self.paragraph, 120),
            "",
            f"{findings.module}: {findings.parameters:,} parameters, {batches}, {findings.total_steps:,} steps "
            f"planned, rule {findings.rule}",
            *_cost_lines(findings.cost),
            *_pilot_lines(findings.pilots, findings.batch_size),
            *(f"note: {note}" for note in findings.pilots.notes),
            f"the assessment took {seconds.taken:.1f} s of {seconds.budget:.1f} s allowed ({seconds.allowance}); the "
            f"planned run takes about {seconds.planned:.1f} s",
        ]
        return "\n".join(lines)

    @property
    def paragraph(self) -> str:
        """The verdict and its reasons in sentences."""
        return " ".join(f"{part[0].upper()}{part[1:]}." for part in (self.verdict, *self.reasons))

    def _repr_html_(self) -> str:
        """HTML for a notebook: the verdict, the reasons, a table of pilots, and the text of ``print`` folded."""
        return assessment_html(self.verdict, self.reasons, str(self), self.findings.pilots.levels)


def _cost_lines(cost: TrainingCost) -> list[str]:
    step = cost.module
    data, gradient, learned, adamw = (1000 * part for part in (cost.data, step.gradient, step.learned, step.adamw))
    return [
        f"a training step: batch {data:.2f} ms, forward and backward {gradient:.2f} ms, optimizer {learned:.2f} ms "
        f"(AdamW {adamw:.2f} ms); the optimizer takes {cost.share:.0%} of the step; the step takes {cost.slowdown:.2f} "
        "times as long as with AdamW",
        f"optimizer state: {step.learned_bytes:.1f} bytes per parameter (AdamW {step.adamw_bytes:.1f})",
    ]


def _pilot_lines(pilots: PilotFindings, batch_size: int | None) -> list[str]:
    if not pilots.levels:
        return []
    lines = ["pilots (short runs with a schedule to zero); medians over seeds of training / validation loss:"]
    lines.append(f"  {'steps':>6} {'batch':>6} {'rule':>19} {'swept AdamW':>19} {'at rate':>15} {'default AdamW':>19}")
    lines += [_level_line(level, batch_size) for level in pilots.levels]
    lines += [_level_line(pilot.level, pilot.size or batch_size) for pilot in pilots.other_batches]
    if pilots.matched is not None:
        lines.append("pilots with as many passes over the data as planned:")
        lines.append(_level_line(pilots.matched, batch_size))
    if pilots.longer is not None:
        losses, rates = _swept(pilots.longer.adamw)
        lines.append(
            f"AdamW makes {pilots.longer.steps} steps in the time of {pilots.longer.horizon} steps of the rule: "
            f"{losses} at {rates}"
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
    """The losses of AdamW at the best learning rate for each split, and these rates."""
    splits = list(next(iter(adamw.values())))
    best = {split: _best_rate(adamw, split) for split in splits}
    losses = _losses({split: adamw[best[split]][split] for split in splits})
    rates = [f"{learning_rate(exponent):.3g}" for exponent in best.values()]
    return losses, " / ".join(rates if len(set(rates)) > 1 else rates[:1])


def _best_rate(adamw: Mapping[int, LossesBySplit], split: Split) -> int:
    return min(adamw, key=lambda rate: _median(adamw[rate][split]))


def _finite(value: Any) -> Any:
    """JSON values without numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _median(losses: Tensor) -> float:
    """The upper median of the losses with six digits, as in files; losses that are not finite count as infinite."""
    rounded = [six_digits(loss) for loss in losses.tolist()]
    return sorted(math.inf if loss is None else loss for loss in rounded)[len(rounded) // 2]


def _losses(losses: LossesBySplit) -> str:
    return " / ".join(f"{_median(losses_of_split):.4g}" for losses_of_split in losses.values())
