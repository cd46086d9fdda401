"""Untuned against untuned: rules, which nobody tunes, beside the baselines that nobody tuned either."""

from __future__ import annotations

from lightning_lopt.evaluation.report.losses import SPLITS
from lightning_lopt.evaluation.report.tables import Table, label
from lightning_lopt.evaluation.results import Results


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


def untuned_table(results: Results) -> Table:
    """On how many problems each rule ends lower than each untuned baseline; no rows where there is none."""
    total = len(results.problems)
    return Table(
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
