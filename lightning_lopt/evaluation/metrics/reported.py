"""The metrics of a report, each with its description and format.

A new metric is a class in this folder and an entry of :data:`REPORTED`; tables, page, shell and loggers follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lightning_lopt.evaluation.metrics.base import PairedMetric, PairedRuns
from lightning_lopt.evaluation.metrics.scores import (
    DivergenceRate,
    LossRatio,
    NormalisedLoss,
    StepSpeedup,
    WallClockSpeedup,
    WinRate,
    WorstRegret,
)

Section = Literal["speed and wins", "loss ratios", "worst cases", "groups", "shell", "loggers"]
"""Tables in which a metric may be a column: the first three stand in the page's summary, and ``"groups"`` has a row for
seen problems, one for unseen problems and so on."""


@dataclass(frozen=True)
class ReportedMetric:
    """A metric of a report.

    Attributes:
        label: heading of its column in tables.
        make: makes the metric.
        statistic: name of the statistic to show.
        definition: definition in sentences; metrics of one kind share it.
        sections: tables in which it is a column.
        split: split on which the best baseline is chosen.
        percent: whether values are shares, shown in percent.
        digits: decimals of a value that is no share.
        needs_step_cost: whether it needs measured costs of a step, and is left out without them.
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

    def is_known(self, runs: PairedRuns) -> bool:
        """Whether the metric can be computed from these runs."""
        return not (self.needs_step_cost and math.isnan(runs.step_cost))

    def text(self, value: float, low: float, high: float) -> str:
        """Value and interval."""
        if self.percent:
            return f"{100 * value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
        return f"{self._fixed(value)} [{self._fixed(low)}, {self._fixed(high)}]"

    def _fixed(self, value: float) -> str:
        """``value`` with :attr:`digits` decimals, without a minus sign before a zero."""
        return f"{round(value, self.digits) + 0.0:.{self.digits}f}"


_SPEEDUP = (
    "Speed-up in steps: how many times fewer steps the rule needs for the smoothed training loss at which the baseline "
    "ends; where it ends higher itself, the inverse of what the baseline needs for its level (after VeLO, arXiv "
    "2211.09760, and Celo, arXiv 2501.12670). Above 1 the rule is faster."
)
_WALL_CLOCK = (
    "Speed-up in seconds: the speed-up in steps times the ratio of what a training step (gradient and optimizer) costs "
    "with each, measured here."
)
_RATIO = (
    "Loss ratio: the baseline's loss after the last step over the rule's, both with 1 % of the uninformed loss (that "
    "of a constant prediction) added. Above 1 the rule ends lower. Best validation loss: the lowest among 20 "
    "checkpoints."
)
_WINS = (
    "Wins: share of runs that end lower than the baseline's run from the same initial model on the same batches; ties, "
    "among them two losses below 1 % of the uninformed loss, count half."
)
_NORMALISED = "Normalised loss: 0 where the baseline ends, 1 for an uninformed model (a constant prediction)."
_REGRET = (
    "Worst regret: on the problem where the rule does worst, how many times as high as the baseline it ends (median "
    "over seeds)."
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
"""Metrics by the name that they have in results, tables and logs; columns of tables follow this order."""


def columns(section: Section) -> list[str]:
    """Names of the metrics that are columns of a table."""
    return [name for name, metric in REPORTED.items() if section in metric.sections]
