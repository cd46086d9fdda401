"""``report.html``, a page that loads no other file, and the pictures and results beside it; all texts are escaped."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from lightning_lopt.evaluation.report.numbers import ALL, SPLIT_NAMES, Number, Section, numbers
from lightning_lopt.evaluation.report.tables_and_pictures import (
    baseline_names,
    bests,
    costs,
    curves,
    environment,
    finals,
    label,
    log_ratios,
    outcome,
    overall,
    profile,
    speedups,
)
from lightning_lopt.evaluation.report.verdict import (
    Comparison,
    defeats_table,
    definitions,
    summary,
    untuned_table,
    verdicts,
)
from lightning_lopt.evaluation.results import ProblemResult, Results
from lightning_lopt.extras import png
from lightning_lopt.io.whole import write_whole
from lightning_lopt.wording import SIGNS, TextTable, counted, escaped, one_line

RESULTS = "results.json"
PAGE = "report.html"
STYLE = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
SUMMARY: tuple[Section, ...] = ("speed and wins", "loss ratios", "worst cases")
# This policy forbids the browser to fetch or run anything, independent of the texts on the page.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SIGNS: dict[Comparison, str] = {"ahead": "✔", "mixed": "≈", "behind": "✘"}
"""Sign before the sentence of a verdict, by its ``standing``."""
_FULL_WIDTH = math.log(4)  # log-ratio of a bar of full width; bars of larger log-ratios are cut


def write_report(results: Results, folder: str | os.PathLike[str]) -> Path:
    """Write ``results.json``, ``report.html`` and its pictures as PNG files; return the path of the page.

    The whole page is computed from ``results.json``, which has six digits of each loss. Without matplotlib the page has
    no pictures. Each file is written atomically; the results are written first.

    Raises:
        OSError: if a file cannot be written.

    Example:
        >>> import tempfile
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.evaluation import Baselines, Problem, evaluate
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), horizon=10)
        >>> baselines = Baselines(seeds=1, shipped=False)
        >>> results = evaluate({"mine": AdamRule(0.1)}, [bowl], ["adam_default"], baselines=baselines)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(results, folder).name
        'report.html'
    """
    target = Path(folder)
    results.save(target / RESULTS)
    results = Results.load(target / RESULTS)
    pictures = _pictures(results)
    path = target / PAGE
    write_whole(path, page(results, numbers(results), pictures))
    for name, data in pictures.items():
        write_whole(target / f"{name}.png", data)
    return path


def _pictures(results: Results) -> dict[str, bytes]:
    """PNG files by name; without matplotlib, the result is empty."""
    rules, against = list(results.rules), list(results.against)
    try:
        figures = {"profile": profile(results)}
        for index, problem in enumerate(results.problems, 1):
            figures[f"curves_{index:02d}"] = curves([problem], rules, against)
    except ImportError:
        return {}
    return {name: png(figure) for name, figure in figures.items()}


def page(results: Results, report_numbers: Sequence[Number], pictures: Mapping[str, bytes]) -> str:
    """The page as HTML.

    Args:
        results: the results.
        report_numbers: the numbers of these results.
        pictures: PNG files by name: ``"profile"``, and ``"curves_01"``, ``"curves_02"``, ... in the problems' order.
    """
    rules = ", ".join(label(name) for name in results.rules)
    title = f"{rules} beside {baseline_names(results)}"
    suite = f"suite {results.suite}, " if results.suite else ""
    sections = _sections(results, report_numbers, pictures)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escaped(title)}</title><style>\n{STYLE}</style></head><body>",
        f"<h1>{escaped(title)}</h1>",
        f'<p class="under">{escaped(suite)}{counted(len(results.problems), "problem")}, '
        f"{counted(results.seeds, 'seed')} each. Rules are used unchanged. Baselines called tuned are tuned for each "
        "problem; other baselines are not tuned.</p>",
        *(
            f'<p class="verdict {verdict.standing}">{_SIGNS[verdict.standing]} {escaped(verdict.text)}</p>'
            for verdict in verdicts(results, report_numbers)
        ),
        *_charts(results),
        _contents(list(sections)),
        *(
            "\n".join([f'<h2 id="section-{number}">{escaped(heading)}</h2>', *section])
            for number, (heading, section) in enumerate(sections.items(), 1)
        ),
        f'<script type="application/json" id="numbers">{_data(report_numbers)}</script>',
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _contents(headings: Sequence[str]) -> str:
    """The table of contents."""
    links = "".join(
        f'<li><a href="#section-{number}">{escaped(heading)}</a></li>' for number, heading in enumerate(headings, 1)
    )
    return f'<nav aria-label="Contents"><b>Contents</b><ul>{links}</ul></nav>'


def _sections(
    results: Results, report_numbers: Sequence[Number], pictures: Mapping[str, bytes]
) -> dict[str, list[str]]:
    """The parts of the page by heading, in the order of the page; headings without parts are left out."""
    sections = {
        "Summary": [
            *(f"<p>{escaped(paragraph)}</p>" for paragraph in summary(results, report_numbers)),
            *(overall(report_numbers, section, ALL).html() for section in SUMMARY),
            "<p>Each rule against every other optimizer, by the logarithm of the ratio of final losses. Below 0 the "
            "rule's loss is lower.</p>",
            log_ratios(results).html(),
        ],
        "Untuned against untuned": _if_it_has_rows(
            untuned_table(results),
            "Rules and baselines without tuning: the number of problems on which a rule's final loss is lower, by the "
            "median over seeds of the loss ratio. 1 % of the uninformed loss is added to both losses.",
        ),
        "Distribution of the results": [
            _picture(pictures, "profile", "share of runs by speed-up, and performance profile")
        ],
        "Seen and unseen": _seen_and_unseen(results, report_numbers),
        "Where rules lose": [
            "<p>Every problem and split on which a baseline's final loss is more than 0.1 % below a rule's. The factor "
            "is the median over seeds of the rule's final loss, divided by the baseline's from the same initial model; "
            "1 % of the uninformed loss is added to both. The losses are medians over seeds; their ratio may differ "
            "from the factor.</p>",
            defeats_table(results).html(empty="No rule loses on any problem."),
        ],
        "Problem by problem": [
            "<p>Loss after the last step, training / validation, medians over seeds. "
            "The first sign is for training, the second for validation, by the median over seeds of the loss ratio: "
            '<span class="win">✔</span> lower than every baseline, <span class="loss">✘</span> higher than at least '
            "one baseline, = within 0.1 % of the best baseline.</p>",
            finals(results.problems, [*results.rules, *results.against], results.against).html(),
            '<p>Speed-up in steps, median over seeds [smallest, largest]. <span class="win">✔</span> faster, '
            '<span class="loss">✘</span> slower.</p>',
            speedups(results).html(),
            "<p>Lowest validation loss of a run, and the best value of each other validation metric, medians over "
            "seeds.</p>",
            bests(results).html(),
            *_if_it_has_rows(
                costs(results),
                "Cost of a training step in one process: forward and backward of one mini-batch (median), and the step "
                "of each optimizer in its deployed form (mean over the steps of the run).",
            ),
        ],
        "Curves": [
            "<p>Lines are medians over seeds; shaded areas are the range over seeds.</p>",
            *(
                _picture(pictures, f"curves_{index:02d}", f"curves of {one_line(problem.name)}")
                for index, problem in enumerate(results.problems, 1)
            ),
        ],
        "Definitions of the metrics": [
            "<ul>",
            *(f"<li>{escaped(sentence)}</li>" for sentence in definitions()),
            "</ul>",
        ],
        "Environment and command": [
            environment(results).html(),
            f"<pre>{escaped(results.command) or 'These results were made in Python, without a command.'}</pre>",
        ],
    }
    return {heading: parts for heading, parts in sections.items() if parts}


def _if_it_has_rows(table: TextTable, introduction: str) -> list[str]:
    """A paragraph and the table after it; an empty list for a table without rows."""
    return [f"<p>{introduction}</p>", table.html()] if table.rows else []


def _seen_and_unseen(results: Results, report_numbers: Sequence[Number]) -> list[str]:
    parts = []
    for rule, record in results.rules.items():
        if not record.trained_on:
            parts.append(f"<p>{escaped(label(rule))} has no record of its meta-training.</p>")
            continue
        entries = []
        for key in ("families", "data"):
            if key in record.trained_on:
                entries.append(f"{key}: {', '.join(one_line(name) for name in record.trained_on[key]) or 'none'}")
        if "horizons" in record.trained_on:
            entries.append("horizons: {} to {} steps".format(*record.trained_on["horizons"]))
        parts.append(
            f"<p>{escaped(label(rule))} was meta-trained on {escaped('; '.join(entries))}.{_chosen(results, rule)}</p>"
        )
        numbers_of_rule = [number for number in report_numbers if number.rule == rule]
        parts.append(overall(numbers_of_rule, "groups").html())
    return parts


def _chosen(results: Results, rule: str) -> str:
    chosen = set(results.rules[rule].trained_on.get("chosen_on", ()))
    names = [one_line(problem.name) for problem in results.problems if problem.name in chosen]
    if not names:
        return ""
    return escaped(f" It was chosen by its results on {', '.join(names)}, so these results flatter the rule.")


def _picture(pictures: Mapping[str, bytes], name: str, description: str) -> str:
    """A PNG file inside the page; the picture scrolls separately in a narrow window."""
    if name not in pictures:
        return "<p>No picture: matplotlib is not installed.</p>"
    data = base64.b64encode(pictures[name]).decode()
    return f'<div class="wide"><img src="data:image/png;base64,{data}" alt="{escaped(description)}"></div>'


def _charts(results: Results) -> list[str]:
    """A chart for each rule against each baseline; all charts except the first are in folded elements."""
    pairs = [(rule, against) for rule in results.rules for against in results.against]
    parts = []
    for number, (rule, against) in enumerate(pairs):
        rule_label, baseline_label = escaped(label(rule)), escaped(label(against))
        heading = f"{rule_label} against {baseline_label}, problem by problem"
        chart = _chart(results.problems, rule, against)
        legend = (
            f"<p>Final loss of {rule_label}, divided by that of {baseline_label}, median over seeds; 1 % of the "
            'uninformed loss is added to both. <span class="win">✔ and a full bar to the left: lower.</span> '
            '<span class="loss">✘ and a hatched bar to the right: higher.</span></p>'
        )
        is_first = number == 0
        folded = f"<details><summary>{heading}</summary>{chart}</details>"
        parts.append(f"<h3>{heading}</h3>\n{legend}\n{chart}" if is_first else folded)
    return parts


def _chart(problems: Sequence[ProblemResult], rule: str, against: str) -> str:
    """A chart with a row for each problem and a bar for each split; the largest win in validation comes first."""
    rows = []
    for problem in sorted(problems, key=lambda problem: problem.log_ratio(rule, against, "valid")):
        bars = "".join(_bar(word, problem.log_ratio(rule, against, split)) for split, word in SPLIT_NAMES.items())
        rows.append(
            f'<div class="row"><div class="name">{escaped(one_line(problem.name))}</div><div>{bars}</div></div>'
        )
    return '<div class="chart">' + "\n".join(rows) + "</div>"


def _bar(split: str, log_ratio: float) -> str:
    """A bar with the ratio of losses: to the left if the rule's loss is lower, to the right if it is higher."""
    kind = outcome(log_ratio)
    sign, word = SIGNS[kind]
    width = round(100 * min(abs(log_ratio) / _FULL_WIDTH, 1.0))
    bar = f'<i class="bar {kind}" style="width: {width}%"></i>'
    left_bar, right_bar = (bar, "") if log_ratio < 0 else ("", bar)
    return (
        f'<div class="split"><div>{split}</div><div class="left">{left_bar}</div><div>{right_bar}</div>'
        f'<div class="result {kind}">{sign} {math.exp(log_ratio):.2f}, {word}</div></div>'
    )


def _data(report_numbers: Sequence[Number]) -> str:
    """The numbers as JSON, without characters that could end the HTML element around the JSON."""
    text = json.dumps([vars(number) for number in report_numbers], allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
