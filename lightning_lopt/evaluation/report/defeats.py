"""Which of two optimizers ends lower: defeats of rules by baselines, and wins over baselines that nobody tuned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lightning_lopt.evaluation.metrics import final_loss, log_ratio, median_loss
from lightning_lopt.evaluation.report.numbers import labels
from lightning_lopt.evaluation.report.tables import TextTable, label, plain, short
from lightning_lopt.evaluation.results import Results

TIE = 1.001  # factors up to here are no defeat
SPLITS = {"train": "training", "valid": "validation"}


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


def defeats_table(results: Results) -> TextTable:
    """The defeats as a table."""
    heads = ["rule", "problem", "split", "ahead of it", "factor", "its loss", "the baseline's", "seeds behind", "kind"]
    return TextTable(
        heads,
        [
            [
                label(defeat.rule),
                plain(defeat.problem),
                SPLITS[defeat.split],
                label(defeat.against),
                f"{defeat.factor:.3f}",
                short(defeat.ours),
                short(defeat.theirs),
                f"{defeat.seeds} of {results.seeds}",
                ", ".join(defeat.groups),
            ]
            for defeat in defeats(results)
        ],
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


def untuned_table(results: Results) -> TextTable:
    """On how many problems each rule ends lower than each untuned baseline; no rows where there is none."""
    total = len(results.problems)
    return TextTable(
        ["rule", "against", *(f"lower in {split}" for split in SPLITS.values())],
        [
            [
                label(rule),
                label(baseline),
                *(f"{problems_lower(results, rule, baseline, split)} of {total}" for split in SPLITS),
            ]
            for rule in results.rules
            for baseline in untuned_baselines(results)
        ],
    )
