"""The numbers of a report: metrics on groups of problems. They are computed from results alone.

A new metric needs a class in :mod:`lightning_lopt.evaluation.metrics` and an entry of :data:`REPORTED`; tables, page,
shell and loggers then show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_lopt.evaluation.metrics import (
    DivergenceRate,
    LossRatio,
    NormalisedLoss,
    PairedMetric,
    PairedRuns,
    StepSpeedup,
    WallClockSpeedup,
    WinRate,
    WorstRegret,
    final_loss,
    median_loss,
)
from lightning_lopt.evaluation.results import ProblemResult, Results

Section = Literal["speed and wins", "loss ratios", "worst cases", "groups", "shell", "loggers"]
"""Tables in which a metric may be a column. The first three are in the page's summary; ``"groups"`` has a row for each
group of problems (seen, unseen, ...)."""


@dataclass(frozen=True)
class ReportedMetric:
    """A metric of a report.

    Attributes:
        label: heading of the metric's column in tables.
        make: function that makes the metric.
        statistic: name of the statistic to show.
        definition: definition in sentences; metrics of one kind share a definition.
        sections: tables in which the metric is a column.
        split: split on which the best baseline is chosen.
        percent: whether values are shares, which are shown in percent.
        digits: number of decimals of a value that is not a share.
        needs_step_cost: whether the metric needs measured costs of a step; without them, it is left out.
    """

    label: str
    make: Callable[[], PairedMetric]
    statistic: str
    definition: str
    sections: tuple[Section, ...]
    split: str = "train"
    percent: bool = False
    digits: int = 2
    needs_step_cost: bool = False

    def is_computable(self, runs: PairedRuns) -> bool:
        """Whether the metric can be computed from these runs."""
        return not (self.needs_step_cost and math.isnan(runs.step_cost))

    def text(self, value: float, low: float, high: float) -> str:
        """The value and the interval as text."""
        if self.percent:
            return f"{100 * value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
        return f"{self._fixed(value)} [{self._fixed(low)}, {self._fixed(high)}]"

    def _fixed(self, value: float) -> str:
        """``value`` with :attr:`digits` decimals; a zero has no minus sign."""
        return f"{round(value, self.digits) + 0.0:.{self.digits}f}"


_SPEEDUP = (
    "Speed-up in steps: steps of the baseline, divided by steps of the rule, until the smoothed training loss reaches "
    "a target. The target is the higher one of the two final losses (after VeLO, arXiv 2211.09760, and Celo, arXiv "
    "2501.12670). Above 1 the rule is faster."
)
_WALL_CLOCK = (
    "Speed-up in seconds: the speed-up in steps, times the measured seconds of a training step (gradient and "
    "optimizer) with the baseline, divided by the seconds with the rule."
)
_RATIO = (
    "Loss ratio: the baseline's loss after the last step, divided by the rule's loss; 1 % of the uninformed loss (the "
    "loss of a constant prediction) is added to both. Above 1 the rule's loss is lower. Best validation loss: the "
    "lowest among 20 checkpoints."
)
_WINS = (
    "Wins: share of runs with a lower final loss than the baseline's run from the same initial model on the same "
    "batches. Ties count half; two losses below 1 % of the uninformed loss are a tie."
)
_NORMALISED = "Normalised loss: 0 is the baseline's final loss, 1 that of an uninformed model (constant prediction)."
_REGRET = (
    "Worst regret: the rule's final loss, divided by the baseline's (median over seeds), on the problem with the "
    "largest ratio."
)
_DIVERGED = (
    "Diverged: runs with a loss that is not finite, or a final training loss above 1.5 times the uninformed loss."
)

REPORTED: dict[str, ReportedMetric] = {
    "speedup": ReportedMetric(
        "speed-up in steps", StepSpeedup, "iqm", _SPEEDUP, ("speed and wins", "groups", "shell", "loggers")
    ),
    "speedup_median": ReportedMetric("speed-up in steps, median", StepSpeedup, "median", _SPEEDUP, ("speed and wins",)),
    "wall_clock": ReportedMetric(
        "speed-up in seconds", WallClockSpeedup, "iqm", _WALL_CLOCK, ("speed and wins",), needs_step_cost=True
    ),
    "train_ratio": ReportedMetric(
        "training loss, ratio", LossRatio, "iqm", _RATIO, ("loss ratios", "groups", "shell", "loggers")
    ),
    "valid_ratio": ReportedMetric(
        "validation loss, ratio",
        lambda: LossRatio("valid"),
        "iqm",
        _RATIO,
        ("loss ratios", "groups", "shell", "loggers"),
        split="valid",
    ),
    "best_valid_ratio": ReportedMetric(
        "best validation loss, ratio",
        lambda: LossRatio("best_valid"),
        "iqm",
        _RATIO,
        ("loss ratios",),
        split="best_valid",
    ),
    "train_wins": ReportedMetric(
        "wins in training", WinRate, "mean", _WINS, ("speed and wins", "loggers"), percent=True
    ),
    "valid_wins": ReportedMetric(
        "wins in validation",
        lambda: WinRate("valid"),
        "mean",
        _WINS,
        ("speed and wins", "groups", "shell", "loggers"),
        split="valid",
        percent=True,
    ),
    "train_normalised": ReportedMetric(
        "normalised training loss", NormalisedLoss, "iqm", _NORMALISED, ("loss ratios",), digits=3
    ),
    "valid_normalised": ReportedMetric(
        "normalised validation loss",
        lambda: NormalisedLoss("valid"),
        "iqm",
        _NORMALISED,
        ("worst cases",),
        split="valid",
        digits=3,
    ),
    "train_regret": ReportedMetric("worst regret in training", WorstRegret, "worst", _REGRET, ("worst cases",)),
    "valid_regret": ReportedMetric(
        "worst regret in validation",
        lambda: WorstRegret("valid"),
        "worst",
        _REGRET,
        ("worst cases", "groups", "loggers"),
        split="valid",
    ),
    "diverged": ReportedMetric("diverged", DivergenceRate, "mean", _DIVERGED, ("worst cases",), percent=True),
}
"""Metrics by their name in results, tables and logs; columns of tables have this order."""


def columns(section: Section) -> list[str]:
    """Names of the metrics that are columns of the tables of ``section``."""
    return [name for name, metric in REPORTED.items() if section in metric.sections]


BEST = "best baseline"
"""On each problem, the baseline with the lowest median final loss on the split of the metric."""
ALL = "all problems"
SEEN_FAMILIES = "seen families"
UNSEEN_FAMILIES = "unseen families"
SEEN_DATA = "seen data"
UNSEEN_DATA = "unseen data"
LONGER = "longer than trained on"
CHOSEN = "the rule was chosen on"
TIE = 1.001  # largest ratio of final losses that counts as equal
SPLIT_NAMES = {"train": "training", "valid": "validation"}
"""Splits of final losses, and their names in a report."""


def groups_of(problem: ProblemResult, trained_on: dict[str, Any]) -> list[str]:
    """The groups to which a problem belongs, by the record of a rule's meta-training.

    Family and data are compared by name, so a problem of a seen family can have unseen data, and vice versa. A problem
    without a family counts as unseen; a problem without data is in neither group of data. An entry that the record
    lacks makes no groups. If a rule was chosen by its results on some problems (for instance by
    :class:`~lightning_lopt.MetaValidation`), these results flatter the rule, even if their families are unseen.

    >>> problem = ProblemResult("p", 2000, 1.0, {}, "image_mlp", "mnist")
    >>> groups_of(problem, {"families": ["image_mlp"], "data": ["digits"]})
    ['seen families', 'unseen data']
    """
    names = []
    if "families" in trained_on:
        names.append(SEEN_FAMILIES if problem.family in trained_on["families"] else UNSEEN_FAMILIES)
    if "data" in trained_on and problem.data:
        names.append(SEEN_DATA if problem.data in trained_on["data"] else UNSEEN_DATA)
    if "horizons" in trained_on and problem.horizon > trained_on["horizons"][1]:
        names.append(LONGER)
    if problem.name in trained_on.get("chosen_on", ()):
        names.append(CHOSEN)
    return names


def groups(problems: Sequence[ProblemResult], trained_on: dict[str, Any]) -> dict[str, list[ProblemResult]]:
    """All problems, and the groups with at least one problem, by name; a problem may be in several groups."""
    by_name = {ALL: list(problems)}
    for group in (SEEN_FAMILIES, UNSEEN_FAMILIES, SEEN_DATA, UNSEEN_DATA, LONGER, CHOSEN):
        members = [problem for problem in problems if group in groups_of(problem, trained_on)]
        if members:
            by_name[group] = members
    return by_name


@dataclass(frozen=True)
class Number:
    """The value of a metric on a group of problems, with its interval.

    Attributes:
        rule: name of the rule.
        against: name of the baseline, or :data:`BEST`.
        group: name of the group of problems.
        metric: a key of :data:`REPORTED`.
        problems: number of problems in the group.
        value: value of the metric.
        low: lower bound of the 95 % interval.
        high: upper bound of the 95 % interval.

    >>> Number("base", "adamw", "all problems", "speedup", 14, value=2.1, low=1.9, high=2.2).value
    2.1
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
    """The baseline with the lowest median final loss on a split; among equal baselines, the first."""
    return min(against, key=lambda name: median_loss(final_loss(problem.measurements[name], split)))


def references(results: Results) -> list[str]:
    """Names of the references of the rules: each baseline and, if there are several baselines, :data:`BEST`."""
    return [*results.against, *([BEST] if len(results.against) > 1 else [])]


def numbers(results: Results) -> list[Number]:
    """Every metric of each rule against each reference on each group of problems.

    >>> from lightning_lopt import AdamRule, evaluation, tasks
    >>> bowl, baselines = evaluation.Problem("bowl", tasks.Quadratic(torch.ones(2)), 10), evaluation.Baselines(seeds=1)
    >>> results = evaluation.evaluate({"mine": AdamRule(0.1)}, [bowl], ["adam_default"], baselines=baselines)
    >>> {number.rule for number in numbers(results)}
    {'mine'}
    """
    return [
        number
        for rule, record in results.rules.items()
        for group, problems in groups(results.problems, record.trained_on).items()
        for reference in references(results)
        for number in _numbers_of_pair(results, rule, reference, group, problems)
    ]


def _numbers_of_pair(
    results: Results, rule: str, reference: str, group: str, problems: Sequence[ProblemResult]
) -> Iterator[Number]:
    """Every computable metric of one rule against one reference on a group of problems."""
    for key, reported in REPORTED.items():
        pairs = [
            problem.paired_runs(
                rule, best_baseline(problem, results.against, reported.split) if reference == BEST else reference
            )
            for problem in problems
        ]
        if not all(map(reported.is_computable, pairs)):
            continue
        metric = reported.make()
        for runs in pairs:
            metric.update(runs)
        statistics = metric.compute()
        value, low, high = (float(statistics[f"{reported.statistic}{suffix}"]) for suffix in ("", "_low", "_high"))
        yield Number(rule, reference, group, key, len(problems), value, low, high)
