"""Tables of values that random networks make: those of one kind share hidden layers, and differ in their last one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.layers import ACTIVATIONS, mlp
from lightning_lopt.tasks.tables import Table
from lightning_lopt.tasks.teacher import draw_teacher

SAMPLE = 4096  # inputs over which outputs are brought to mean 0 and variance 1
NAME = "teachers"


def teacher_table(generator: torch.Generator, sizes: Sequence[int], activation: str, rows: int) -> tuple[Params, Table]:
    """A random network, and its answers to standard normal inputs.

    Args:
        generator: where both come from.
        sizes: numbers of inputs D, of each hidden layer, of outputs K.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        rows: N.

    Returns:
        its parameters, ``layers.0.weight`` and so on, and a table of shapes ``(N, D)`` to ``(N, K)``.
    """
    sample = torch.randn(SAMPLE, sizes[0], generator=generator)
    teacher = draw_teacher(sizes, activation, sample, generator)
    inputs = torch.randn(rows, sizes[0], generator=generator)
    return teacher, Table(inputs, _answers(teacher, inputs, activation), 0, NAME)


def related_table(
    teacher: Params,
    generator: torch.Generator,
    outputs: int,
    activation: str,
    rows: int,
    *,
    classify: bool = False,
) -> Table:
    """Answers of the same network with another last layer.

    Args:
        teacher: parameters of the network, as :func:`teacher_table` returns them.
        generator: where the last layer and the inputs come from.
        outputs: K, >= 2 where they are classes; their mean is 0 and their deviation 1.
        activation: as in :func:`teacher_table`.
        rows: N.
        classify: whether the table has the number of the largest output instead of the outputs.

    Returns:
        a table of shapes ``(N, D)`` to ``(N, K)``, or ``(N, D)`` to ``(N,)``.
    """
    layers = len(teacher) // 2
    last = f"layers.{layers - 1}"
    dim, width = teacher["layers.0.weight"].shape[1], teacher[f"{last}.weight"].shape[1]
    weight = torch.randn(outputs, width, generator=generator)
    made = teacher | {f"{last}.weight": weight, f"{last}.bias": torch.zeros(outputs)}
    answers = _answers(made, torch.randn(SAMPLE, dim, generator=generator), activation)
    deviation = answers.std(0, correction=0).clamp(min=1e-6)
    made |= {f"{last}.weight": weight / deviation[:, None], f"{last}.bias": -answers.mean(0) / deviation}
    inputs = torch.randn(rows, dim, generator=generator)
    values = _answers(made, inputs, activation)
    return Table(inputs, values.argmax(1) if classify else values, outputs if classify else 0, NAME)


def _answers(teacher: Params, inputs: Tensor, activation: str) -> Tensor:
    return mlp(teacher, "layers", inputs, len(teacher) // 2, ACTIVATIONS[activation])
