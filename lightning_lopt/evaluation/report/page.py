"""``report.html``: one file without anything from elsewhere. Every text that comes from outside is escaped."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence

from lightning_lopt.evaluation.metrics.reported import Section
from lightning_lopt.evaluation.report.defeats import defeats_table, untuned_table
from lightning_lopt.evaluation.report.numbers import ALL, Number
from lightning_lopt.evaluation.report.tables import (
    TextTable,
    bests,
    costs,
    finals,
    label,
    log_ratios,
    overall,
    plain,
    speedups,
)
from lightning_lopt.evaluation.report.words import definitions, summary
from lightning_lopt.evaluation.results import Results

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
p.under { color: #555; margin-top: 0.2rem; } p { max-width: 60rem; }
div.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.88rem; margin: 0.8rem 0; }
th, td { padding: 0.25rem 0.7rem; text-align: left; border-bottom: 1px solid #e3e3e3; white-space: nowrap; }
th { border-bottom: 2px solid #999; white-space: normal; vertical-align: bottom; }
tr:nth-child(even) { background: #f7f7f7; }
img { max-width: 100%; display: block; margin: 0.6rem 0; } pre { background: #f3f3f3; padding: 0.7rem; overflow-x: auto;
white-space: pre-wrap; } li { max-width: 60rem; }
"""
SUMMARY: tuple[Section, ...] = ("speed and wins", "loss ratios", "worst cases")
# Nothing is fetched and nothing runs, whatever a text on the page may hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(results: Results, found: Sequence[Number], pictures: Mapping[str, bytes]) -> str:
    """The report.

    Args:
        results: what to show.
        found: the numbers of these results.
        pictures: PNG files by name: ``"profile"``, and ``"curves_01"`` and on in the order of problems.
    """
    rules = ", ".join(label(name) for name in results.rules)
    baselines = ", ".join(label(name) for name in results.against)
    title = f"{rules} beside {baselines}"
    suite = f"suite {results.suite}, " if results.suite else ""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_e(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_e(title)}</h1>",
        f'<p class="under">{_e(suite)}{len(results.problems)} problems, {results.seeds} seeds each. '
        "Rules are used as they are; baselines called tuned are tuned for each problem, others are not.</p>",
        "<h2>Summary</h2>",
        *(f"<p>{_e(paragraph)}</p>" for paragraph in summary(results, found)),
        *(_table(overall(found, section, ALL)) for section in SUMMARY),
        "<p>Every rule against every other optimizer, by the logarithm of the ratio of final losses: below 0 it ends "
        "lower.</p>",
        _table(log_ratios(results)),
        *_untuned(results),
        "<h2>How the results are spread</h2>",
        _picture(pictures, "profile", "share of runs by speed-up, and performance profile"),
        "<h2>Seen and unseen</h2>",
        *_seen(results, found),
        "<h2>Where it loses</h2>",
        "<p>Every problem and split on which a baseline ends lower, by more than a thousandth. Factor: the median over "
        "seeds of the rule's final loss over the baseline's from the same initial model, both with 1 % of the "
        "know-nothing loss added. Losses: medians over seeds of each, which need not have that ratio.</p>",
        _table(defeats_table(results), empty="Nowhere."),
        "<h2>Problem by problem</h2>",
        "<p>Loss after the last step, training / validation, medians over seeds.</p>",
        _table(finals(results.problems, [*results.rules, *results.against])),
        "<p>Speed-up in steps, median over seeds [smallest, largest].</p>",
        _table(speedups(results)),
        "<p>Lowest validation loss of a run, and the best of its other validation numbers.</p>",
        _table(bests(results)),
        *_costs(results),
        "<h2>Curves</h2>",
        "<p>Medians over seeds and their range.</p>",
        *(
            _picture(pictures, f"curves_{index:02d}", f"curves of {plain(problem.name)}")
            for index, problem in enumerate(results.problems, 1)
        ),
        "<h2>What the numbers mean</h2><ul>",
        *(f"<li>{_e(sentence)}</li>" for sentence in definitions()),
        "</ul>",
        *_made_by(results),
        f'<script type="application/json" id="numbers">{_data(found)}</script>',
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _untuned(results: Results) -> list[str]:
    table = untuned_table(results)
    if not table.rows:
        return []
    return [
        "<h2>Untuned against untuned</h2>",
        "<p>Rules beside the baselines that nobody tuned: on how many problems a rule ends lower, by the median over "
        "seeds of the ratio of final losses, both with 1 % of the know-nothing loss added.</p>",
        _table(table),
    ]


def _seen(results: Results, found: Sequence[Number]) -> list[str]:
    parts = []
    for rule, record in results.rules.items():
        if not record.trained_on:
            parts.append(f"<p>{_e(label(rule))} does not say what it was meta-trained on.</p>")
            continue
        said = []
        for key in ("families", "data"):
            if key in record.trained_on:
                said.append(f"{key}: {', '.join(plain(name) for name in record.trained_on[key]) or 'none'}")
        if "horizons" in record.trained_on:
            said.append("horizons: {} to {} steps".format(*record.trained_on["horizons"]))
        parts.append(f"<p>{_e(label(rule))} was meta-trained on {_e('; '.join(said))}.{_chosen(results, rule)}</p>")
        own = [number for number in found if number.rule == rule]
        parts.append(_table(overall(own, "groups")))
    return parts


def _chosen(results: Results, rule: str) -> str:
    chosen = set(results.rules[rule].trained_on.get("chosen_on", ()))
    names = [plain(problem.name) for problem in results.problems if problem.name in chosen]
    if not names:
        return ""
    return _e(f" It was chosen among others by its results on {', '.join(names)}: these flatter it, seen or not.")


def _costs(results: Results) -> list[str]:
    table = costs(results)
    if table is None:
        return []
    return [
        "<p>What a step costs: forward and backward of one mini-batch, and the optimizer's own step in the form in "
        "which it is deployed; medians, one process.</p>",
        _table(table),
    ]


def _made_by(results: Results) -> list[str]:
    rows = [[plain(key), plain(str(value))] for key, value in results.environment.items()]
    for name, record in results.rules.items():
        arguments = ", ".join(f"{key}={value!r}" for key, value in record.config.items())
        rows.append([f"rule {plain(name)}", f"{record.rule}({arguments}), {record.meta_parameters} meta-parameters"])
        rows.append(["its weights", f"SHA-256 {record.weights_sha256}"])
    return [
        "<h2>Environment and command</h2>",
        _table(TextTable(["what", "value"], rows)),
        f"<pre>{_e(results.command) or 'made from Python'}</pre>",
    ]


def _table(table: TextTable, empty: str = "") -> str:
    if not table.rows:
        return f"<p>{_e(empty)}</p>"
    heads = "".join(f"<th>{_e(head)}</th>" for head in table.heads)
    rows = "\n".join("<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'


def _picture(pictures: Mapping[str, bytes], name: str, description: str) -> str:
    if name not in pictures:
        return "<p>No picture: matplotlib is not installed.</p>"
    data = base64.b64encode(pictures[name]).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{_e(description)}">'


def _data(found: Sequence[Number]) -> str:
    """JSON that cannot end the element it is in."""
    text = json.dumps([vars(number) for number in found], allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _e(text: str) -> str:
    """Any text for the page, an attribute or between tags; what cannot be printed becomes a question mark."""
    printable = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    return html.escape(printable, quote=True)
