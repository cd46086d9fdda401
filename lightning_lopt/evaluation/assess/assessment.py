"""What an assessment found, as values, as text and as JSON."""

from __future__ import annotations

import json
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
        """All of it as JSON values."""
        return {"verdict": self.verdict, "reasons": self.reasons, "numbers": self.numbers}

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
    lines = ["pilots, each a run with a schedule to zero; medians of 3 seeds of training / validation loss:"]
    lines.append(f"  {'steps':>6} {'batch':>6} {'rule':>19} {'swept AdamW':>19} {'at':>8} {'default AdamW':>19}")
    for pilot in [*numbers["pilots"], *numbers["other_batches"]]:
        rates = pilot["adamw"]
        best = min(rates, key=lambda rate: _middle(rates[rate]["train"]))
        size = pilot.get("size") or numbers["batch_size"] or ""
        lines.append(
            f"  {pilot['horizon']:>6} {size:>6} {_losses(pilot['rule']):>19} "
            f"{_losses(rates[best]):>19} {best:>8} {_losses(rates['0.001']) if '0.001' in rates else '':>19}"
        )
    return lines


def _middle(losses: list[float | None]) -> float:
    return sorted(float("inf") if loss is None else loss for loss in losses)[len(losses) // 2]


def _losses(found: dict[str, list[float | None]]) -> str:
    return " / ".join(f"{_middle(losses):.4g}" for losses in found.values())
