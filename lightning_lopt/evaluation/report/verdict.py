"""What a report begins with: who ends lower, in a sentence and as a chart of all problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_lopt.evaluation.metrics import diverged
from lightning_lopt.evaluation.report.defeats import SPLITS, TIE, problems_lower
from lightning_lopt.evaluation.report.numbers import ALL, Number
from lightning_lopt.evaluation.report.tables import label
from lightning_lopt.evaluation.results import ProblemResult, Results

Outcome = Literal["win", "tie", "loss"]
Standing = Literal["ahead", "mixed", "behind"]


def outcome(log_ratio: float) -> Outcome:
    """Of a rule against another optimizer, from the logarithm of the ratio of their losses; 0.1 % and less is a tie.

    >>> outcome(-0.5), outcome(0.0005), outcome(math.inf)
    ('win', 'tie', 'loss')
    """
    if abs(log_ratio) <= math.log(TIE):
        return "tie"
    return "win" if log_ratio < 0 else "loss"


@dataclass(frozen=True)
class Verdict:
    """How a rule stands against a baseline.

    Attributes:
        rule: name of the rule.
        against: name of the baseline.
        standing: ``"ahead"`` where the rule ends lower on more than half of the problems, in training and in
            validation, and is not slower in seconds; ``"behind"`` where it ends lower on fewer than half of them in
            both; ``"mixed"`` else.
        text: a sentence.
    """

    rule: str
    against: str
    standing: Standing
    text: str


def verdicts(results: Results, found: Sequence[Number]) -> list[Verdict]:
    """One for each rule against each baseline, in the order of the results.

    Args:
        results: what was measured.
        found: its numbers.
    """
    at = {(number.rule, number.against, number.metric): number.value for number in found if number.group == ALL}
    return [_verdict(results, at, rule, against) for rule in results.rules for against in results.against]


def _verdict(results: Results, at: Mapping[tuple[str, str, str], float], rule: str, against: str) -> Verdict:
    total = len(results.problems)
    lower = [problems_lower(results, rule, against, split) for split in SPLITS]
    ahead, behind = ([sign * (2 * count - total) > 0 for count in lower] for sign in (1, -1))
    seconds = at.get((rule, against, "wall_clock"))
    clock = "" if seconds is None else f", {seconds:.2f} in seconds"
    other = label(against)
    standing: Standing = "mixed"
    if all(ahead) and seconds is not None and seconds < 1:  # a win is one by the clock
        how = f"is ahead of {other} in as many steps, and behind it by the clock"
    elif all(ahead):
        standing, how = "ahead", f"is ahead of {other}"
    elif all(behind):
        standing, how = "behind", f"is behind {other}"
    else:
        how = f"is ahead of {other} on some problems, and behind it on others"
    text = (
        f"{label(rule)} {how}: it ends lower on {lower[0]} of {total} problems in training and on "
        f"{lower[1]} of {total} in validation; its speed-up is {at[rule, against, 'speedup']:.2f} in steps{clock}."
    )
    broken = sum(int(diverged(problem.measurements[rule], problem.loss_scale).sum()) for problem in results.problems)
    return Verdict(rule, against, standing, f"{text} {_diverged(broken)}" if broken else text)


def _diverged(runs: int) -> str:
    return f"{runs} {'run' if runs == 1 else 'runs'} of it diverged."


@dataclass(frozen=True)
class ChartRow:
    """One problem in the chart of a rule against a baseline.

    Attributes:
        problem: its name.
        log_ratios: by split, the logarithm of the rule's loss over the baseline's, median over seeds.
    """

    problem: str
    log_ratios: Mapping[str, float]


def chart_rows(results: Results, rule: str, against: str) -> list[ChartRow]:
    """All problems, the largest win in validation first."""
    rows = [
        ChartRow(problem.name, {split: problem.log_ratio(rule, against, split) for split in SPLITS})
        for problem in results.problems
    ]
    return sorted(rows, key=lambda row: row.log_ratios["valid"])


def outcomes_beside_the_best(problem: ProblemResult, rule: str, against: Sequence[str]) -> dict[str, Outcome]:
    """By split, how a rule ends against whichever baseline is hardest for it there."""
    return {split: outcome(max(problem.log_ratio(rule, name, split) for name in against)) for split in SPLITS}
