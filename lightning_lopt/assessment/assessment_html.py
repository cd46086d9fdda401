"""The HTML of an assessment for a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence

from lightning_lopt.assessment.pilots import DEFAULT, Level
from lightning_lopt.tasks.base import Split
from lightning_lopt.terminal import printable

LOOKS = {"use it": ("✔", "#0072b2"), "use it with care": ("!", "#7a5c00"), "don't": ("✘", "#b3410b")}
"""Sign and colour of each verdict. Colour-blind readers can tell the colours apart, and each verdict has a sign too."""
_CELL = 'style="text-align: right; padding: 0.1rem 0.7rem"'


def assessment_html(verdict: str, reasons: Sequence[str], text: str, levels: Sequence[Level]) -> str:
    """The verdict, the reasons, a table of the pilots, and the whole text in a folded element; texts are escaped.

    Args:
        verdict: a key of :data:`LOOKS`.
        reasons: sentences without a full stop.
        text: the whole text of the assessment.
        levels: pilots by horizon; if the list is empty, there is no table.

    >>> "✘ Don&#x27;t" in assessment_html("don't", ["the rule diverged"], "all", [])
    True
    """
    sign, colour = LOOKS.get(verdict, ("", "inherit"))
    items = "".join(f"<li>{_e(_sentence(reason))}</li>" for reason in reasons)
    return (
        f'<div><p style="border-left: 0.4rem solid {colour}; padding-left: 0.7rem; font-size: 1.3em; margin: 0.3rem 0">'
        f'<b style="color: {colour}">{sign} {_e(_sentence(verdict))}</b></p><ul>{items}</ul>{_table(levels)}'
        f"<details><summary>All measurements</summary><pre>{_e(text)}</pre></details></div>"
    )


def _table(levels: Sequence[Level]) -> str:
    """Median losses at the end of the pilots: validation losses if there are any, otherwise training losses."""
    if not levels:
        return ""
    split: Split = "valid" if "valid" in levels[0].rule else "train"
    name = {"train": "training", "valid": "validation"}[split]
    heads = ["steps", "rule", "AdamW, best rate", "AdamW, default rate"]
    rows = []
    for level in levels:
        losses = [level.rule[split], level.adamw[level.best(split)][split]]
        cells = [f"{float(loss.median()):.4g}" for loss in losses]
        cells.append(f"{float(level.adamw[DEFAULT][split].median()):.4g}" if DEFAULT in level.adamw else "")
        rows.append([str(level.horizon), *cells])
    head = "".join(f"<th {_CELL}>{_e(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td {_CELL}>{_e(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f"<table><caption>{name} loss at the end of pilots, medians over seeds</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _e(text: str) -> str:
    return html.escape(printable(text), quote=True)
