"""Where a rule loses: every problem and split on which a baseline is ahead of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lightning_lopt.evaluation.metrics import final_loss, log_ratio, median_loss
from lightning_lopt.evaluation.report.groups import labels
from lightning_lopt.evaluation.report.tables import Table, label, plain, short
from lightning_lopt.evaluation.results import Results

TIE = 1.001  # factors up to here are no loss
SPLITS = {"train": "training", "valid": "validation"}


@dataclass(frozen=True)
class Loss:
    """A baseline ahead of a rule.

    Attributes:
        rule: which loses.
        against: which is ahead.
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


def losses(results: Results) -> list[Loss]:
    """All of them, the largest factor first."""
    return sorted(_losses(results), key=lambda loss: -loss.factor)


def _losses(results: Results) -> Iterator[Loss]:
    for rule, record in results.rules.items():
        for problem in results.problems:
            for against in results.against:
                for split in SPLITS:
                    ours, theirs = (final_loss(problem.measurements[name], split) for name in (rule, against))
                    ratios = log_ratio(ours, theirs, problem.loss_scale)
                    factor = math.exp(float(ratios.quantile(0.5)))
                    if factor > TIE:
                        yield Loss(
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


def losses_table(results: Results) -> Table:
    """The losses as a table."""
    heads = ["rule", "problem", "split", "ahead of it", "factor", "its loss", "the baseline's", "seeds behind", "kind"]
    return Table(
        heads,
        [
            [
                label(loss.rule),
                plain(loss.problem),
                SPLITS[loss.split],
                label(loss.against),
                f"{loss.factor:.3f}",
                short(loss.ours),
                short(loss.theirs),
                f"{loss.seeds} of {results.seeds}",
                ", ".join(loss.groups),
            ]
            for loss in losses(results)
        ],
    )
