"""A problem on which rules are measured: a task, and how many steps it is given."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_lopt.tasks.base import Task
from lightning_lopt.tasks.users_code import users_code
from lightning_lopt.user_files import check_no_arguments, load_named


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

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), horizon=100)
        >>> bowl.task.roles, bowl.horizon
        ({'x': 'vector'}, 100)
    """

    name: str
    task: Task
    horizon: int
    family: str = ""
    data: str = ""


def load_problems(address: str) -> list[Problem]:
    """The problems that ``FILE.py:NAME`` names: a list or tuple, or a function without arguments that returns one.

    Raises:
        ValueError: with one sentence, if there are no such problems, and for whatever the file or the function raises.
    """
    problems = load_named(address)
    if callable(problems):
        check_no_arguments(problems, address)
        with users_code(f"{address}()"):
            problems = problems()
    if not isinstance(problems, list | tuple) or not all(isinstance(problem, Problem) for problem in problems):
        raise ValueError(
            f"{address} is no suite; it must be a list of lightning_lopt.evaluation.Problem, or a function without "
            "arguments that returns one."
        )
    if not problems:
        raise ValueError(f"{address} is a suite without a problem; give at least one.")
    return list(problems)
