"""From what was measured to three words, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning_lopt.evaluation.assess.outlook import Outlook
from lightning_lopt.tasks.base import Split

USE, CARE, DONT = "use it", "use it with care", "don't"
SLOW = 3.0  # times the time of a training step from which an advantage in steps may be none in time,
PATIENCE = 60.0  # where the whole run takes so many seconds longer


def judge(
    against_tuned: Mapping[Split, Outlook],
    against_default: Mapping[Split, Outlook],
    *,
    troubles: Sequence[str],
    hopeless: bool,
    gaps: Sequence[str],
    slowdown: float,
    planned_seconds: float,
) -> tuple[str, list[str]]:
    """The verdict and its reasons, the most important one first.

    - "don't": it diverged where AdamW did not, or will end above the swept AdamW beyond doubt;
    - "use it": it will end below it beyond doubt, and in no more than :data:`SLOW` times the time, or that is a minute;
    - "use it with care": all else.

    The loss is that of validation if there is one, else of training.

    Args:
        against_tuned: outlook by split against AdamW at the best learning rate; empty if there was no pilot.
        against_default: against torch's default learning rate.
        troubles: sentences about instability.
        hopeless: no optimizer lowered the loss.
        gaps: sentences about what meta-training did not cover.
        slowdown: of a whole training step.
        planned_seconds: of the planned run with AdamW.
    """
    reasons: list[str] = list(troubles)
    if not against_tuned:
        reasons.append("there was no time for a pilot, so nothing is known of its losses; give a larger budget")
        return (DONT if troubles else CARE), [*reasons, *_gap_reasons(gaps), *_slow_reasons(slowdown)]
    split: Split = "valid" if "valid" in against_tuned else "train"
    tuned, default = against_tuned[split], against_default[split]
    if hopeless:
        reasons.append("no optimizer lowered the loss in the pilots, so look at the model and the data first")
    reasons.append(_sentence(tuned, split, "an AdamW with a swept learning rate"))
    reasons.append(_sentence(default, split, "AdamW at its default rate"))
    if split == "valid" and against_tuned["train"].ahead != tuned.ahead:
        reasons.append(_sentence(against_tuned["train"], "train", "the swept AdamW"))
    reasons += [*_gap_reasons(gaps), *_slow_reasons(slowdown)]
    if troubles or (tuned.behind and not hopeless):
        return DONT, reasons
    slow = slowdown >= SLOW and planned_seconds * (slowdown - 1) > PATIENCE
    if tuned.ahead and not hopeless and not slow:
        return USE, reasons
    return CARE, reasons


def _sentence(view: Outlook, split: Split, other: str) -> str:
    loss = "validation loss" if split == "valid" else "training loss"
    (ours, theirs), horizon = view.losses, view.pilots[-1][0]
    seen = f"after {horizon} steps its {loss} was {ours:.4g}, and {theirs:.4g} for {other}"
    if view.doublings == 0:
        return seen
    if not view.positive:
        end = "lower" if view.ahead else "higher" if view.behind else "lower or higher"
        return f"{seen}; at the planned end a {end} one is to be expected"
    low, high = (math.exp(view.expected + sign * view.uncertainty) for sign in (-1, 1))
    return f"{seen}; at the planned end {low:.2f} to {high:.2f} times that is to be expected"


def _gap_reasons(gaps: Sequence[str]) -> list[str]:
    return [f"meta-training does not cover this: {'; '.join(gaps)}"] if gaps else []


def _slow_reasons(slowdown: float) -> list[str]:
    if slowdown < 1.25:
        return []
    return [f"a training step takes {slowdown:.1f} times as long as with AdamW, which could make that many more steps"]
