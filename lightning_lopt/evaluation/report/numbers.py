"""The numbers of a report, computed from results alone: metrics on groups of problems, and defeats of rules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_lopt.evaluation.metrics import final_loss, log_ratio, median_loss
from lightning_lopt.evaluation.metrics.reported import REPORTED
from lightning_lopt.evaluation.results import ProblemResult, Results

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
SPLITS = {"train": "training", "valid": "validation"}
"""Splits of final losses, and their names in a report."""


def groups_of(problem: ProblemResult, trained_on: dict[str, Any]) -> list[str]:
    """The groups to which a problem belongs, by the record of a rule's meta-training.

    Family and data are compared by name, so a problem of a seen family can have unseen data, and the other way round. A
    problem without a family counts as unseen; a problem without data is in neither group of data. An entry that the
    record lacks makes no groups. Results on problems on which a rule was chosen among others, by
    :class:`~lightning_lopt.MetaValidation` for instance, flatter the rule even where their families are unseen.

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
    """All problems, and the groups that are not empty, by name; a problem may be in several groups."""
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
        metric: a key of :data:`~lightning_lopt.evaluation.metrics.reported.REPORTED`.
        problems: number of problems in the group.
        value: value of the metric.
        low: lower bound of the 95 % interval.
        high: upper bound of the 95 % interval.
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
    """The baseline with the lowest median final loss on a split; of equal ones, the first."""
    return min(against, key=lambda name: median_loss(final_loss(problem.measurements[name], split)))


def references(results: Results) -> list[str]:
    """Names of what rules are compared with: each baseline and, if there are several, :data:`BEST`."""
    return [*results.against, *([BEST] if len(results.against) > 1 else [])]


def numbers(results: Results) -> list[Number]:
    """Every metric of each rule against each reference on each group of problems."""
    return [
        number
        for rule, record in results.rules.items()
        for group, problems in groups(results.problems, record.trained_on).items()
        for reference in references(results)
        for number in _compared(results, rule, reference, group, problems)
    ]


def _compared(
    results: Results, rule: str, reference: str, group: str, problems: Sequence[ProblemResult]
) -> Iterator[Number]:
    """Every metric that can be computed of one rule against one reference on a group of problems."""
    for key, reported in REPORTED.items():
        pairs = [
            problem.paired_runs(
                rule, best_baseline(problem, results.against, reported.split) if reference == BEST else reference
            )
            for problem in problems
        ]
        if not all(map(reported.is_known, pairs)):
            continue
        metric = reported.make()
        for runs in pairs:
            metric.update(runs)
        statistics = metric.compute()
        value, low, high = (float(statistics[f"{reported.statistic}{suffix}"]) for suffix in ("", "_low", "_high"))
        yield Number(rule, reference, group, key, len(problems), value, low, high)


@dataclass(frozen=True)
class Defeat:
    """A rule that ends higher than a baseline, on one problem and split.

    Attributes:
        rule: name of the rule.
        against: name of the baseline.
        problem: name of the problem.
        split: ``"train"`` or ``"valid"``.
        factor: median over seeds of the rule's final loss over the baseline's, both with the floor; above :data:`TIE`.
        ours: median final loss of the rule.
        theirs: median final loss of the baseline.
        seeds: number of seeds on which the rule ends higher.
        groups: groups of the problem, see :func:`groups_of`.
    """

    rule: str
    against: str
    problem: str
    split: str
    factor: float
    ours: float
    theirs: float
    seeds: int
    groups: tuple[str, ...]


def defeats(results: Results) -> list[Defeat]:
    """All defeats of rules by baselines, the largest factor first."""
    return sorted(_defeats(results), key=lambda defeat: -defeat.factor)


def _defeats(results: Results) -> Iterator[Defeat]:
    for rule, record in results.rules.items():
        for problem in results.problems:
            for against in results.against:
                for split in SPLITS:
                    ours, theirs = (final_loss(problem.measurements[name], split) for name in (rule, against))
                    ratios = log_ratio(ours, theirs, problem.loss_scale)
                    factor = math.exp(float(ratios.quantile(0.5)))
                    if factor > TIE:
                        yield Defeat(
                            rule,
                            against,
                            problem.name,
                            split,
                            factor,
                            median_loss(ours),
                            median_loss(theirs),
                            int((ratios > 0).sum()),
                            tuple(groups_of(problem, record.trained_on)),
                        )


def untuned_baselines(results: Results) -> list[str]:
    """Names of the baselines for which tuning chose no learning rate on any problem."""
    return [
        name
        for name in results.against
        if all(problem.measurements[name].learning_rate is None for problem in results.problems)
    ]


def problems_lower(results: Results, rule: str, baseline: str, split: str) -> int:
    """Number of problems on which ``rule`` ends below ``baseline``, by the log-ratio of the final losses on a split."""
    return sum(problem.log_ratio(rule, baseline, split) < 0 for problem in results.problems)
