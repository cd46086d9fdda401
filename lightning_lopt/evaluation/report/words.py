"""What a report says in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_lopt.evaluation.metrics import diverged
from lightning_lopt.evaluation.metrics.reported import REPORTED
from lightning_lopt.evaluation.report.defeats import SPLITS, defeats
from lightning_lopt.evaluation.report.numbers import (
    ALL,
    BEST,
    CHOSEN,
    LONGER,
    SEEN_FAMILIES,
    UNSEEN_DATA,
    UNSEEN_FAMILIES,
    Number,
)
from lightning_lopt.evaluation.report.tables import label, plain, shown_references
from lightning_lopt.evaluation.results import Results

INTERVALS = (
    "Speed-ups, ratios and normalised losses are interquartile means over all runs. Intervals are 95 % percentile "
    "intervals of a bootstrap that resamples seeds within each problem (arXiv 2108.13264): they say what other seeds "
    "would change, not what other problems would."
)


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
