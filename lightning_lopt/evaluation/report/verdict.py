"""What a report says in sentences: who ends lower, on which problems, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_lopt.evaluation.metrics import diverged
from lightning_lopt.evaluation.metrics.reported import REPORTED
from lightning_lopt.evaluation.report.numbers import (
    ALL,
    BEST,
    CHOSEN,
    LONGER,
    SEEN_FAMILIES,
    SPLITS,
    TIE,
    UNSEEN_DATA,
    UNSEEN_FAMILIES,
    Number,
    defeats,
    problems_lower,
)
from lightning_lopt.evaluation.report.tables import label, plain, shown_references
from lightning_lopt.evaluation.results import ProblemResult, Results

Outcome = Literal["win", "tie", "loss"]
Standing = Literal["ahead", "mixed", "behind"]

INTERVALS = (
    "Speed-ups, ratios and normalised losses are interquartile means over all runs. Intervals are 95 % percentile "
    "intervals of a bootstrap that resamples seeds within each problem (arXiv 2108.13264): they say what other seeds "
    "would change, not what other problems would."
)


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


def definitions() -> list[str]:
    """What the metrics mean, a text for each kind, and what their intervals mean."""
    return [*dict.fromkeys(metric.definition for metric in REPORTED.values()), INTERVALS]


def summary(results: Results, found: Sequence[Number]) -> list[str]:
    """A paragraph for each rule against each baseline, and one on where it was not trained."""
    at = {(number.rule, number.against, number.group, number.metric): number for number in found}
    paragraphs = []
    for rule in results.rules:
        for against in results.against:
            paragraphs.append(_beside(results, at, rule, against))
        paragraphs.append(_elsewhere(results, at, rule))
        paragraphs.append(_loses(results, rule))
    return paragraphs


_At = dict[tuple[str, str, str, str], Number]


def _beside(results: Results, at: _At, rule: str, against: str) -> str:
    def number(metric: str) -> Number:
        return at[rule, against, ALL, metric]

    speed = number("speedup")
    runs = len(results.problems) * results.seeds
    broken = sum(int(diverged(problem.measurements[rule], problem.loss_scale).sum()) for problem in results.problems)
    seconds = at.get((rule, against, ALL, "wall_clock"))
    clock = "" if seconds is None else f", and {seconds.value:.2f} in seconds"
    wins, lost = ([number(f"{split}_{metric}").value for split in ("train", "valid")] for metric in ("wins", "regret"))
    return (
        f"{label(rule)} against {label(against)}, {len(results.problems)} problems with {results.seeds} seeds: a "
        f"speed-up of {speed.value:.2f} in steps (95 % interval {speed.low:.2f} to {speed.high:.2f}){clock}. It ends "
        f"lower in {100 * wins[0]:.0f} % of runs in training and {100 * wins[1]:.0f} % in validation (ties half); on "
        f"its worst problem it ends {lost[0]:.2f} (training) and {lost[1]:.2f} (validation) times as high. {broken} of "
        f"{runs} runs diverged."
    )


def _elsewhere(results: Results, at: _At, rule: str) -> str:
    if not results.rules[rule].trained_on:
        return (
            f"{label(rule)} does not say what it was meta-trained on, so seen and unseen problems are not told apart."
        )
    against = BEST if len(results.against) > 1 else results.against[0]
    parts = []
    for group in (SEEN_FAMILIES, UNSEEN_FAMILIES, UNSEEN_DATA, LONGER, CHOSEN):
        if (rule, against, group, "speedup") in at:
            speed, ratio = at[rule, against, group, "speedup"], at[rule, against, group, "valid_ratio"]
            parts.append(
                f"{group} ({speed.problems}): speed-up {speed.value:.2f}, validation loss ratio {ratio.value:.2f}"
            )
    return f"{label(rule)} against {label(against)} by what it was meta-trained on. {_sentence(parts)}"


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _loses(results: Results, rule: str) -> str:
    behind = [defeat for defeat in defeats(results) if defeat.rule == rule]
    comparisons = 2 * len(results.problems) * len(results.against)
    if not behind:
        return (
            f"{label(rule)} is behind {shown_references(results)} in none of {comparisons} comparisons of final losses."
        )
    worst = behind[0]
    return (
        f"{label(rule)} is behind in {len(behind)} of {comparisons} comparisons of final losses with "
        f"{shown_references(results)}; most on {plain(worst.problem)} ({SPLITS[worst.split]}), where "
        f"{label(worst.against)} ends {worst.factor:.2f} times lower."
    )
