"""Every aggregate number of a report, from results alone: for all problems, and by what a rule was meta-trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_lopt.evaluation.metrics import final_loss, log_ratio, median_loss
from lightning_lopt.evaluation.metrics.reported import REPORTED
from lightning_lopt.evaluation.results import ProblemResult, Results

BEST = "best baseline"
"""On each problem the baseline whose median final loss, on the split in question, is lowest."""
ALL = "all problems"
SEEN_FAMILIES = "seen families"
UNSEEN_FAMILIES = "unseen families"
SEEN_DATA = "seen data"
UNSEEN_DATA = "unseen data"
LONGER = "longer than trained on"
CHOSEN = "the rule was chosen on"
TIE = 1.001  # factors up to here are no defeat
SPLITS = {"train": "training", "valid": "validation"}


def labels(problem: ProblemResult, trained_on: dict[str, Any]) -> list[str]:
    """Which of the groups a problem belongs to, by what a rule says of its meta-training.

    Family and data are told apart by their names: a problem of a seen family can have unseen data and the other way
    round. A problem without a family counts as unseen; one without data of its own is in neither group of data. What a
    rule does not say puts no problem in a group. Problems on which a rule was chosen among others, by
    :class:`~lightning_lopt.MetaValidation` for instance, flatter it even where their families are unseen.

    >>> labels(ProblemResult("p", 2000, 1.0, {}, "image_mlp", "mnist"), {"families": ["image_mlp"], "data": ["digits"]})
    ['seen families', 'unseen data']
    """
    found = []
    if "families" in trained_on:
        found.append(SEEN_FAMILIES if problem.family in trained_on["families"] else UNSEEN_FAMILIES)
    if "data" in trained_on and problem.data:
        found.append(SEEN_DATA if problem.data in trained_on["data"] else UNSEEN_DATA)
    if "horizons" in trained_on and problem.horizon > trained_on["horizons"][1]:
        found.append(LONGER)
    if problem.name in trained_on.get("chosen_on", ()):
        found.append(CHOSEN)
    return found


def groups(problems: Sequence[ProblemResult], trained_on: dict[str, Any]) -> dict[str, list[ProblemResult]]:
    """All problems, and those groups that are not empty; a problem may be in several."""
    found = {ALL: list(problems)}
    for group in (SEEN_FAMILIES, UNSEEN_FAMILIES, SEEN_DATA, UNSEEN_DATA, LONGER, CHOSEN):
        members = [problem for problem in problems if group in labels(problem, trained_on)]
        if members:
            found[group] = members
    return found


@dataclass(frozen=True)
class Number:
    """One number with its interval.

    Attributes:
        rule: name of the optimizer.
        against: name of the baseline, or :data:`BEST`.
        group: of problems.
        metric: a key of :data:`~lightning_lopt.evaluation.metrics.reported.REPORTED`.
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
        found = metric.compute()
        value, low, high = (float(found[f"{reported.statistic}{suffix}"]) for suffix in ("", "_low", "_high"))
        yield Number(rule, reference, group, key, len(problems), value, low, high)


@dataclass(frozen=True)
class Defeat:
    """A baseline that ends lower than a rule, on one problem and split.

    Attributes:
        rule: which ends higher.
        against: which ends lower.
        problem: where.
        split: ``"train"`` or ``"valid"``.
        factor: median over seeds of the ratio of the final losses with the floor, above :data:`TIE`.
        ours: median final loss of the rule.
        theirs: median final loss of the baseline.
        seeds: on how many seeds the rule is behind.
        groups: what the problem is to the rule.
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
    """All of them, the largest factor first."""
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
                            tuple(labels(problem, record.trained_on)),
                        )


def untuned_baselines(results: Results) -> list[str]:
    """Names of the baselines for which tuning chose no learning rate on any problem."""
    return [
        name
        for name in results.against
        if all(problem.measurements[name].learning_rate is None for problem in results.problems)
    ]


def problems_lower(results: Results, rule: str, baseline: str, split: str) -> int:
    """On how many problems ``rule`` ends below ``baseline`` on a split, by the log-ratio of the final losses."""
    return sum(problem.log_ratio(rule, baseline, split) < 0 for problem in results.problems)
