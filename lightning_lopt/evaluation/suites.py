"""Problems on which rules are measured: a task and a number of steps each, the same for everybody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lightning_lopt.seeding import generator
from lightning_lopt.tasks import (
    CharRNNTask,
    CharTransformerTask,
    ImageCNNTask,
    ImageMLPTask,
    ImageResNetTask,
    ImageViTTask,
    LabelledImages,
    Task,
)
from lightning_lopt.tasks.data import DataLike, resolve
from lightning_lopt.tasks.text import Text, resolve_texts


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


def images(data: LabelledImages) -> list[Problem]:
    """A perceptron, a convolutional network, a deep perceptron that starts badly, and a long run, on given images."""
    halves, label = _halves(data), data.name
    return [
        Problem(f"{label}-mlp", ImageMLPTask(*halves, (64, 64), batch_size=64), 300),
        Problem(f"{label}-cnn", ImageCNNTask(*halves, (16, 32), batch_size=32), 300),
        Problem(f"{label}-deep", ImageMLPTask(*halves, (32,) * 8, "tanh", init_scale=1.5, batch_size=32), 500),
        Problem(f"{label}-long", ImageMLPTask(*halves, (32,), "gelu", batch_size=32), 3000),
    ]


def held_out(data: LabelledImages) -> list[Problem]:
    """Architectures and horizons that the embedded rules were not meta-trained on; text is the standard library's."""
    halves, label = _halves(data), data.name
    text = resolve_texts(None)[0]
    train, valid = _excerpt(text)
    return [
        Problem(f"{label}-vit", ImageViTTask(*halves, batch_size=64), 300),
        Problem(f"{label}-resnet", ImageResNetTask(*halves, (8, 16), batch_size=32), 300),
        Problem(f"{text.name}-gru", CharRNNTask(train, valid, VOCABULARY, width=48, batch_size=8), 500),
        Problem(f"{text.name}-transformer", CharTransformerTask(train, valid, VOCABULARY, batch_size=8), 500),
        *(problem for problem in images(data) if problem.name.endswith(("-deep", "-long"))),
    ]


VOCABULARY = 64
SUITES: dict[str, Callable[[LabelledImages], list[Problem]]] = {"images": images, "held_out": held_out}
"""Suites by name, each a function of the images."""


def make_suite(name: str, data: DataLike | None = None) -> list[Problem]:
    """The problems of a suite, for each of the given images in turn; ``None`` means the handwritten digits.

    Raises:
        ValueError: if there is no such suite, or data cannot be loaded.
    """
    if name not in SUITES:
        raise ValueError(f"there is no suite {name!r}; use one of {', '.join(map(repr, SUITES))}.")
    return [problem for source in resolve(data) for problem in SUITES[name](source)]


def _halves(data: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    return data.standardised().split(0.2, generator(0, "split"), max_valid=1000)


def _excerpt(text: Text) -> tuple[torch.Tensor, torch.Tensor]:
    """The text's first nine tenths and its last one; rare characters become one."""
    tokens = text.tokens.clamp(max=VOCABULARY - 1)
    cut = 9 * len(tokens) // 10
    return tokens[:cut], tokens[cut:]
