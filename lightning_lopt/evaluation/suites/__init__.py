"""Named suites of problems."""

from __future__ import annotations

from collections.abc import Callable

from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.evaluation.suites import finetune, gpu, images, long, real, shift, small, tiny
from lightning_lopt.evaluation.suites.long import long_runs
from lightning_lopt.tasks.data import DataLike, LabelledImages, resolve
from lightning_lopt.tasks.users_code import users_code
from lightning_lopt.user_files import check_no_arguments, load_named

__all__ = ["SUITES", "Problem", "long_runs", "make_suite"]

SUITES: dict[str, Callable[[list[LabelledImages]], list[Problem]]] = {
    "tiny": tiny.problems,
    "small": small.problems,
    "long": long.problems,
    "shift": shift.problems,
    "finetune": finetune.problems,
    "gpu": gpu.problems,
    "images": images.problems,
    "held_out": images.held_out,
    "real": real.problems,
}
"""Suites by name, each a function of one or several sets of images; problems without images occur once."""


def make_suite(name: str, data: DataLike | None = None) -> list[Problem]:
    """The problems of a suite; problems on images for each set in ``data``, by default the handwritten digits.

    Raises:
        ValueError: if there is no such suite, or data cannot be loaded.
        ImportError: if data or a table comes with scikit-learn, and that is not installed.

    Example:
        >>> [(problem.name, problem.horizon) for problem in make_suite("tiny")]
        [('digits-mlp-tiny', 200), ('digits-cnn-tiny', 100), ('argparse-transformer-tiny', 150)]
    """
    if name not in SUITES:
        raise ValueError(f"there is no suite {name!r}; use one of {', '.join(map(repr, SUITES))}.")
    return SUITES[name](resolve(data))


def named_problems(name: str) -> list[Problem]:
    """The problems of the suite of this name, or those that ``FILE.py:NAME`` names.

    Raises:
        ValueError: if there is no such suite, or the file has none.
    """
    return load_problems(name) if ":" in name else make_suite(name)


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
