"""A change of the data during a run."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lopt.checks import check_size_options
from lightning_lopt.rules.base import Params
from lightning_lopt.seeding import generator as derived_generator
from lightning_lopt.tasks.base import Batch, Split, Task
from lightning_lopt.tasks.transforms.base import TransformedTask


class ChangingDataTask(TransformedTask):
    """The first ``change`` inner steps have mini-batches of another task, all later steps mini-batches of ``task``.

    Mini-batches contain examples of both tasks. The number of steps so far, a carried entry of ``params``, decides
    which examples are used. Full batches come from ``task``, so the measured loss is the loss on the later data.

    Args:
        task: the task whose data come last.
        before: a task with parameters and batches of the same shapes, whose data come first.
        change: inner steps before the change, >= 1.

    Raises:
        ValueError: if the tasks have different shapes, or ``change`` is not a positive integer.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Quadratic(torch.tensor([1.0, 4.0]))
        >>> before = Quadratic(torch.tensor([4.0, 1.0]))
        >>> ChangingDataTask(bowl, before, change=10).name  # ten steps on the other bowl come first
        'quadratic/d2+change(10)'
    """

    def __init__(self, task: Task, before: Task, change: int) -> None:
        check_size_options([change], "change")
        shapes = [
            {name: value.shape for name, value in (each_task.init(draws) | each_task.batch(draws)).items()}
            for each_task in (task, before)
            for draws in (derived_generator(0, "shapes"),)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{before.name} has other parameters or batches than {task.name}; give a task that "
                "differs only in its data."
            )
        super().__init__(task, f"change({change})", {"name": "changing_data", "change": change})
        self.before = before
        self.change = change

    def init(self, generator: torch.Generator) -> Params:
        return super().init(generator) | {self.entry_name("step"): torch.zeros(())}

    def draw(self, generator: torch.Generator, *lead: int, split: Split = "train") -> Batch:
        earlier = self.before.draw(generator, *lead, split=split)
        drawn = super().draw(generator, *lead, split=split)
        return drawn | {self.entry_name(name): value for name, value in earlier.items()}

    def look_up(self, drawn: Batch, split: Split = "train") -> Batch:
        later = self.inner_entries(drawn)
        earlier = {name.removeprefix(self.entry_name("")): value for name, value in drawn.items() if name not in later}
        batch = super().look_up(later, split)
        return batch | {self.entry_name(name): value for name, value in self.before.look_up(earlier, split).items()}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return super().loss(params, self._present_part(params, batch))

    def gradient(self, params: Params, batch: Batch) -> tuple[Params, Tensor, Params]:
        grads, loss, carried = super().gradient(params, self._present_part(params, batch))
        return grads, loss, carried | {self.entry_name("step"): params[self.entry_name("step")] + 1}

    def metrics(self, params: Params, batch: Batch) -> dict[str, Tensor]:
        return super().metrics(params, self._present_part(params, batch))

    def _present_part(self, params: Params, batch: Batch) -> Batch:
        """The part of a mini-batch that is used at the present step; a full batch is returned unchanged."""
        changed = params[self.entry_name("step")] >= self.change
        later = self.inner_entries(batch)
        if len(later) == len(batch):
            return batch
        return {name: torch.where(changed, value, batch[self.entry_name(name)]) for name, value in later.items()}
