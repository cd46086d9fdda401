"""Fine-tuning on synthetic tables: students of a random network get a new teacher with the same hidden layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_lopt.checks import check_size_options
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks._draw import chance, choice, uniform
from lightning_lopt.tasks.base import Task
from lightning_lopt.tasks.finetune.family import Body, FineTuneFamily
from lightning_lopt.tasks.finetune.pretraining import Pretraining
from lightning_lopt.tasks.finetune.teachers import NAME, related_table, teacher_table
from lightning_lopt.tasks.tabular import TabularTask, with_noise

OLD_ROWS, OLD_OUTPUTS, VALID = 6000, 32, 512  # 32 outputs need all hidden units (at most 32 by default)


class FineTuneStudents(FineTuneFamily[Params]):
    """Perceptrons pretrained on outputs of a random network; new tasks have few rows of a related random network.

    The related network has the same hidden layers. The targets of a new task are values or classes (the largest
    output); some tasks have noise in the training targets.

    Args:
        dims: numbers of inputs to draw from.
        depths: numbers of hidden layers to draw from.
        widths: widths of a hidden layer to draw from, the same for all layers and for teacher and student.
        outputs: numbers of outputs of a new task to draw from; classes are at least 2.
        rows: smallest and largest number of training rows, drawn log-uniformly.
        options: see :class:`~lightning_lopt.tasks.finetune.family.FineTuneFamily`.

    Raises:
        ValueError: if a list is empty or an entry is unknown or out of range.

    Example:
        >>> family = FineTuneStudents(dims=(4,), depths=(1,), widths=(8,), rows=(20, 30), bodies=1, steps=5)
        >>> task = family.sample(torch.Generator().manual_seed(0))
        >>> sorted(task.init(torch.Generator()))  # pretrains the network at the first call
        ['layers.0.weight.lora_a', 'layers.0.weight.lora_b', 'layers.1.bias', 'layers.1.weight']
    """

    name = "finetune_student"

    def __init__(
        self,
        dims: Sequence[int] = (8, 12, 16),
        depths: Sequence[int] = (1, 2),
        widths: Sequence[int] = (16, 32),
        outputs: Sequence[int] = (1, 2, 4),
        rows: tuple[int, int] = (30, 200),
        **options: Any,
    ) -> None:
        super().__init__(**{"steps": 1000, **options})
        self.ranges |= {
            "dims": check_size_options(dims, "dims"),
            "depths": check_size_options(depths, "depths"),
            "widths": check_size_options(widths, "widths"),
            "outputs": check_size_options(outputs, "outputs"),
            "rows": check_size_options(rows, "rows"),
        }

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"data": [NAME]}

    def _draw_body(self, generator: torch.Generator, number: int) -> Body[Params]:
        dim, depth, width = (self.pick(name, generator) for name in ("dims", "depths", "widths"))
        settings = self.draw_architecture(generator)
        settings["widths"] = [width] * depth
        sizes = (dim, *settings["widths"], OLD_OUTPUTS)
        teacher, table = teacher_table(generator, sizes, settings["activation"], OLD_ROWS)
        task = TabularTask(*table.cut(VALID), objective="squared", **settings, batch_size=64, name=f"{NAME}-old")
        label = "-".join(map(str, (dim, *settings["widths"]))) + f"-{settings['activation']}{number}"
        config = {"number": number, "dim": dim} | settings
        return Body(Pretraining(task, self.steps, 1e-2, number), settings, teacher, label, None, config)

    def _draw_task(self, body: Body[Params], batch_size: int, generator: torch.Generator) -> Task:
        classify = chance(0.5, generator)
        new_settings: dict[str, Any] = {
            "outputs": max(self.pick("outputs", generator), 2 if classify else 1),
            "rows": self.between("rows", generator),
            "noise": round(uniform(0.0, 0.3, generator), 3) if chance(0.5, generator) else 0.0,
            "objective": "cross_entropy" if classify else choice(("squared", "huber"), generator),
        }
        activation, rows = body.settings["activation"], new_settings["rows"] + VALID
        table = related_table(body.source, generator, new_settings["outputs"], activation, rows, classify=classify)
        train, valid = table.cut(VALID)
        train = with_noise(train, new_settings["noise"], generator)
        name = self.new_task_name(body, batch_size, generator)
        config = {"family": self.name, "batch_size": batch_size, "new": new_settings} | body.config
        options = body.settings | {"batch_size": batch_size, "name": name, "config": config}
        return TabularTask(train, valid, objective=new_settings["objective"], **options)
