"""``report.html``, one file that loads nothing from elsewhere, and the files beside it; untrusted texts are escaped."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_lopt.evaluation.metrics.reported import Section
from lightning_lopt.evaluation.report.figures import curves, png, profile
from lightning_lopt.evaluation.report.html_parts import (
    FASTER,
    STYLE,
    Marks,
    charts_html,
    escaped,
    picture,
    table,
    verdicts_html,
)
from lightning_lopt.evaluation.report.numbers import ALL, Number, numbers
from lightning_lopt.evaluation.report.tables import (
    TextTable,
    baseline_names,
    bests,
    costs,
    defeats_table,
    finals,
    label,
    log_ratios,
    mean_log_ratios,
    median_speedups,
    overall,
    plain,
    speedups,
    untuned_table,
)
from lightning_lopt.evaluation.report.verdict import (
    definitions,
    outcome,
    outcomes_beside_best,
    summary,
    verdicts,
)
from lightning_lopt.evaluation.results import Results
from lightning_lopt.io.whole import write_whole

RESULTS = "results.json"
PAGE = "report.html"
SUMMARY: tuple[Section, ...] = ("speed and wins", "loss ratios", "worst cases")
# The browser fetches and runs nothing, whatever a text on the page contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(results: Results, folder: str | os.PathLike[str]) -> Path:
    """Write ``results.json``, ``report.html`` and its pictures as PNG files; returns the path of the page.

    Everything on the page is computed from ``results.json``, which has six digits of each loss. Without matplotlib the
    page has no pictures. Each file is written atomically, the results first.

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
    """PNG files by name; none without matplotlib."""
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
        pictures: PNG files by name: ``"profile"``, and ``"curves_01"``, ``"curves_02"``, ... in the order of problems.
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
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escaped(title)}</h1>",
        f'<p class="under">{escaped(suite)}{len(results.problems)} problems, {results.seeds} seeds each. '
        "Rules are used unchanged; baselines called tuned are tuned for each problem, other baselines are not.</p>",
        *verdicts_html(verdicts(results, report_numbers)),
        *charts_html(results),
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
    """The parts of the page by heading, in the order of the page; a heading without parts is left out."""
    sections = {
        "Summary": [
            *(f"<p>{escaped(paragraph)}</p>" for paragraph in summary(results, report_numbers)),
            *(table(overall(report_numbers, section, ALL)) for section in SUMMARY),
            "<p>Each rule against every other optimizer, by the logarithm of the ratio of final losses: below 0 the "
            "rule ends lower.</p>",
            table(log_ratios(results), marks=_log_ratio_marks(results)),
        ],
        "Untuned against untuned": _untuned(results),
        "How the results are spread": [
            picture(pictures, "profile", "share of runs by speed-up, and performance profile")
        ],
        "Seen and unseen": _seen(results, report_numbers),
        "Where rules lose": [
            "<p>Every problem and split on which a baseline ends lower than a rule by more than 0.1 %. The factor is "
            "the median over seeds of the rule's final loss over the baseline's from the same initial model, both with "
            "1 % of the uninformed loss added. The losses are medians over seeds; their ratio may differ from the "
            "factor.</p>",
            table(defeats_table(results), empty="No rule loses on any problem."),
        ],
        "Problem by problem": [
            "<p>Loss after the last step, training / validation, medians over seeds. "
            "The first sign is for training, the second for validation, by the median over seeds of the loss ratio: "
            '<span class="win">✔</span> lower than every baseline, <span class="loss">✘</span> higher than one, '
            "= within 0.1 % of the best baseline.</p>",
            table(finals(results.problems, [*results.rules, *results.against]), marks=_final_marks(results)),
            '<p>Speed-up in steps, median over seeds [smallest, largest]. <span class="win">✔</span> faster, '
            '<span class="loss">✘</span> slower.</p>',
            table(speedups(results), marks=_speedup_marks(results), words=FASTER),
            "<p>Lowest validation loss of a run, and the best value of each other validation metric, medians over "
            "seeds.</p>",
            table(bests(results)),
            *_costs(results),
        ],
        "Curves": [
            "<p>Lines are medians over seeds; shaded areas are the range over seeds.</p>",
            *(
                picture(pictures, f"curves_{index:02d}", f"curves of {plain(problem.name)}")
                for index, problem in enumerate(results.problems, 1)
            ),
        ],
        "What the numbers mean": [
            "<ul>",
            *(f"<li>{escaped(sentence)}</li>" for sentence in definitions()),
            "</ul>",
        ],
        "Environment and command": _environment(results),
    }
    return {heading: parts for heading, parts in sections.items() if parts}


def _log_ratio_marks(results: Results) -> Marks:
    """Outcomes in the table of log-ratios, by the mean over problems."""
    return {
        (row, column): [outcome(ratio)]
        for row, ratios in enumerate(mean_log_ratios(results))
        for column, ratio in enumerate(ratios, 2)
    }


def _final_marks(results: Results) -> Marks:
    """Outcomes of the rules in the table of final losses, for training and for validation."""
    return {
        (row, column): list(outcomes_beside_best(problem, rule, results.against).values())
        for row, problem in enumerate(results.problems)
        for column, rule in enumerate(results.rules, 1)
    }


def _speedup_marks(results: Results) -> Marks:
    """Outcomes in the table of speed-ups: a speed-up above 1 is a win."""
    return {
        (row, column): [outcome(-math.log(value))]
        for row, values in enumerate(median_speedups(results))
        for column, value in enumerate(values, 1)
    }


def _untuned(results: Results) -> list[str]:
    untuned = untuned_table(results)
    if not untuned.rows:
        return []
    return [
        "<p>Rules beside the baselines without tuning: on how many problems a rule ends lower, by the median over "
        "seeds of the ratio of final losses, both with 1 % of the uninformed loss added.</p>",
        table(untuned),
    ]


def _seen(results: Results, report_numbers: Sequence[Number]) -> list[str]:
    parts = []
    for rule, record in results.rules.items():
        if not record.trained_on:
            parts.append(f"<p>{escaped(label(rule))} does not say what it was meta-trained on.</p>")
            continue
        entries = []
        for key in ("families", "data"):
            if key in record.trained_on:
                entries.append(f"{key}: {', '.join(plain(name) for name in record.trained_on[key]) or 'none'}")
        if "horizons" in record.trained_on:
            entries.append("horizons: {} to {} steps".format(*record.trained_on["horizons"]))
        parts.append(
            f"<p>{escaped(label(rule))} was meta-trained on {escaped('; '.join(entries))}.{_chosen(results, rule)}</p>"
        )
        numbers_of_rule = [number for number in report_numbers if number.rule == rule]
        parts.append(table(overall(numbers_of_rule, "groups")))
    return parts


def _chosen(results: Results, rule: str) -> str:
    chosen = set(results.rules[rule].trained_on.get("chosen_on", ()))
    names = [plain(problem.name) for problem in results.problems if problem.name in chosen]
    if not names:
        return ""
    return escaped(f" It was chosen among others by its results on {', '.join(names)}: these results flatter the rule.")


def _costs(results: Results) -> list[str]:
    measured = costs(results)
    if measured is None:
        return []
    return [
        "<p>Cost of a training step in one process: forward and backward of one mini-batch (median), and the step of "
        "each optimizer in its deployed form (mean over the steps of the run).</p>",
        table(measured),
    ]


def _environment(results: Results) -> list[str]:
    rows = [[plain(key), plain(str(value))] for key, value in results.environment.items()]
    for name, record in results.rules.items():
        arguments = ", ".join(f"{key}={value!r}" for key, value in record.config.items())
        rows.append([f"rule {plain(name)}", f"{record.rule}({arguments}), {record.meta_parameters} meta-parameters"])
        rows.append([f"weights of {plain(name)}", f"SHA-256 {record.weights_sha256}"])
    return [
        table(TextTable(["entry", "value"], rows)),
        f"<pre>{escaped(results.command) or 'These results were made in Python, without a command.'}</pre>",
    ]


def _data(report_numbers: Sequence[Number]) -> str:
    """The numbers as JSON without the characters that could end the HTML element around them."""
    text = json.dumps([vars(number) for number in report_numbers], allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
