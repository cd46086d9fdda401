"""The tables of a report as rows of texts, for a page, a shell or a logger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lightning_lopt.evaluation.metrics import final_loss, lowest, median_loss, step_speedup
from lightning_lopt.evaluation.metrics.reported import REPORTED, Section, columns
from lightning_lopt.evaluation.report.numbers import (
    SPLITS,
    Number,
    defeats,
    problems_lower,
    untuned_baselines,
)
from lightning_lopt.evaluation.results import ProblemResult, Results

LABELS = {
    "adamw": "tuned AdamW",
    "sgd": "tuned SGD",
    "muon": "tuned Muon",
    "schedule_free": "tuned schedule-free AdamW",
    "soap": "tuned SOAP",
    "adam_default": "Adam as it comes",
    "adamw_1e-3": "AdamW at 1e-3",
    "soap_3e-3": "SOAP at 3e-3",
    "prodigy": "Prodigy",
    "schedule_free_2.5e-3": "schedule-free AdamW at 2.5e-3",
    "adamw_warmup": "tuned AdamW, warm-up",
    "adamw_head": "tuned AdamW, head alone",
    "adamw_default": "AdamW as it comes",
}


@dataclass(frozen=True)
class TextTable:
    """Rows of texts under headings."""

    heads: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table in markdown."""
        lines = [self.heads, ["---"] * len(self.heads), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def label(name: str) -> str:
    """The name of an optimizer in a report, without characters that cannot be printed."""
    return plain(LABELS.get(name, name))


def plain(text: str) -> str:
    """A text of at most 120 characters on one line; a character that cannot be printed becomes a question mark."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= 120 else line[:117] + "..."


def short(value: float) -> str:
    """A loss with three significant digits and at most five decimals; a loss that is not finite has diverged."""
    if not math.isfinite(value):
        return "diverged"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.5f}"


def overall(report_numbers: Sequence[Number], section: Section, group: str | None = None) -> TextTable:
    """Metrics of each rule against each reference: for one group of problems, or with a row for each group.

    Args:
        report_numbers: the numbers of a report.
        section: the section whose metrics are the columns.
        group: name of the group of problems; ``None`` for a row for each group.
    """
    metrics = columns(section)
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for number in report_numbers:
        if group in (None, number.group):
            key = (label(number.rule), f"{number.group} ({number.problems})", label(number.against))
            rows.setdefault(key, {})[number.metric] = REPORTED[number.metric].text(
                number.value, number.low, number.high
            )
    keys = sorted(rows, key=lambda key: list(rows).index(key))
    heads = ["rule", "problems", "against", *(REPORTED[metric].label for metric in metrics)]
    return TextTable(heads, [[*key, *(rows[key].get(metric, "not measured") for metric in metrics)] for key in keys])


def log_ratios(results: Results) -> TextTable:
    """Each rule against every other optimizer: on how many problems the rule ends lower, and its mean log-ratio.

    :class:`~lightning_lopt.MetaValidation` scores rules with the same log-ratio,
    :meth:`~lightning_lopt.evaluation.results.ProblemResult.log_ratio`.
    """
    rows = []
    for rule, other in _log_ratio_pairs(results):
        cells = []
        for split in ("train", "valid"):
            ratios = [problem.log_ratio(rule, other, split) for problem in results.problems]
            lower = sum(ratio < 0 for ratio in ratios)
            cells.append(f"lower on {lower} of {len(ratios)}, mean log-ratio {fmean(ratios):+.3f}")
        rows.append([label(rule), label(other), *cells])
    return TextTable(["rule", "against", "training", "validation"], rows)


def mean_log_ratios(results: Results) -> list[tuple[float, ...]]:
    """The mean log-ratios of :func:`log_ratios` for training and validation, a tuple for each row."""
    return [
        tuple(
            fmean(problem.log_ratio(rule, other, split) for problem in results.problems) for split in ("train", "valid")
        )
        for rule, other in _log_ratio_pairs(results)
    ]


def _log_ratio_pairs(results: Results) -> list[tuple[str, str]]:
    """Each rule with every other optimizer, a rule or a baseline."""
    names = (*results.rules, *results.against)
    return [(rule, other) for rule in results.rules for other in names if other != rule]


def finals(problems: Sequence[ProblemResult], names: Sequence[str]) -> TextTable:
    """Losses after the last step, training / validation, medians over seeds."""
    return TextTable(
        ["problem", *(label(name) for name in names)],
        [
            [
                plain(problem.name),
                *(" / ".join(short(_median(problem, name, split)) for split in ("train", "valid")) for name in names),
            ]
            for problem in problems
        ],
    )


def bests(results: Results) -> TextTable:
    """The lowest validation loss of a run, and the best value of each further metric, medians over seeds."""
    names = [*results.rules, *results.against]
    rows = []
    for problem in results.problems:
        cells = []
        for name in names:
            run = problem.measurements[name]
            best = {key: -median_loss(lowest(-values)) for key, values in run.metrics.items()}
            metrics = "".join(f"; {plain(key)} {short(value)}" for key, value in best.items())
            cells.append(short(_median(problem, name, "best_valid")) + metrics)
        rows.append([plain(problem.name), *cells])
    return TextTable(["problem", *(label(name) for name in names)], rows)


def median_speedups(results: Results) -> list[list[float]]:
    """The medians of :func:`speedups`, a list for each problem."""
    return [
        [
            float(
                step_speedup(problem.measurements[rule], problem.measurements[other], problem.loss_scale).quantile(0.5)
            )
            for rule in results.rules
            for other in results.against
        ]
        for problem in results.problems
    ]


def speedups(results: Results) -> TextTable:
    """Speed-up in steps on each problem: median over seeds, the smallest and the largest."""
    pairs = [(rule, other) for rule in results.rules for other in results.against]
    rows = []
    for problem in results.problems:
        cells = []
        for rule, other in pairs:
            ours, reference = (problem.measurements[name] for name in (rule, other))
            scores = step_speedup(ours, reference, problem.loss_scale)
            cells.append(f"{scores.quantile(0.5):.2f} [{scores.min():.2f}, {scores.max():.2f}]")
        rows.append([plain(problem.name), *cells])
    return TextTable(["problem", *(f"{label(rule)} over {label(other)}" for rule, other in pairs)], rows)


def defeats_table(results: Results) -> TextTable:
    """Each problem and split on which a rule ends higher than a baseline."""
    losses = ["rule's loss", "baseline's loss"]
    heads = ["rule", "problem", "split", "baseline", "factor", *losses, "seeds behind", "groups of the problem"]
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


def untuned_table(results: Results) -> TextTable:
    """On how many problems each rule ends lower than each untuned baseline; without such baselines, no rows."""
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


def costs(results: Results) -> TextTable | None:
    """Milliseconds of the gradient and of each optimizer's step, by problem; ``None`` if no step was measured."""
    names = [name for name in (*results.rules, *results.against) if name in results.problems[0].step_seconds]
    if not names:
        return None
    rows = [
        [plain(problem.name), f"{problem.parameters:,}", _milliseconds(problem.gradient_seconds)]
        + [_milliseconds(problem.step_seconds.get(name)) for name in names]
        for problem in results.problems
    ]
    return TextTable(["problem", "parameters", "gradient", *(f"step of {label(name)}" for name in names)], rows)


def long_form(report_numbers: Sequence[Number]) -> tuple[list[str], list[list[Any]]]:
    """Headings, and a row of values for each number: for data frames and loggers."""
    heads = list(Number.__dataclass_fields__)
    return heads, [[getattr(number, head) for head in heads] for number in report_numbers]


def baseline_names(results: Results) -> str:
    """The names of all baselines, joined by commas."""
    return ", ".join(map(label, results.against))


def _median(problem: ProblemResult, name: str, split: str) -> float:
    return median_loss(final_loss(problem.measurements[name], split))


def _milliseconds(seconds: float | None) -> str:
    return "not measured" if seconds is None else f"{1e3 * seconds:.3g} ms"
