"""The tables of a report, for a page, a shell or a logger: texts, and outcomes that the page shows as signs."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from lightning_lopt.evaluation.metrics import final_loss, lowest, median_loss, step_speedup
from lightning_lopt.evaluation.report.numbers import REPORTED, SPLIT_NAMES, TIE, Number, Section, columns
from lightning_lopt.evaluation.results import ProblemResult, Results
from lightning_lopt.evaluation.sweeps import BASELINES, FINE_TUNING_BASELINES

Outcome = Literal["win", "tie", "loss"]
SIGNS: dict[Outcome, tuple[str, str]] = {"win": ("✔", "lower"), "tie": ("=", "equal"), "loss": ("✘", "higher")}
"""Sign and word of each outcome; colour alone does not show an outcome."""
FASTER: dict[Outcome, str] = {"win": "faster", "tie": "equal", "loss": "slower"}
"""Word of each outcome of a speed-up."""


@dataclass(frozen=True)
class TextTable:
    """Rows of texts under headings.

    Attributes:
        heads: headings of the columns.
        rows: cells of each row.
        marks: outcomes of a rule, by row and column; a page shows them after the text of the cell.
        words: word of each outcome.
    """

    heads: list[str]
    rows: list[list[str]]
    marks: Mapping[tuple[int, int], Sequence[Outcome]] = field(default_factory=dict)
    words: Mapping[Outcome, str] = field(default_factory=lambda: {mark: word for mark, (_, word) in SIGNS.items()})

    def markdown(self) -> str:
        """The table in markdown, without outcomes."""
        lines = [self.heads, ["---"] * len(self.heads), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)

    def html(self, empty: str = "") -> str:
        """The table in HTML, which scrolls separately in a narrow window; without rows, the text ``empty``."""
        if not self.rows:
            return f"<p>{escaped(empty)}</p>"
        heads = "".join(f"<th>{escaped(head)}</th>" for head in self.heads)
        rows = []
        for i, row in enumerate(self.rows):
            cells = [f"<td>{escaped(cell)}{self._signs(i, j)}</td>" for j, cell in enumerate(row)]
            rows.append(f"<tr>{''.join(cells)}</tr>")
        body = "\n".join(rows)
        return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>'

    def _signs(self, row: int, column: int) -> str:
        """Each outcome of a cell as a coloured sign with a word as its title."""
        marks = self.marks.get((row, column), ())
        return "".join(f'<span class="{mark}" title="{self.words[mark]}"> {SIGNS[mark][0]}</span>' for mark in marks)


def outcome(log_ratio: float) -> Outcome:
    """The outcome for a rule, from the log-ratio of its loss to another loss; a difference up to 0.1 % is a tie.

    >>> outcome(-0.5), outcome(0.0005), outcome(math.inf)
    ('win', 'tie', 'loss')
    """
    if abs(log_ratio) <= math.log(TIE):
        return "tie"
    return "win" if log_ratio < 0 else "loss"


def label(name: str) -> str:
    """The name of an optimizer in a report; characters that cannot be printed become question marks."""
    sweep = (BASELINES | FINE_TUNING_BASELINES).get(name)
    return one_line(sweep.label if sweep is not None and sweep.label else name)


def one_line(text: str) -> str:
    """A text of at most 120 characters on one line; a character that cannot be printed becomes a question mark."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= 120 else line[:117] + "..."


def escaped(text: str) -> str:
    """A text as HTML, for attributes and for the space between tags; unprintable characters become question marks.

    >>> escaped("a < b")
    'a &lt; b'
    """
    printable = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    return html.escape(printable, quote=True)


def short(value: float) -> str:
    """A loss with three significant digits and at most five decimals; a loss that is not finite is "diverged"."""
    if not math.isfinite(value):
        return "diverged"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.5f}"


def overall(report_numbers: Sequence[Number], section: Section, group: str | None = None) -> TextTable:
    """Metrics of each rule against each reference, for one group of problems or for each group.

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
    """For each rule and every other optimizer: number of problems on which the rule is lower, and mean log-ratio.

    :class:`~lightning_lopt.MetaValidation` scores rules with the same log-ratio,
    :meth:`~lightning_lopt.evaluation.results.ProblemResult.log_ratio`.
    """
    rows: list[list[str]] = []
    marks: dict[tuple[int, int], list[Outcome]] = {}
    names = (*results.rules, *results.against)
    for rule, reference in [(rule, reference) for rule in results.rules for reference in names if reference != rule]:
        row = [label(rule), label(reference)]
        for split in SPLIT_NAMES:
            ratios = [problem.log_ratio(rule, reference, split) for problem in results.problems]
            lower = sum(ratio < 0 for ratio in ratios)
            marks[len(rows), len(row)] = [outcome(fmean(ratios))]
            row.append(f"lower on {lower} of {len(ratios)}, mean log-ratio {fmean(ratios):+.3f}")
        rows.append(row)
    return TextTable(["rule", "against", *SPLIT_NAMES.values()], rows, marks)


def finals(problems: Sequence[ProblemResult], names: Sequence[str], against: Sequence[str] = ()) -> TextTable:
    """Losses after the last step, training / validation, medians over seeds.

    Args:
        problems: problems; each has a row.
        names: names of optimizers; each has a column.
        against: names of baselines; the marks of the other optimizers are their outcomes against the best baseline.
    """
    rows = [
        [
            one_line(problem.name),
            *(" / ".join(short(_median(problem, name, split)) for split in SPLIT_NAMES) for name in names),
        ]
        for problem in problems
    ]
    marks = {
        (row, column): [
            outcome(max(problem.log_ratio(name, baseline, split) for baseline in against)) for split in SPLIT_NAMES
        ]
        for row, problem in enumerate(problems)
        for column, name in enumerate(names, 1)
        if against and name not in against
    }
    return TextTable(["problem", *map(label, names)], rows, marks)


def bests(results: Results) -> TextTable:
    """The lowest validation loss of a run, and the best value of each further metric, medians over seeds."""
    names = [*results.rules, *results.against]
    rows = []
    for problem in results.problems:
        cells = []
        for name in names:
            run = problem.measurements[name]
            best = {key: -median_loss(lowest(-values)) for key, values in run.metrics.items()}
            metrics = "".join(f"; {one_line(key)} {short(value)}" for key, value in best.items())
            cells.append(short(_median(problem, name, "best_valid")) + metrics)
        rows.append([one_line(problem.name), *cells])
    return TextTable(["problem", *(label(name) for name in names)], rows)


def speedups(results: Results) -> TextTable:
    """Speed-up in steps on each problem: median over seeds, the smallest and the largest."""
    pairs = [(rule, baseline) for rule in results.rules for baseline in results.against]
    rows: list[list[str]] = []
    marks: dict[tuple[int, int], list[Outcome]] = {}
    for problem in results.problems:
        row = [one_line(problem.name)]
        for rule, baseline in pairs:
            scores = step_speedup(problem.measurements[rule], problem.measurements[baseline], problem.loss_scale)
            median = scores.quantile(0.5)
            marks[len(rows), len(row)] = [outcome(-math.log(float(median)))]
            row.append(f"{median:.2f} [{scores.min():.2f}, {scores.max():.2f}]")
        rows.append(row)
    heads = ["problem", *(f"{label(rule)} over {label(baseline)}" for rule, baseline in pairs)]
    return TextTable(heads, rows, marks, FASTER)


def costs(results: Results) -> TextTable:
    """Milliseconds of the gradient and of each optimizer's step, by problem; no rows if no step was measured."""
    names = [name for name in (*results.rules, *results.against) if name in results.problems[0].step_seconds]
    rows = [
        [one_line(problem.name), f"{problem.parameters:,}", _milliseconds(problem.gradient_seconds)]
        + [_milliseconds(problem.step_seconds.get(name)) for name in names]
        for problem in results.problems
        if names
    ]
    return TextTable(["problem", "parameters", "gradient", *(f"step of {label(name)}" for name in names)], rows)


def environment(results: Results) -> TextTable:
    """The machine, the versions, and the settings and weights of each rule."""
    rows = [[one_line(key), one_line(str(value))] for key, value in results.environment.items()]
    for name, record in results.rules.items():
        arguments = ", ".join(f"{key}={value!r}" for key, value in record.config.items())
        rows.append([f"rule {one_line(name)}", f"{record.rule}({arguments}), {record.meta_parameters} meta-parameters"])
        rows.append([f"weights of {one_line(name)}", f"SHA-256 {record.weights_sha256}"])
    return TextTable(["entry", "value"], rows)


def baseline_names(results: Results) -> str:
    """The names of all baselines, joined by commas."""
    return ", ".join(map(label, results.against))


def _median(problem: ProblemResult, name: str, split: str) -> float:
    return median_loss(final_loss(problem.measurements[name], split))


def _milliseconds(seconds: float | None) -> str:
    return "not measured" if seconds is None else f"{1e3 * seconds:.3g} ms"
