"""Two tables of values that one random network makes: they share its hidden layers, and differ in its last one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.layers import ACTIVATIONS, mlp
from lightning_lopt.tasks.tables import Table
from lightning_lopt.tasks.teacher import draw_teacher

INPUTS = 4096  # on which outputs are brought to mean 0 and variance 1


def draw_related_tables(
    generator: torch.Generator,
    sizes: Sequence[int],
    outputs: int,
    activation: str,
    rows: tuple[int, int],
    noise: float = 0.0,
) -> tuple[Table, Table]:
    """Answers of two teachers with the same hidden layers to standard normal inputs.

    Args:
        generator: where everything comes from.
        sizes: numbers of inputs D, of each hidden layer, of outputs of the first teacher.
        outputs: number of outputs of the second teacher.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        rows: numbers of rows of the first table and of the second.
        noise: standard deviation of what is added to the second table's values, whose own deviation is 1.

    Returns:
        tables of shapes ``(rows[0], D)`` to ``(rows[0], sizes[-1])`` and ``(rows[1], D)`` to ``(rows[1], outputs)``.
    """
    sample = torch.randn(INPUTS, sizes[0], generator=generator)
    first = draw_teacher(sizes, activation, sample, generator)
    second = _with_new_head(first, outputs, sample, len(sizes) - 1, activation, generator)
    made = []
    for teacher, count in ((first, rows[0]), (second, rows[1])):
        inputs = torch.randn(count, sizes[0], generator=generator)
        made.append(Table(inputs, _answers(teacher, inputs, len(sizes) - 1, activation), 0, "teachers"))
    values = made[1].targets
    noisy = values + noise * torch.randn(values.shape, generator=generator)
    return made[0], Table(made[1].inputs, noisy, 0, "teachers")


def _answers(teacher: Params, inputs: Tensor, layers: int, activation: str) -> Tensor:
    return mlp(teacher, "layers", inputs, layers, ACTIVATIONS[activation])


def _with_new_head(
    teacher: Params, outputs: int, sample: Tensor, layers: int, activation: str, generator: torch.Generator
) -> Params:
    """The teacher with another last layer, whose outputs have mean 0 and variance 1 over the sample."""
    last = f"layers.{layers - 1}"
    weight = torch.randn(outputs, teacher[f"{last}.weight"].shape[1], generator=generator)
    made = teacher | {f"{last}.weight": weight, f"{last}.bias": torch.zeros(outputs)}
    answers = _answers(made, sample, layers, activation)
    deviation = answers.std(0, correction=0).clamp(min=1e-6)
    return made | {f"{last}.weight": weight / deviation[:, None], f"{last}.bias": -answers.mean(0) / deviation}
