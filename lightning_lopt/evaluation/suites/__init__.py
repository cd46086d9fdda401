"""Suites of problems, the same for everybody."""

from __future__ import annotations

from collections.abc import Callable

from lightning_lopt.evaluation.problem import Problem
from lightning_lopt.evaluation.suites.gpu import gpu
from lightning_lopt.evaluation.suites.images import held_out, images
from lightning_lopt.evaluation.suites.long import long, long_runs
from lightning_lopt.evaluation.suites.shift import shift
from lightning_lopt.evaluation.suites.small import small
from lightning_lopt.evaluation.suites.tiny import tiny
from lightning_lopt.tasks.data import DataLike, LabelledImages, resolve

__all__ = ["SUITES", "Problem", "long_runs", "make_suite"]

SUITES: dict[str, Callable[[list[LabelledImages]], list[Problem]]] = {
    "tiny": tiny,
    "small": small,
    "long": long,
    "shift": shift,
    "gpu": gpu,
    "images": images,
    "held_out": held_out,
}
"""Suites by name, each a function of one or several sets of images; what needs no images is there once."""


def make_suite(name: str, data: DataLike | None = None) -> list[Problem]:
    """The problems of a suite, those on images for each of the given sets; ``None`` means the handwritten digits.

    Raises:
        ValueError: if there is no such suite, or data cannot be loaded.
    """
    if name not in SUITES:
        raise ValueError(f"there is no suite {name!r}; use one of {', '.join(map(repr, SUITES))}.")
    return SUITES[name](resolve(data))
