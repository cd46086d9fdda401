"""Tables with outputs of random networks; networks of related tables differ only in the last layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.layers import ACTIVATIONS, mlp
from lightning_lopt.tasks.tables import Table
from lightning_lopt.tasks.teacher import draw_teacher

SAMPLE = 4096  # number of inputs for scaling the outputs to mean 0 and variance 1
NAME = "teachers"


def teacher_table(generator: torch.Generator, sizes: Sequence[int], activation: str, rows: int) -> tuple[Params, Table]:
    """A random network, and its outputs for standard normal inputs.

    Args:
        generator: random generator of the network and of the inputs.
        sizes: numbers of inputs D, of units in each hidden layer, and of outputs K.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        rows: number N of rows.

    Returns:
        the parameters of the network, ``layers.0.weight`` and so on, and a table with inputs ``(N, D)`` and targets
        ``(N, K)``.
    """
    sample = torch.randn(SAMPLE, sizes[0], generator=generator)
    teacher = draw_teacher(sizes, activation, sample, generator)
    inputs = torch.randn(rows, sizes[0], generator=generator)
    return teacher, Table(inputs, _outputs(teacher, inputs, activation), 0, NAME)


def related_table(
    teacher: Params,
    generator: torch.Generator,
    outputs: int,
    activation: str,
    rows: int,
    *,
    classify: bool = False,
) -> Table:
    """A table with outputs of the same network with another last layer.

    Args:
        teacher: parameters of the network, as :func:`teacher_table` returns them.
        generator: random generator of the last layer and the inputs.
        outputs: number K of outputs, >= 2 for classes; the outputs have mean 0 and deviation 1.
        activation: see :func:`teacher_table`.
        rows: number N of rows.
        classify: whether the targets are the index of the largest output instead of the outputs.

    Returns:
        a table with inputs ``(N, D)`` and targets ``(N, K)``, or ``(N,)`` for classes.
    """
    layers = len(teacher) // 2
    last_layer = f"layers.{layers - 1}"
    dim, width = teacher["layers.0.weight"].shape[1], teacher[f"{last_layer}.weight"].shape[1]
    weight = torch.randn(outputs, width, generator=generator)
    params = teacher | {f"{last_layer}.weight": weight, f"{last_layer}.bias": torch.zeros(outputs)}
    unscaled_outputs = _outputs(params, torch.randn(SAMPLE, dim, generator=generator), activation)
    deviation = unscaled_outputs.std(0, correction=0).clamp(min=1e-6)
    params |= {
        f"{last_layer}.weight": weight / deviation[:, None],
        f"{last_layer}.bias": -unscaled_outputs.mean(0) / deviation,
    }
    inputs = torch.randn(rows, dim, generator=generator)
    values = _outputs(params, inputs, activation)
    return Table(inputs, values.argmax(1) if classify else values, outputs if classify else 0, NAME)


def _outputs(teacher: Params, inputs: Tensor, activation: str) -> Tensor:
    return mlp(teacher, "layers", inputs, len(teacher) // 2, ACTIVATIONS[activation])
