"""Which problems are like those that a rule was meta-trained on?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_lopt.evaluation.problem_result import ProblemResult

ALL = "all problems"
SEEN_FAMILIES = "seen families"
UNSEEN_FAMILIES = "unseen families"
SEEN_DATA = "seen data"
UNSEEN_DATA = "unseen data"
LONGER = "longer than trained on"
CHOSEN = "the rule was chosen on"


def labels(problem: ProblemResult, trained_on: dict[str, Any]) -> list[str]:
    """Which of the groups a problem belongs to, by what a rule says of its meta-training.

    Family and data are told apart by their names: a problem of a seen family can have unseen data and the other way
    round. A problem without a family counts as unseen; one without data of its own is in neither group of data. What a
    rule does not say puts no problem in a group. Problems on which a rule was chosen among others, by
    :class:`~lightning_lopt.MetaValidation` for instance, flatter it even where their families are unseen.

    >>> labels(ProblemResult("p", 2000, 1.0, {}, "image_mlp", "mnist"), {"families": ["image_mlp"], "data": ["digits"]})
    ['seen families', 'unseen data']
    """
    found = []
    if "families" in trained_on:
        found.append(SEEN_FAMILIES if problem.family in trained_on["families"] else UNSEEN_FAMILIES)
    if "data" in trained_on and problem.data:
        found.append(SEEN_DATA if problem.data in trained_on["data"] else UNSEEN_DATA)
    if "horizons" in trained_on and problem.horizon > trained_on["horizons"][1]:
        found.append(LONGER)
    if problem.name in trained_on.get("chosen_on", ()):
        found.append(CHOSEN)
    return found


def groups(problems: Sequence[ProblemResult], trained_on: dict[str, Any]) -> dict[str, list[ProblemResult]]:
    """All problems, and those groups that are not empty; a problem may be in several."""
    found = {ALL: list(problems)}
    for group in (SEEN_FAMILIES, UNSEEN_FAMILIES, SEEN_DATA, UNSEEN_DATA, LONGER, CHOSEN):
        members = [problem for problem in problems if group in labels(problem, trained_on)]
        if members:
            found[group] = members
    return found
