"""Problems on which rules are measured: a task and a number of steps each, the same for everybody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageCNNTask, ImageMLPTask, LabelledImages, Task
from lightning_lopt.tasks.data import DataLike, resolve


@dataclass(frozen=True)
class Problem:
    """A task to be solved in ``horizon`` steps; ``name`` is short and unique within a suite."""

    name: str
    task: Task
    horizon: int


def _images(data: LabelledImages) -> list[Problem]:
    halves, label = data.standardised().split(0.2, generator(0, "split")), data.name
    return [
        Problem(f"{label}-mlp", ImageMLPTask(*halves, (64, 64), "relu", 64), 300),
        Problem(f"{label}-cnn", ImageCNNTask(*halves, (16, 32), "relu", "max"), 300),
        Problem(f"{label}-long", ImageMLPTask(*halves, (32,), "gelu", 32), 3000),
        Problem(f"{label}-deep", ImageMLPTask(*halves, (32,) * 8, "tanh", 32, init_scale=1.5), 500),
    ]


SUITES: dict[str, Callable[[LabelledImages], list[Problem]]] = {"images": _images}
"""Suites by name, each a function of the images."""


def make_suite(name: str, data: DataLike | None = None) -> list[Problem]:
    """The problems of a suite, for each of the given images in turn; ``None`` means the handwritten digits.

    Raises:
        ValueError: if there is no such suite, or data cannot be loaded.
    """
    if name not in SUITES:
        raise ValueError(f"there is no suite {name!r}; use one of {', '.join(map(repr, SUITES))}.")
    return [problem for images in resolve(data) for problem in SUITES[name](images)]
