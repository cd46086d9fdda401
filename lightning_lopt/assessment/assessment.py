"""What an assessment found, as values, as text and as JSON."""

from __future__ import annotations

import json
import math
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_lopt.io.whole import write_whole


@dataclass(frozen=True)
class Assessment:
    """Whether to train a module with a rule.

    ``print`` shows it as a compact text that ends in one paragraph.

    Attributes:
        verdict: ``"use it"``, ``"use it with care"`` or ``"don't"``.
        reasons: why, the most important one first.
        numbers: everything that was measured, JSON values only.
    """

    verdict: str
    reasons: list[str]
    numbers: dict[str, Any]

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
        numbers = self.numbers
        lines = [
            f"{numbers['module']}: {numbers['parameters']:,} parameters, {_batches(numbers)}, "
            f"{numbers['total_steps']:,} steps planned, rule {numbers['rule']}",
            *_cost_lines(numbers),
            *_pilot_lines(numbers),
            *(f"note: {note}" for note in numbers["notes"]),
            f"this took {numbers['seconds']['taken']:.1f} s of {numbers['seconds']['budget']:.1f} s allowed "
            f"({numbers['seconds']['allowance']}); the planned run takes about {numbers['seconds']['planned']:.1f} s",
            "",
            textwrap.fill(self.paragraph, 120),
        ]
        return "\n".join(lines)

    @property
    def paragraph(self) -> str:
        """The verdict and its reasons in sentences."""
        return " ".join(f"{part[0].upper()}{part[1:]}." for part in (self.verdict, *self.reasons))


def _batches(numbers: dict[str, Any]) -> str:
    return f"batches of {numbers['batch_size']}" if numbers["batch_size"] else "batches of no known size"


def _cost_lines(numbers: dict[str, Any]) -> list[str]:
    cost = numbers["cost"]
    milli = {key: 1000 * cost[key] for key in ("data", "gradient", "learned", "adamw")}
    return [
        f"a step: batch {milli['data']:.2f} ms, forward and backward {milli['gradient']:.2f} ms, optimizer "
        f"{milli['learned']:.2f} ms (AdamW {milli['adamw']:.2f} ms): {cost['share']:.0%} of the step, "
        f"{cost['slowdown']:.2f} times a step with AdamW",
        f"optimizer state: {cost['learned_bytes']:.1f} bytes a parameter (AdamW {cost['adamw_bytes']:.1f})",
    ]


def _pilot_lines(numbers: dict[str, Any]) -> list[str]:
    if not numbers["pilots"]:
        return []
    lines = ["pilots, each a run with a schedule to zero; medians over seeds of training / validation loss:"]
    lines.append(f"  {'steps':>6} {'batch':>6} {'rule':>19} {'swept AdamW':>19} {'at':>15} {'default AdamW':>19}")
    for pilot in [*numbers["pilots"], *numbers["other_batches"]]:
        lines.append(_pilot_line(pilot, pilot.get("size") or numbers["batch_size"] or ""))
    if numbers["planned_passes"]:
        lines.append("the same over so few batches that each is seen as often as in the planned run:")
        lines.append(_pilot_line(numbers["planned_passes"], numbers["batch_size"] or ""))
    longer = numbers["same_time"]
    if longer:
        losses, rates = _swept(longer["adamw"])
        lines.append(
            f"AdamW makes {longer['steps']} steps in the time of {longer['horizon']} of the rule: {losses} at {rates}"
        )
    for pilot in numbers["baselines"]:
        rate = "" if pilot["learning_rate"] is None else f" at learning rate {pilot['learning_rate']:g}"
        lines.append(
            f"{pilot['name']}{rate} after {pilot['horizon']} steps: {_losses(pilot['losses'])} (rule "
            f"{_losses(pilot['rule'])})"
        )
    return lines


def _pilot_line(pilot: dict[str, Any], size: Any) -> str:
    adamw = pilot["adamw"]
    losses, rates = _swept(adamw)
    default = _losses(adamw["0.001"]) if "0.001" in adamw else ""
    return f"  {pilot['horizon']:>6} {size:>6} {_losses(pilot['rule']):>19} {losses:>19} {rates:>15} {default:>19}"


def _swept(adamw: dict[str, Any]) -> tuple[str, str]:
    """AdamW's losses, each at the learning rate that is best for it, and these rates."""
    splits = list(next(iter(adamw.values())))
    best = {split: min(adamw, key=lambda rate, split=split: _middle(adamw[rate][split])) for split in splits}  # type: ignore[misc]
    losses = _losses({split: adamw[best[split]][split] for split in splits})
    return losses, " / ".join(best.values() if len(set(best.values())) > 1 else [best["train"]])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _middle(losses: list[float | None]) -> float:
    return sorted(float("inf") if loss is None else loss for loss in losses)[len(losses) // 2]


def _losses(found: dict[str, list[float | None]]) -> str:
    return " / ".join(f"{_middle(losses):.4g}" for losses in found.values())
