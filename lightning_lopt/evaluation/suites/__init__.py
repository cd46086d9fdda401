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
"""Suites by name. Each is a function of one or several sets of images; problems without images occur once."""


def make_suite(name: str, data: DataLike | None = None) -> list[Problem]:
    """The problems of a suite. Problems on images occur for each set in ``data``; the default is handwritten digits.

    Raises:
        ValueError: if there is no such suite, or data cannot be loaded.
        ImportError: if data or a table comes with scikit-learn, which is not installed.

    Example:
        >>> [(problem.name, problem.horizon) for problem in make_suite("tiny")]
        [('digits-mlp-tiny', 200), ('digits-cnn-tiny', 100), ('argparse-transformer-tiny', 150)]
    """
    if name not in SUITES:
        raise ValueError(f"there is no suite {name!r}; use one of {', '.join(map(repr, SUITES))}.")
    return SUITES[name](resolve(data))


def named_problems(name: str) -> list[Problem]:
    """The problems of the suite with this name, or of the suite at the address ``FILE.py:NAME``.

    Raises:
        ValueError: if there is no such suite.
    """
    return load_problems(name) if ":" in name else make_suite(name)


def load_problems(address: str) -> list[Problem]:
    """The problems at ``FILE.py:NAME``: a list or a tuple, or a function without arguments that returns one of these.

    Raises:
        ValueError: with one sentence, if there are no such problems, or the file or the function raises an error.
    """
    problems = load_named(address)
    if callable(problems):
        check_no_arguments(problems, address)
        with users_code(f"{address}()"):
            problems = problems()
    if not isinstance(problems, list | tuple) or not all(isinstance(problem, Problem) for problem in problems):
        raise ValueError(
            f"{address} is not a suite; it must be a list of lightning_lopt.evaluation.Problem, or a function without "
            "arguments that returns such a list."
        )
    if not problems:
        raise ValueError(f"{address} is a suite without a problem; give at least one problem.")
    return list(problems)
