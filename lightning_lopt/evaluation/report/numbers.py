"""Every aggregate number of a report, from results alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lightning_lopt.evaluation.metrics import (
    ContestMetric,
    DivergenceRate,
    LossRatio,
    NormalisedLoss,
    StepSpeedup,
    WallClockSpeedup,
    WinRate,
    WorstRegret,
    final_loss,
    median_loss,
)
from lightning_lopt.evaluation.problem_result import ProblemResult
from lightning_lopt.evaluation.report.groups import groups
from lightning_lopt.evaluation.results import Results

BEST = "best baseline"
"""On each problem the baseline whose median final loss, on the split in question, is lowest."""


@dataclass(frozen=True)
class Entry:
    """A metric as it is shown.

    Attributes:
        label: for heads of tables.
        make: the metric.
        statistic: which of its statistics.
        split: on which the best baseline is chosen.
    """

    label: str
    make: Callable[[], ContestMetric]
    statistic: str
    split: str = "train"


ENTRIES: dict[str, Entry] = {
    "speedup": Entry("speed-up in steps", StepSpeedup, "iqm"),
    "speedup_median": Entry("its median", StepSpeedup, "median"),
    "wall_clock": Entry("speed-up in seconds", WallClockSpeedup, "iqm"),
    "train_ratio": Entry("training loss, ratio", LossRatio, "iqm"),
    "valid_ratio": Entry("validation loss, ratio", lambda: LossRatio("valid"), "iqm", "valid"),
    "best_valid_ratio": Entry("best validation loss, ratio", lambda: LossRatio("best_valid"), "iqm", "best_valid"),
    "train_wins": Entry("wins in training", WinRate, "mean"),
    "valid_wins": Entry("wins in validation", lambda: WinRate("valid"), "mean", "valid"),
    "train_regret": Entry("worst regret in training", WorstRegret, "worst"),
    "valid_regret": Entry("worst regret in validation", lambda: WorstRegret("valid"), "worst", "valid"),
    "train_normalised": Entry("normalised training loss", NormalisedLoss, "iqm"),
    "valid_normalised": Entry("normalised validation loss", lambda: NormalisedLoss("valid"), "iqm", "valid"),
    "diverged": Entry("diverged", DivergenceRate, "mean"),
}


@dataclass(frozen=True)
class Number:
    """One number with its interval.

    Attributes:
        rule: name of the optimizer.
        against: name of the baseline, or :data:`BEST`.
        group: of problems.
        metric: a key of :data:`ENTRIES`.
        problems: how many.
        value: of the metric.
        low: lower bound of its 95 % interval.
        high: upper bound.
    """

    rule: str
    against: str
    group: str
    metric: str
    problems: int
    value: float
    low: float
    high: float


def best_baseline(problem: ProblemResult, against: Sequence[str], split: str) -> str:
    """The baseline with the lowest median final loss on a split; the first of equals."""
    return min(against, key=lambda name: median_loss(final_loss(problem.measurements[name], split)))


def references(results: Results) -> list[str]:
    """What rules are compared with: each baseline and, of several, the best of them."""
    return [*results.against, *([BEST] if len(results.against) > 1 else [])]


def numbers(results: Results) -> list[Number]:
    """Every metric of each rule against each reference on each group of problems."""
    return [
        number
        for rule, record in results.rules.items()
        for group, problems in groups(results.problems, record.trained_on).items()
        for reference in references(results)
        for number in _of(results, rule, reference, group, problems)
    ]


def _of(results: Results, rule: str, reference: str, group: str, problems: Sequence[ProblemResult]) -> Iterator[Number]:
    for key, entry in ENTRIES.items():
        metric = entry.make()
        contests = [
            problem.contest(
                rule, best_baseline(problem, results.against, entry.split) if reference == BEST else reference
            )
            for problem in problems
        ]
        if key == "wall_clock" and any(math.isnan(contest.step_cost) for contest in contests):
            continue
        for contest in contests:
            metric.update(contest)
        found = metric.compute()
        value, low, high = (float(found[f"{entry.statistic}{suffix}"]) for suffix in ("", "_low", "_high"))
        yield Number(rule, reference, group, key, len(problems), value, low, high)
