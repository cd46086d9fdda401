"""A problem on which rules are measured: a task, and how many steps it is given."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_lopt.tasks.base import Task


@dataclass(frozen=True)
class Problem:
    """A task to be solved in ``horizon`` steps.

    Attributes:
        name: short and unique within a suite.
        task: what is solved.
        horizon: inner steps of a run.
        family: name of the task family it could have been drawn from (``"image_mlp"``), as cards list what a rule was
            meta-trained on; empty where there is none.
        data: name of the data (``"digits"``), likewise.
    """

    name: str
    task: Task
    horizon: int
    family: str = ""
    data: str = ""
