"""The top of a report as HTML: the verdicts, and a chart that needs no picture and fits any width."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_lopt.evaluation.report.defeats import SPLITS
from lightning_lopt.evaluation.report.html_parts import SIGNS, escaped
from lightning_lopt.evaluation.report.tables import label, plain
from lightning_lopt.evaluation.report.verdict import ChartRow, Standing, Verdict, chart_rows, outcome
from lightning_lopt.evaluation.results import Results

STANDINGS: dict[Standing, str] = {"ahead": "✔", "mixed": "≈", "behind": "✘"}
"""Sign of each standing; the word is in the sentence."""
WIDEST = math.log(4)  # log-ratios from here on have a bar of full width


def verdicts_html(made: Sequence[Verdict]) -> list[str]:
    """A paragraph for each verdict, with a sign and a coloured edge."""
    return [
        f'<p class="verdict {verdict.standing}">{STANDINGS[verdict.standing]} {escaped(verdict.text)}</p>'
        for verdict in made
    ]


def charts_html(results: Results) -> list[str]:
    """A chart for each rule against each baseline; all but the first are folded."""
    pairs = [(rule, against) for rule in results.rules for against in results.against]
    parts = []
    for number, (rule, against) in enumerate(pairs):
        head = f"{label(rule)} against {label(against)}, problem by problem"
        chart = _chart(chart_rows(results, rule, against))
        parts.append(
            f"<h3>{escaped(head)}</h3>\n{_legend(rule, against)}\n{chart}"
            if number == 0
            else f"<details><summary>{escaped(head)}</summary>{chart}</details>"
        )
    return parts


def _legend(rule: str, against: str) -> str:
    return (
        f"<p>Final loss of {escaped(label(rule))} over that of {escaped(label(against))}, median over seeds, both with "
        '1 % of the uninformed loss added. <span class="win">✔ and a full bar to the left: lower.</span> '
        '<span class="loss">✘ and a hatched bar to the right: higher.</span></p>'
    )


def _chart(rows: Sequence[ChartRow]) -> str:
    """A row for each problem, a bar for each split: to the left where the rule ends lower."""
    return '<div class="chart">' + "\n".join(_row(row) for row in rows) + "</div>"


def _row(row: ChartRow) -> str:
    bars = "".join(_bar(name, row.log_ratios[split]) for split, name in SPLITS.items())
    return f'<div class="row"><div class="name">{escaped(plain(row.problem))}</div><div>{bars}</div></div>'


def _bar(split: str, log_ratio: float) -> str:
    found = outcome(log_ratio)
    sign, word = SIGNS[found]
    width = round(100 * min(abs(log_ratio) / WIDEST, 1.0))
    bar = f'<i class="bar {found}" style="width: {width}%"></i>'
    left, right = (bar, "") if log_ratio < 0 else ("", bar)
    return (
        f'<div class="split"><div>{split}</div><div class="left">{left}</div><div>{right}</div>'
        f'<div class="result {found}">{sign} {math.exp(log_ratio):.2f}, {word}</div></div>'
    )
