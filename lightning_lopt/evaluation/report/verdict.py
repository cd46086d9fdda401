"""Verdicts on rules: their defeats, and the sentences of a report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_lopt.evaluation.metrics import diverged, final_loss, log_ratio, median_loss
from lightning_lopt.evaluation.report.numbers import (
    ALL,
    BEST,
    CHOSEN,
    LONGER,
    REPORTED,
    SEEN_FAMILIES,
    SPLIT_NAMES,
    TIE,
    UNSEEN_DATA,
    UNSEEN_FAMILIES,
    Number,
    groups_of,
)
from lightning_lopt.evaluation.report.tables_and_pictures import baseline_names, label
from lightning_lopt.evaluation.results import Results
from lightning_lopt.wording import TextTable, counted, one_line, short

Comparison = Literal["ahead", "mixed", "behind"]

INTERVALS = (
    "Speed-ups, ratios and normalised losses are interquartile means over all runs. Intervals are 95 % percentile "
    "intervals of a bootstrap that resamples seeds within each problem (arXiv 2108.13264). They show the effect of "
    "other seeds, not of other problems."
)


@dataclass(frozen=True)
class Defeat:
    """A case in which a rule's final loss is higher than a baseline's, on one problem and split.

    Attributes:
        rule: name of the rule.
        against: name of the baseline.
        problem: name of the problem.
        split: ``"train"`` or ``"valid"``.
        factor: median over seeds of the loss ratio rule / baseline, with the floor added; above :data:`TIE`.
        rule_loss: median final loss of the rule.
        baseline_loss: median final loss of the baseline.
        seeds: number of seeds for which the rule's loss is higher.
        groups: groups of the problem, see :func:`groups_of`.
    """

    rule: str
    against: str
    problem: str
    split: str
    factor: float
    rule_loss: float
    baseline_loss: float
    seeds: int
    groups: tuple[str, ...]


def defeats(results: Results) -> list[Defeat]:
    """All defeats of rules by baselines; the largest factor comes first."""
    return sorted(_defeats(results), key=lambda defeat: (-defeat.factor, defeat.problem, defeat.split))


def _defeats(results: Results) -> Iterator[Defeat]:
    for rule, record in results.rules.items():
        for problem in results.problems:
            for against in results.against:
                for split in SPLIT_NAMES:
                    rule_losses, baseline_losses = (
                        final_loss(problem.measurements[name], split) for name in (rule, against)
                    )
                    ratios = log_ratio(rule_losses, baseline_losses, problem.loss_scale)
                    factor = math.exp(float(ratios.quantile(0.5)))
                    if factor > TIE:
                        yield Defeat(
                            rule,
                            against,
                            problem.name,
                            split,
                            factor,
                            median_loss(rule_losses),
                            median_loss(baseline_losses),
                            int((ratios > 0).sum()),
                            tuple(groups_of(problem, record.trained_on)),
                        )


def untuned_baselines(results: Results) -> list[str]:
    """Names of the baselines without tuning on any problem."""
    return [
        name
        for name in results.against
        if all(problem.measurements[name].learning_rate is None for problem in results.problems)
    ]


def problems_lower(results: Results, rule: str, baseline: str, split: str) -> int:
    """Number of problems on which the final loss of ``rule`` is below that of ``baseline``, by their log-ratio."""
    return sum(problem.log_ratio(rule, baseline, split) < 0 for problem in results.problems)


@dataclass(frozen=True)
class Verdict:
    """The verdict on a rule in comparison with a baseline.

    Attributes:
        rule: name of the rule.
        against: name of the baseline.
        standing: ``"ahead"`` if the rule is lower on more than half of the problems, in training and in validation, and
            is not slower in seconds; ``"behind"`` if the rule is lower on fewer than half of the problems in both
            splits; ``"mixed"`` otherwise.
        text: the verdict as a sentence.
    """

    rule: str
    against: str
    standing: Comparison
    text: str


def verdicts(results: Results, report_numbers: Sequence[Number]) -> list[Verdict]:
    """A verdict for each rule against each baseline, in the order of the results.

    Args:
        results: the results.
        report_numbers: the numbers of these results.
    """
    values = _by_key(report_numbers)
    return [_verdict(results, values, rule, against) for rule in results.rules for against in results.against]


_Key = tuple[str, str, str, str]
"""Rule, baseline, group of problems and metric of a number."""


def _by_key(report_numbers: Sequence[Number]) -> dict[_Key, Number]:
    return {(number.rule, number.against, number.group, number.metric): number for number in report_numbers}


def _verdict(results: Results, values: Mapping[_Key, Number], rule: str, against: str) -> Verdict:
    total = len(results.problems)
    lower = [problems_lower(results, rule, against, split) for split in SPLIT_NAMES]
    ahead, behind = ([sign * (2 * count - total) > 0 for count in lower] for sign in (1, -1))
    seconds = values.get((rule, against, ALL, "wall_clock"))
    clock = "" if seconds is None else f", {seconds.value:.2f} in seconds"
    baseline = label(against)
    standing: Comparison = "mixed"
    if all(ahead) and seconds is not None and seconds.value < 1:  # a lead in steps alone is not called a lead
        clause = f"is ahead of {baseline} in as many steps, but behind it in seconds"
    elif all(ahead):
        standing, clause = "ahead", f"is ahead of {baseline}"
    elif all(behind):
        standing, clause = "behind", f"is behind {baseline}"
    else:
        clause = f"is ahead of {baseline} on some problems, and behind it on others"
    speed = values[rule, against, ALL, "speedup"].value
    text = (
        f"{label(rule)} {clause}: it ends lower on {lower[0]} of {counted(total, 'problem')} in training and on "
        f"{lower[1]} of {total} in validation; its speed-up is {speed:.2f} in steps{clock}."
    )
    if runs := _diverged_runs(results, rule):
        text += f" {counted(runs, 'run')} of the rule diverged."
    return Verdict(rule, against, standing, text)


def definitions() -> list[str]:
    """The definitions of the metrics (one text for each kind) and of their intervals."""
    return [*dict.fromkeys(metric.definition for metric in REPORTED.values()), INTERVALS]


def summary(results: Results, report_numbers: Sequence[Number]) -> list[str]:
    """Paragraphs on each rule: its comparison with each baseline, its results by group of problems, its defeats."""
    values = _by_key(report_numbers)
    paragraphs = []
    for rule in results.rules:
        paragraphs += [_comparison(results, values, rule, against) for against in results.against]
        paragraphs += [_by_meta_training(results, values, rule), _defeats_of_rule(results, rule)]
    return paragraphs


def _comparison(results: Results, values: Mapping[_Key, Number], rule: str, against: str) -> str:
    def number(metric: str) -> Number:
        return values[rule, against, ALL, metric]

    speed = number("speedup")
    runs = len(results.problems) * results.seeds
    seconds = values.get((rule, against, ALL, "wall_clock"))
    clock = "" if seconds is None else f", and {seconds.value:.2f} in seconds"
    wins, regrets = ([number(f"{split}_{name}").value for split in SPLIT_NAMES] for name in ("wins", "regret"))
    return (
        f"{label(rule)} against {label(against)}, {counted(len(results.problems), 'problem')} with "
        f"{counted(results.seeds, 'seed')}: a speed-up of {speed.value:.2f} in steps (95 % interval {speed.low:.2f} to "
        f"{speed.high:.2f}){clock}. The rule ends lower in {100 * wins[0]:.0f} % of runs in training and in "
        f"{100 * wins[1]:.0f} % in validation (ties count half); {_worst_problem(*regrets)}. "
        f"{_diverged_runs(results, rule)} of {counted(runs, 'run')} diverged."
    )


def _worst_problem(training: float, validation: float) -> str:
    """A clause on the final loss on the rule's worst problem, from values of :class:`WorstRegret` (at least 1)."""
    if max(training, validation) <= TIE:
        return "it ends higher on no problem"
    if min(training, validation) > TIE:
        factors = f"{_factor(training)} (training) and {_factor(validation)} (validation)"
        return f"on its worst problem it ends {factors} times as high"
    lost_split, won_split = SPLIT_NAMES.values() if training > validation else reversed(SPLIT_NAMES.values())
    factor = _factor(max(training, validation))
    return (
        f"on its worst problem it ends {factor} times as high in {lost_split}; in {won_split} it ends higher on no "
        "problem"
    )


def _factor(value: float) -> str:
    """A factor above :data:`TIE`, with so many decimals that the text is not "1.00"."""
    return f"{value:.2f}" if value >= 1.005 else f"{value:.3f}"


def _diverged_runs(results: Results, rule: str) -> int:
    return sum(int(diverged(problem.measurements[rule], problem.loss_scale).sum()) for problem in results.problems)


def _by_meta_training(results: Results, values: Mapping[_Key, Number], rule: str) -> str:
    """The speed-up and the validation loss ratio on each group of problems."""
    if not results.rules[rule].trained_on:
        return f"{label(rule)} has no record of its meta-training, so all problems are in one group."
    against = BEST if len(results.against) > 1 else results.against[0]
    parts = []
    for group in (SEEN_FAMILIES, UNSEEN_FAMILIES, UNSEEN_DATA, LONGER, CHOSEN):
        if (rule, against, group, "speedup") in values:
            speed, ratio = (values[rule, against, group, metric] for metric in ("speedup", "valid_ratio"))
            parts.append(
                f"{group} ({speed.problems}): speed-up {speed.value:.2f}, validation loss ratio {ratio.value:.2f}"
            )
    text = "; ".join(parts)
    return f"{label(rule)} against {label(against)} by groups of meta-training. {text[:1].upper()}{text[1:]}."


def _defeats_of_rule(results: Results, rule: str) -> str:
    """A sentence on the number of comparisons in which a rule is behind a baseline, and on the largest factor."""
    behind = [defeat for defeat in defeats(results) if defeat.rule == rule]
    comparisons = 2 * len(results.problems) * len(results.against)
    baselines = baseline_names(results)
    if not behind:
        return f"{label(rule)} is behind {baselines} in none of {comparisons} comparisons of final losses."
    worst = behind[0]
    return (
        f"{label(rule)} is behind {baselines} in {len(behind)} of {comparisons} comparisons of final losses. The "
        f"largest factor is {worst.factor:.2f}, against {label(worst.against)} on {one_line(worst.problem)} "
        f"({SPLIT_NAMES[worst.split]})."
    )


def defeats_table(results: Results) -> TextTable:
    """Each problem and split on which a rule's final loss is higher than a baseline's."""
    losses = ["rule's loss", "baseline's loss"]
    heads = ["rule", "problem", "split", "baseline", "factor", *losses, "seeds behind", "groups of the problem"]
    return TextTable(
        heads,
        [
            [
                label(defeat.rule),
                one_line(defeat.problem),
                SPLIT_NAMES[defeat.split],
                label(defeat.against),
                f"{defeat.factor:.3f}",
                short(defeat.rule_loss),
                short(defeat.baseline_loss),
                f"{defeat.seeds} of {results.seeds}",
                ", ".join(defeat.groups),
            ]
            for defeat in defeats(results)
        ],
    )


def untuned_table(results: Results) -> TextTable:
    """Number of problems on which each rule is lower than each untuned baseline; no rows without such baselines."""
    total = len(results.problems)
    return TextTable(
        ["rule", "against", *(f"lower in {split}" for split in SPLIT_NAMES.values())],
        [
            [
                label(rule),
                label(baseline),
                *(f"{problems_lower(results, rule, baseline, split)} of {total}" for split in SPLIT_NAMES),
            ]
            for rule in results.rules
            for baseline in untuned_baselines(results)
        ],
    )
