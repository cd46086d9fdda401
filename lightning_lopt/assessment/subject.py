"""The subject of an assessment: the user's module, and the batches read for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from lightning_lopt.assessment.pilot_task import MEASURED, PilotTask, examples_in, regrouped
from lightning_lopt.optim.configured import optimizers_in
from lightning_lopt.optim.pretrained_model import looks_pretrained
from lightning_lopt.tasks.lightning_task import LightningTask
from lightning_lopt.tasks.module_with_data import ModuleWithData


class Subject(ModuleWithData):
    """A module for an assessment, after a check and a test on its first batches.

    Args:
        model: a module, or a function that builds a module; a module is not changed.
        data, valid: see :func:`~lightning_lopt.assessment.assess`.
        total_steps: steps of the planned run.

    Attributes:
        size: number of examples in a batch; ``None`` if it is unknown.
        pretrained: the sign that the module was trained before; ``None`` if there is no such sign.

    Raises:
        ValueError: with one sentence, if the module or the data cannot be used or raise an error.
    """

    task_class: ClassVar[type[LightningTask]] = PilotTask
    task: PilotTask

    def __init__(self, model: Any, data: Any, valid: Any, total_steps: int) -> None:
        super().__init__(model, data, valid, total_steps)
        self.size = examples_in(self.first[0])

    def check(self, host: Any) -> None:
        _check_optimizers(host)
        self.pretrained = looks_pretrained(self.module) or looks_pretrained(host)

    def read(self, limit: int, until: float, seconds_for_validation: float) -> None:
        """Read further training batches, at most ``limit`` in all, and the validation batches for measuring.

        Args:
            until: latest end, on the clock ``time.perf_counter()``.
            seconds_for_validation: the part of this time that is reserved for validation batches.
        """
        self.train.take(limit, until - (0 if self.held_out is None else seconds_for_validation))
        if self.held_out is not None:
            self.held_out.take(MEASURED, until)

    def pilot_tasks(self, notes: list[str]) -> tuple[PilotTask, Callable[[float], PilotTask | None]]:
        """The task on all read batches, and a function that returns the task with batches larger by a factor.

        Args:
            notes: a sentence is added to this list if there is no validation loss.
        """
        train, valid = self.moved(self.train.batches), self._held_out_batches()
        task, reason = self.task.with_batches(train, valid)
        if reason:
            notes.append(f"no validation loss: {reason}")

        def resized(factor: float) -> PilotTask | None:
            size = int((self.size or 0) * factor)
            batches = regrouped(train, size) if size else None
            return None if batches is None else task.with_batches(batches, valid if "valid" in task.data else [])[0]

        return task, resized

    def _held_out_batches(self) -> list[Any]:
        """At most ``MEASURED`` validation batches, of the size of the training batches if possible."""
        if self.held_out is None or not self.held_out.batches:
            return []
        same_size_batches = regrouped(self.held_out.batches, self.size) if self.size else None
        return self.moved((same_size_batches or self.held_out.batches)[:MEASURED])


def _check_optimizers(host: Any) -> None:
    try:
        configured = host.configure_optimizers()
    except Exception:  # configure_optimizers may fail without a real Trainer, and only the number is checked
        return
    count = len(optimizers_in(configured))
    if count > 1:
        raise ValueError(
            f"{type(host).__name__}.configure_optimizers returns {count} optimizers; assess compares one rule with "
            "one AdamW, so give a module with one optimizer."
        )
