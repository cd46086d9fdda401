"""The subject of an assessment: the user's module and the batches that were read."""

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
        model: a module, or a function that builds one; it is not changed.
        data, valid: see :func:`~lightning_lopt.assessment.assess`.
        total_steps: steps of the planned run.

    Attributes:
        size: examples in a batch, ``None`` where that is unknown.
        pretrained: the sign that the module was trained already; ``None`` if there is none.

    Raises:
        ValueError: with one sentence, for a module or data that cannot be used, and for any error of theirs.
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
        """Read further batches, at most ``limit`` for training, and those of validation for measuring.

        Args:
            until: latest end, on the clock ``time.perf_counter()``.
            seconds_for_validation: the part of this time that is reserved for validation batches.
        """
        self.train.take(limit, until - (0 if self.held_out is None else seconds_for_validation))
        if self.held_out is not None:
            self.held_out.take(MEASURED, until)

    def pilot_tasks(self, notes: list[str]) -> tuple[PilotTask, Callable[[float], PilotTask | None]]:
        """The module on all batches that were read, and a function that returns it with batches larger by a factor.

        Args:
            notes: list that gets a sentence if there is no validation loss.
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
    except Exception:  # it may fail without a real Trainer, and its result is not needed
        return
    count = len(optimizers_in(configured))
    if count > 1:
        raise ValueError(
            f"{type(host).__name__}.configure_optimizers returns {count} optimizers; assess compares one rule with "
            "one AdamW, so give it a module with one."
        )
