"""A family of one task."""

from __future__ import annotations

from typing import Any

import torch

from lightning_lopt.tasks.base import Task, TaskFamily


class FixedTask(TaskFamily):
    """A family with one task, for instance a :class:`~lightning_lopt.tasks.LightningTask`.

    Args:
        task: the task that :meth:`sample` returns.

    Example:
        >>> from lightning_lopt import TaskDataModule
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Quadratic(torch.tensor([1.0, 4.0]))
        >>> data_module = TaskDataModule(FixedTask(bowl))  # for meta-training on this one task
        >>> data_module.mixture.sample(seed=0) is bowl
        True
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.name = task.name.partition("/")[0]

    @property
    def config(self) -> dict[str, Any]:
        return {"name": self.name, "task": self.task.name} | getattr(self.task, "config", {})

    def sample(self, generator: torch.Generator) -> Task:
        return self.task
