"""Teacher and student: targets are outputs of a random network, which a student can match exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.checks import check_number_options, check_size_options
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks._draw import chance, choice, integer, uniform
from lightning_lopt.tasks.layers import ACTIVATIONS, mlp
from lightning_lopt.tasks.layout import Layout
from lightning_lopt.tasks.model_family import ModelFamily
from lightning_lopt.tasks.tables import Table
from lightning_lopt.tasks.tabular import TabularTask, with_noise

VALID = 512


class TeacherTask(TabularTask):
    """A perceptron (the student) that learns the outputs of another perceptron (the teacher) on random inputs.

    Args:
        teacher: parameters of the teacher, with the names of the student's parameters. Both networks have the same
            activation. A student of the same widths matches the teacher at these parameters; a wider student can match
            the teacher at other parameters; a narrower student cannot match the teacher.
        arguments: arguments of :class:`~lightning_lopt.tasks.tabular.TabularTask`.
        options: keyword arguments of ``TabularTask``.

    Example:
        >>> from lightning_lopt.tasks import Table
        >>> teacher = {"layers.0.weight": torch.ones(1, 3), "layers.0.bias": torch.zeros(1)}
        >>> inputs = torch.randn(40, 3)
        >>> table = Table.from_arrays(inputs, inputs.sum(1), "sums")
        >>> task = TeacherTask(teacher, table, table, widths=(), objective="squared")
        >>> task.loss(teacher, task.full_batch("train")).item() < 1e-10  # a student with these parameters is perfect
        True
    """

    def __init__(self, teacher: Params, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.teacher = teacher


def draw_teacher(sizes: Sequence[int], activation: str, inputs: Tensor, generator: torch.Generator) -> Params:
    """Parameters of a random perceptron whose outputs have mean 0 and variance 1 over ``inputs``.

    Hidden weights are large (deviation 1.5/√fan_in, biases in ±1/√fan_in), so that the network is far from linear.

    Args:
        sizes: numbers of inputs, of units in each hidden layer, and of outputs.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        inputs: shape ``(N, sizes[0])``.
        generator: random generator of the parameters.
    """
    layout = Layout("uniform", 1.5 * 3**0.5)  # a uniform distribution in ±a has deviation a/√3
    layout.mlp(sizes)
    params = layout.draw(generator)
    last_layer = f"layers.{len(sizes) - 2}"
    outputs = mlp(params, "layers", inputs, len(sizes) - 1, ACTIVATIONS[activation])
    deviation = outputs.std(0, correction=0).clamp(min=1e-6)
    params[f"{last_layer}.bias"] = (params[f"{last_layer}.bias"] - outputs.mean(0)) / deviation
    params[f"{last_layer}.weight"] = params[f"{last_layer}.weight"] / deviation[:, None]
    return params


class Teacher(ModelFamily):
    """Teachers of different size and inputs of different conditioning; targets are values or classes.

    A class is the index of the teacher's largest output. A third of the tasks has noise in the training targets.

    Args:
        dims: numbers of inputs to draw from.
        outputs: numbers of outputs to draw from; classes are at least 2.
        depths: numbers of hidden layers of teacher and student to draw from.
        widths: widths to draw from, separately for each hidden layer of the teacher.
        ratios: widths of the student's hidden layers to draw from, in units of the teacher's widths.
        decays: exponents a to draw from: input i has deviation i^-a, i = 1, 2, ...
        examples: smallest and largest number of training examples, drawn log-uniformly.
        options: ``activations``, ``batch_sizes``, ``schemes``, ``init_scales`` of :class:`ModelFamily`.

    Raises:
        ValueError: if a list is empty or an entry is unknown or out of range.

    Example:
        >>> family = Teacher(dims=(4,), outputs=(1,), depths=(1,), widths=(8,), examples=(500, 600))
        >>> family.sample(torch.Generator().manual_seed(0)).name
        'teacher/4-8-1~b29a58/16-huber/relu/b16'
    """

    name = "teacher"

    def __init__(
        self,
        dims: Sequence[int] = (4, 8, 16, 32),
        outputs: Sequence[int] = (1, 2, 4, 8),
        depths: Sequence[int] = (1, 2),
        widths: Sequence[int] = (8, 16, 32),
        ratios: Sequence[float] = (0.5, 1.0, 1.0, 2.0),
        decays: Sequence[float] = (0.0, 0.0, 0.5, 1.0),
        examples: tuple[int, int] = (500, 10_000),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.ranges |= {
            "dims": check_size_options(dims, "dims"),
            "outputs": check_size_options(outputs, "outputs"),
            "depths": check_size_options(depths, "depths"),
            "widths": check_size_options(widths, "widths"),
            "ratios": check_number_options(ratios, "ratios", 0.01),
            "decays": check_number_options(decays, "decays"),
            "examples": check_size_options(examples, "examples"),
        }

    def sample(self, generator: torch.Generator) -> TeacherTask:
        settings = self.draw_common(generator)
        classify = chance(0.5, generator)
        settings["objective"] = "cross_entropy" if classify else choice(("squared", "huber"), generator)
        widths = [self.pick("widths", generator) for _ in range(self.pick("depths", generator))]
        ratio, dim, outputs = (self.pick(name, generator) for name in ("ratios", "dims", "outputs"))
        outputs = max(outputs, 2) if classify else outputs
        settings["widths"] = [max(round(ratio * width), 1) for width in widths]
        source: dict[str, Any] = {
            "widths": widths,
            "decay": self.pick("decays", generator),
            "examples": self.between("examples", generator),
            "noise": round(uniform(0.0, 0.3, generator), 3) if chance(1 / 3, generator) else 0.0,
            "tag": f"{integer(0, 16**6, generator):06x}",
        }
        inputs = torch.randn(source["examples"] + VALID, dim, generator=generator)
        inputs = inputs * torch.arange(1, dim + 1) ** -source["decay"]
        teacher = draw_teacher((dim, *widths, outputs), settings["activation"], inputs, generator)
        teacher_outputs = mlp(teacher, "layers", inputs, len(widths) + 1, ACTIVATIONS[settings["activation"]])
        table = Table(
            inputs, teacher_outputs.argmax(1) if classify else teacher_outputs, outputs if classify else 0, "teacher"
        )
        train, valid = table.cut(VALID)
        train = with_noise(train, source["noise"], generator)
        label = f"{'-'.join(map(str, (dim, *widths, outputs)))}~{source['tag']}"
        shape = "-".join(map(str, settings["widths"])) + f"-{settings['objective']}"
        name = self.task_name(label, shape, settings)
        config = {"family": self.name, "teacher": source} | settings
        return TeacherTask(teacher, train, valid, **settings, name=name, config=config)
