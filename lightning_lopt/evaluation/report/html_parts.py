"""The HTML of tables, pictures, verdicts and charts; every untrusted text is escaped."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence

from lightning_lopt.evaluation.report.numbers import SPLITS
from lightning_lopt.evaluation.report.tables import TextTable, label, plain
from lightning_lopt.evaluation.report.verdict import ChartRow, Outcome, Standing, Verdict, chart_rows, outcome
from lightning_lopt.evaluation.results import Results

SIGNS: dict[Outcome, tuple[str, str]] = {"win": ("✔", "lower"), "tie": ("=", "equal"), "loss": ("✘", "higher")}
"""Sign and word of an outcome, so that no outcome is shown by colour alone."""
FASTER: dict[Outcome, str] = {"win": "faster", "tie": "equal", "loss": "slower"}
"""Words for outcomes of speed-ups."""
Marks = Mapping[tuple[int, int], list[Outcome]]
"""Outcomes that cells of a table show, by row and column."""

STANDINGS: dict[Standing, str] = {"ahead": "✔", "mixed": "≈", "behind": "✘"}
"""Sign of each standing, which stands before the sentence of a verdict."""
FULL_WIDTH = math.log(4)  # log-ratio of a bar of full width; larger ones are cut

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
p.under { color: #555; margin-top: 0.2rem; } p { max-width: 60rem; overflow-wrap: anywhere; }
p.verdict { border-left: 0.5rem solid #777; padding: 0.2rem 0.8rem; font-size: 1.15rem; margin: 0.6rem 0; }
p.ahead { border-color: #0072b2; } p.behind { border-color: #d55e00; } p.mixed { border-color: #8a6d00; }
nav { background: #f3f3f3; padding: 0.4rem 1rem; margin: 1.2rem 0; } nav ul { columns: 14rem; margin: 0.2rem 0; }
div.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.88rem; margin: 0.8rem 0; }
th, td { padding: 0.25rem 0.7rem; text-align: left; border-bottom: 1px solid #e3e3e3; white-space: nowrap; }
th { border-bottom: 2px solid #999; white-space: normal; vertical-align: bottom; }
tr:nth-child(even) { background: #f7f7f7; }
.win { color: #005b8f; } .loss { color: #a33b00; } .tie { color: #555; }
div.row { display: grid; grid-template-columns: 13rem 1fr; border-top: 1px solid #e3e3e3; padding: 0.2rem 0; }
div.name { overflow-wrap: anywhere; }
div.split { display: grid; grid-template-columns: 5.5rem 1fr 1fr 8.5rem; font-size: 0.85rem; align-items: center; }
div.split > .left { display: flex; justify-content: flex-end; border-right: 1px solid #555; }
div.split > .result { padding-left: 0.6rem; }
i.bar { display: block; height: 0.75rem; background: #0072b2; }
i.bar.loss { background: repeating-linear-gradient(45deg, #d55e00 0 4px, #f2c3a0 4px 7px); }
div.chart { max-width: 52rem; margin: 1rem 0; }
img { max-width: 100%; display: block; margin: 0.6rem 0; } pre { background: #f3f3f3; padding: 0.7rem; overflow-x: auto;
white-space: pre-wrap; overflow-wrap: anywhere; } li { max-width: 60rem; }
@media (max-width: 600px) {
body { margin: 1rem auto; padding: 0 0.6rem; } h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
p.verdict { font-size: 1rem; } div.row { grid-template-columns: 1fr; }
div.split { grid-template-columns: 4.7rem 1fr 1fr 7.2rem; } div.wide img { max-width: none; width: 44rem; }
th, td { padding: 0.25rem 0.4rem; } td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
}
"""


def escaped(text: str) -> str:
    """A text as HTML, for attributes and between tags; a character that cannot be printed becomes a question mark.

    >>> escaped("a < b")
    'a &lt; b'
    """
    printable = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    return html.escape(printable, quote=True)


def table(
    content: TextTable, empty: str = "", marks: Marks | None = None, words: Mapping[Outcome, str] | None = None
) -> str:
    """A table that scrolls separately where the window is narrow.

    Args:
        content: headings and cells.
        empty: text that replaces a table without rows.
        marks: outcomes to show after the texts of cells, each as a coloured sign with a word as its title.
        words: words for outcomes, instead of those of :data:`SIGNS`.
    """
    if not content.rows:
        return f"<p>{escaped(empty)}</p>"
    titles = {outcome: word for outcome, (_, word) in SIGNS.items()} | dict(words or {})
    heads = "".join(f"<th>{escaped(head)}</th>" for head in content.heads)
    rows = []
    for i, row in enumerate(content.rows):
        cells = [_cell(cell, (marks or {}).get((i, j), []), titles) for j, cell in enumerate(row)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(rows)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _cell(text: str, outcomes: list[Outcome], titles: Mapping[Outcome, str]) -> str:
    signs = "".join(f'<span class="{kind}" title="{titles[kind]}"> {SIGNS[kind][0]}</span>' for kind in outcomes)
    return f"<td>{escaped(text)}{signs}</td>"


def picture(pictures: Mapping[str, bytes], name: str, description: str) -> str:
    """A PNG file inside the page, which scrolls separately where the window is narrow."""
    if name not in pictures:
        return "<p>No picture: matplotlib is not installed.</p>"
    data = base64.b64encode(pictures[name]).decode()
    return f'<div class="wide"><img src="data:image/png;base64,{data}" alt="{escaped(description)}"></div>'


def verdicts_html(verdicts: Sequence[Verdict]) -> list[str]:
    """A paragraph for each verdict, with a sign and a coloured edge."""
    return [
        f'<p class="verdict {verdict.standing}">{STANDINGS[verdict.standing]} {escaped(verdict.text)}</p>'
        for verdict in verdicts
    ]


def charts_html(results: Results) -> list[str]:
    """A chart for each rule against each baseline; all but the first are folded."""
    pairs = [(rule, against) for rule in results.rules for against in results.against]
    parts = []
    for number, (rule, against) in enumerate(pairs):
        heading = f"{label(rule)} against {label(against)}, problem by problem"
        chart = _chart(chart_rows(results, rule, against))
        parts.append(
            f"<h3>{escaped(heading)}</h3>\n{_legend(rule, against)}\n{chart}"
            if number == 0
            else f"<details><summary>{escaped(heading)}</summary>{chart}</details>"
        )
    return parts


def _legend(rule: str, against: str) -> str:
    return (
        f"<p>Final loss of {escaped(label(rule))} over that of {escaped(label(against))}, median over seeds, both with "
        '1 % of the uninformed loss added. <span class="win">✔ and a full bar to the left: lower.</span> '
        '<span class="loss">✘ and a hatched bar to the right: higher.</span></p>'
    )


def _chart(rows: Sequence[ChartRow]) -> str:
    """A row for each problem and a bar for each split, to the left where the rule ends lower; it needs no picture."""
    return '<div class="chart">' + "\n".join(_row(row) for row in rows) + "</div>"


def _row(row: ChartRow) -> str:
    bars = "".join(_bar(name, row.log_ratios[split]) for split, name in SPLITS.items())
    return f'<div class="row"><div class="name">{escaped(plain(row.problem))}</div><div>{bars}</div></div>'


def _bar(split: str, log_ratio: float) -> str:
    kind = outcome(log_ratio)
    sign, word = SIGNS[kind]
    width = round(100 * min(abs(log_ratio) / FULL_WIDTH, 1.0))
    bar = f'<i class="bar {kind}" style="width: {width}%"></i>'
    left, right = (bar, "") if log_ratio < 0 else ("", bar)
    return (
        f'<div class="split"><div>{split}</div><div class="left">{left}</div><div>{right}</div>'
        f'<div class="result {kind}">{sign} {math.exp(log_ratio):.2f}, {word}</div></div>'
    )
