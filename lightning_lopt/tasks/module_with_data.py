"""A user's LightningModule with batches of its data, for measurements outside a Trainer."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from lightning.fabric.utilities import move_data_to_device

from lightning_lopt._lightning import is_lightning
from lightning_lopt.tasks.lightning_batches import StackedBatches
from lightning_lopt.tasks.lightning_module import TrainingStep, check_automatic
from lightning_lopt.tasks.lightning_task import LightningTask
from lightning_lopt.tasks.loader_reading import readers
from lightning_lopt.tasks.stand_in import Fit
from lightning_lopt.tasks.users_code import users_code

FIRST = 3  # batches that are read before the first measurement


class ModuleWithData:
    """A module that was checked and tested on its first batches.

    Args:
        model: a module, or a function without arguments that builds one; it is not changed.
        data: a data module, training batches, or ``None`` for the module's dataloaders.
        valid: validation batches, if ``data`` is not a data module.
        total_steps: steps of the planned run.

    Attributes:
        model: the argument ``model``.
        module: ``model`` itself, or a module that it has built.
        kind: name of the module's class.
        device: device of the module's parameters.
        train, held_out: readers of the two splits; the first ``FIRST`` training batches are read.
        first: the first training batches, on the device.
        fit: values that ``self.trainer`` returns.
        task: the module on these batches, as a task.

    Raises:
        ValueError: with one sentence, if the module or the data cannot be used or raise an error.
    """

    task_class: ClassVar[type[LightningTask]] = LightningTask

    def __init__(self, model: Any, data: Any, valid: Any, total_steps: int) -> None:
        self.model = self.module = model
        if not is_lightning(model, "LightningModule"):
            with users_code(f"{getattr(model, '__name__', 'model')}()"):
                self.module = model()
        self.kind = type(self.module).__name__
        check_automatic(self.module)
        self.fit = Fit(total_steps=total_steps, batches=total_steps)
        host = TrainingStep(self.module, self.fit).module
        self.check(host)
        self.device = next(iter(host.parameters()), torch.zeros(())).device
        self.train, self.held_out = readers(host, data, valid)
        self.train.take(FIRST)
        if not self.train.batches:
            raise ValueError(f"{self.kind}: there is no training batch; give at least one.")
        self.fit = dataclasses.replace(
            self.fit, batches=self.train.length or total_steps, datamodule=host.trainer.datamodule
        )
        self.first = self.moved(self.train.batches)
        self.task = self.task_class(model, StackedBatches(self.first, f"{self.kind}, training batches"), fit=self.fit)

    def check(self, host: Any) -> None:
        """Check a copy of the module, which has a stand-in Trainer, before any batch is read.

        Raises:
            ValueError: with one sentence, if the module cannot be used.
        """

    def copies(self, count: int) -> list[TrainingStep]:
        """Training steps of ``count`` copies of the module; training these leaves the module unchanged."""
        steps = [TrainingStep(self.module, self.fit) for _ in range(count)]
        if self.task.uses_metrics:
            for step in steps:
                step.use_metrics()
        return steps

    def moved(self, batches: list[Any]) -> list[Any]:
        """Batches on the module's device."""
        return [move_data_to_device(batch, self.device) for batch in batches]
