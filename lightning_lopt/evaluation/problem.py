"""A problem for measuring rules: a task with a horizon."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_lopt.tasks.base import Task
from lightning_lopt.tasks.users_code import users_code
from lightning_lopt.user_files import check_no_arguments, load_named


@dataclass(frozen=True)
class Problem:
    """A task with a horizon, on which optimizers are measured.

    Attributes:
        name: short and unique within a suite.
        task: the task.
        horizon: inner steps of a run.
        family: name of the task family that could have drawn it (``"image_mlp"``), for a comparison with the record of
            meta-training of a rule; empty where there is none.
        data: name of the data (``"digits"``), for the same comparison.

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
        ValueError: with one sentence, if there are no such problems, and for any error of the file or the function.
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
