"""The verdict of an assessment and its reasons; they follow from outlooks and from diverged runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from lightning_lopt.assessment.other_batches import OtherBatches
from lightning_lopt.assessment.outlook import Outlook
from lightning_lopt.assessment.pilots import Level, learning_rate
from lightning_lopt.tasks.base import Split

USE, CARE, DONT = "use it", "use it with care", "don't"
SLOWER = 1.25  # smallest slowdown that the reasons mention
RISE = 1.05  # a run has failed if its final loss is above this multiple of its first loss
TREND = 3  # least number of horizons that show a trend


def judge(
    against_tuned: Mapping[Split, Outlook],
    against_default: Mapping[Split, Outlook],
    *,
    in_the_same_time: Mapping[Split, Outlook],
    troubles: Sequence[str],
    hopeless: bool,
    gaps: Sequence[str],
    slowdown: float,
    pretrained: str | None = None,
) -> tuple[str, list[str]]:
    """The verdict and its reasons, the most important one first.

    - "don't" in three cases: the rule diverged and AdamW did not; the interval of the outlook is above the swept AdamW,
      with as many steps or in the same time; or the module is pretrained, and the outlook is not a lead of the rule.
    - "use it": the interval of the outlook is below the swept AdamW, with as many steps and in the same time. For a
      slower rule, pilots must also show the lead in the same time, at the planned end or as a trend at three horizons.
    - "use it with care": all other cases.

    The validation loss decides if there is one, otherwise the training loss.

    Args:
        against_tuned: outlook by split against AdamW at the best learning rate; empty if there was no pilot.
        against_default: outlook by split against torch's default learning rate.
        in_the_same_time: outlook by split against AdamW at the best learning rate with ``slowdown`` times as many
            steps; empty if the outlook could not be computed.
        troubles: sentences about instability.
        hopeless: whether no optimizer lowered the loss.
        gaps: sentences about gaps of meta-training.
        slowdown: time of a training step with the rule, divided by the time with AdamW.
        pretrained: the sign that the module was trained before, as a clause.
    """
    reasons: list[str] = list(troubles)
    warning = [f"the module looks pretrained ({pretrained}), and the rule is made for random initial weights"] * bool(
        pretrained
    )
    if not against_tuned:
        reasons += warning
        reasons.append("there was no time for a pilot, so the losses of the rule are unknown; give a larger budget")
        return (DONT if reasons[:-1] else CARE), [*reasons, *_gap_reasons(gaps), *_slow_reasons(slowdown)]
    split: Split = "valid" if "valid" in against_tuned else "train"
    tuned, default, timed = against_tuned[split], against_default[split], in_the_same_time.get(split)
    is_shown = timed is not None and _is_shown(timed, tuned, slowdown)
    ahead = tuned.ahead and timed is not None and is_shown and timed.ahead and not hopeless
    behind = (tuned.behind or (timed is not None and timed.behind)) and not hopeless
    reasons += warning
    if hopeless:
        reasons.append("no optimizer lowered the loss in the pilots, so check the model and the data first")
    comparisons = [_sentence(tuned, split, "an AdamW with a swept learning rate")]
    if slowdown >= SLOWER or (timed is not None and timed.ahead != tuned.ahead):
        reference = f"an AdamW that makes {slowdown:.1f} times as many steps in the same time"
        is_known = timed is not None and (is_shown or timed.behind)
        comparisons.append(_sentence(timed, split, reference) if timed is not None and is_known else _unknown(slowdown))
    if timed is not None and timed.behind and not tuned.behind:
        comparisons.reverse()
    reasons += comparisons
    reasons.append(_sentence(default, split, "AdamW at its default rate"))
    if split == "valid" and against_tuned["train"].ahead != tuned.ahead:
        reasons.append(_sentence(against_tuned["train"], "train", "the swept AdamW"))
    reasons += [*_gap_reasons(gaps), *_slow_reasons(slowdown)]
    if troubles or behind or (pretrained and not ahead):
        return DONT, reasons
    return (USE if ahead and not pretrained else CARE), reasons


def _is_shown(timed: Outlook, tuned: Outlook, slowdown: float) -> bool:
    """Whether the longest pilots show the loss of AdamW in the same time, at the planned end or with a trend."""
    is_longest = timed.pilots[-1][0] == tuned.pilots[-1][0]
    return is_longest and (slowdown < SLOWER or timed.doublings == 0 or len(timed.pilots) >= TREND)


def _unknown(slowdown: float) -> str:
    return f"the loss of AdamW with {slowdown:.0f} times as many steps could not be measured; give a larger budget"


def _sentence(view: Outlook, split: Split, reference: str) -> str:
    loss = "validation loss" if split == "valid" else "training loss"
    (rule_loss, reference_loss), horizon = view.losses, view.pilots[-1][0]
    measured = (
        f"after {horizon} steps the {loss} of the rule was {rule_loss:.4g}, and that of {reference} was "
        f"{reference_loss:.4g}"
    )
    if view.doublings == 0:
        return measured
    if not view.positive:
        relation = "lower" if view.ahead else "higher" if view.behind else "lower or higher"
        return f"{measured}; the predicted loss of the rule at the planned end is {relation} than that of this AdamW"
    low, high = (math.exp(view.expected + sign * view.uncertainty) for sign in (-1, 1))
    return (
        f"{measured}; the predicted loss of the rule at the planned end is {low:.2f} to {high:.2f} times that of this "
        "AdamW"
    )


def _gap_reasons(gaps: Sequence[str]) -> list[str]:
    return [f"meta-training does not cover this: {'; '.join(gaps)}"] if gaps else []


def _slow_reasons(slowdown: float) -> list[str]:
    if slowdown < SLOWER:
        return []
    return [
        f"a training step takes {slowdown:.1f} times as long as with AdamW: in the same time AdamW makes "
        f"{slowdown:.1f} times as many steps"
    ]


def troubles(levels: Sequence[Level], other_batches: Sequence[OtherBatches]) -> list[str]:
    """One sentence for each set of pilots in which the rule diverged or ended above its first loss, unlike AdamW."""
    sentences = []
    pilots = [(level, "") for level in levels] + [
        (batches.level, f" with batches of {batches.size}") for batches in other_batches
    ]
    for level, batches_note in pilots:
        start = level.start["train"]
        limit = torch.where(start > 0, start * RISE, start / RISE)
        failed = ~(level.rule["train"] <= limit)
        adamw = level.adamw[level.best("train")]["train"]
        if failed.any() and bool((adamw <= limit).all()):
            losses = level.rule["train"][failed]
            outcome = "diverged" if not bool(losses.isfinite().all()) else "ended above its first loss"
            sentences.append(
                f"in pilots of {level.horizon} steps{batches_note} the rule {outcome} with {int(failed.sum())} of "
                f"{len(failed)} seeds, where AdamW at {learning_rate(level.best('train')):.2g} did not"
            )
    return sentences


def no_optimizer_learns(levels: Sequence[Level]) -> bool:
    """Whether on the longest level neither the rule nor AdamW at any rate lowered the loss."""
    level = levels[-1]
    ends = [level.rule["train"].median(), *(losses["train"].median() for losses in level.adamw.values())]
    lowest = min((float(end) for end in ends if math.isfinite(end)), default=math.inf)
    return lowest >= float(level.start["train"].median())
