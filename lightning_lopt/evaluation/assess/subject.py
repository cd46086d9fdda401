"""What is assessed: the user's module, and its data as far as it was read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device

from lightning_lopt._lightning import is_lightning
from lightning_lopt.evaluation.assess.batches import examples_in, regrouped
from lightning_lopt.evaluation.assess.reading import readers
from lightning_lopt.evaluation.assess.task import MEASURED, PilotTask
from lightning_lopt.optim.configured import optimizers_in
from lightning_lopt.optim.pretrained_model import looks_pretrained
from lightning_lopt.tasks.lightning_batches import StackedBatches
from lightning_lopt.tasks.lightning_module import TrainingStep, check_automatic
from lightning_lopt.tasks.stand_in import Fit
from lightning_lopt.tasks.users_code import users_code

FIRST = 3  # batches that are read before anything is known


class Subject:
    """A module that can be assessed, checked and tried out on its first batches.

    Args:
        model: a module, or a function that builds one; let alone.
        data, valid: see :func:`~lightning_lopt.evaluation.assess.assess`.
        total_steps: of the planned run.

    Attributes:
        model, module: as given, and a module.
        kind: name of its class.
        train, held_out: readers, of which the first ``FIRST`` batches of training are read.
        fit: what ``self.trainer`` answers.
        task: the module on these batches.
        pretrained: why the module looks trained already, ``None`` if it does not.

    Raises:
        ValueError: with one sentence, for a module or data that cannot be used, and for whatever they raise.
    """

    def __init__(self, model: Any, data: Any, valid: Any, total_steps: int) -> None:
        self.model = self.module = model
        if not is_lightning(model, "LightningModule"):
            with users_code(f"{getattr(model, '__name__', 'model')}()"):
                self.module = model()
        self.kind = type(self.module).__name__
        check_automatic(self.module)
        self.fit = Fit(total_steps=total_steps, batches=total_steps)
        host = TrainingStep(self.module, self.fit).module
        _check_optimizers(host)
        self.pretrained = looks_pretrained(self.module) or looks_pretrained(host)
        self.device = next(iter(host.parameters()), torch.zeros(())).device
        self.train, self.held_out = readers(host, data, valid)
        self.train.take(FIRST)
        if not self.train.batches:
            raise ValueError(f"{self.kind}: there is no training batch; give at least one.")
        self.fit = dataclasses.replace(
            self.fit, batches=self.train.length or total_steps, datamodule=host.trainer.datamodule
        )
        self.first = self._moved(self.train.batches)
        self.size = examples_in(self.first[0])
        self.task = PilotTask(model, StackedBatches(self.first, f"{self.kind}, training batches"), fit=self.fit)

    def copies(self, count: int) -> list[TrainingStep]:
        """Steps of ``count`` copies of the module, which may be trained."""
        steps = [TrainingStep(self.module, self.fit) for _ in range(count)]
        if self.task.uses_metrics:
            for step in steps:
                step.use_metrics()
        return steps

    def read(self, limit: int, until: float, seconds_for_validation: float) -> None:
        """Read on, at most ``limit`` batches of training and those of validation that are measured.

        Args:
            until: what ``time.perf_counter()`` may show at the end.
            seconds_for_validation: of these, how many are kept for validation.
        """
        self.train.take(limit, until - (0 if self.held_out is None else seconds_for_validation))
        if self.held_out is not None:
            self.held_out.take(MEASURED, until)

    def pilot_tasks(self, notes: list[str]) -> tuple[PilotTask, Callable[[float], PilotTask | None]]:
        """The module on all batches that were read, and a function that gives it with batches larger by a factor.

        Args:
            notes: is given a sentence where there is no validation loss.
        """
        train, valid = self._moved(self.train.batches), self._held_out_batches()
        task, reason = self.task.on(train, valid)
        if reason:
            notes.append(f"no validation loss: {reason}")

        def resized(factor: float) -> PilotTask | None:
            size = int((self.size or 0) * factor)
            batches = regrouped(train, size) if size else None
            return None if batches is None else task.on(batches, [] if reason else valid)[0]

        return task, resized

    def _held_out_batches(self) -> list[Any]:
        """At most ``MEASURED`` validation batches, of the training batches' size where that can be had."""
        if self.held_out is None or not self.held_out.batches:
            return []
        same = regrouped(self.held_out.batches, self.size) if self.size else None
        return self._moved((same or self.held_out.batches)[:MEASURED])

    def _moved(self, batches: list[Any]) -> list[Any]:
        return [move_data_to_device(batch, self.device) for batch in batches]


def _check_optimizers(host: Any) -> None:
    try:
        configured = host.configure_optimizers()
    except Exception:  # it may need more than there is, and what it would return is not needed
        return
    count = len(optimizers_in(configured))
    if count > 1:
        raise ValueError(
            f"{type(host).__name__}.configure_optimizers returns {count} optimizers; assess compares one rule with "
            "one AdamW, so give it a module with one."
        )
