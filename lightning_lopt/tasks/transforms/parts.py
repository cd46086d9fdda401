"""Transforms that use only a part of each mini-batch, or train only a part of the parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_lopt.checks import check_size_options
from lightning_lopt.rules.base import Params
from lightning_lopt.seeding import generator as derived_generator
from lightning_lopt.tasks._draw import log_uniform, uniform
from lightning_lopt.tasks.base import AUXILIARY_PREFIX, Batch, Split, Task
from lightning_lopt.tasks.transforms.base import Transform, TransformedTask, tag


class SmallerBatchTask(TransformedTask):
    """Uses a random part of each mini-batch, drawn without replacement; full batches do not change.

    Args:
        task: a task with a ``batch_size``, which is the length of the first axis of each entry of its mini-batches.
        batch_size: number of examples to use, between 1 and ``task.batch_size``.

    Raises:
        ValueError: if ``task`` has no such axis, or ``batch_size`` is out of range.

    Example:
        >>> from lightning_lopt.tasks import ImageMLP
        >>> draws = torch.Generator().manual_seed(0)
        >>> task = ImageMLP(variety=False, batch_sizes=(16,)).sample(draws)
        >>> smaller = SmallerBatchTask(task, 4)
        >>> len(task.batch(draws)["inputs"]), len(smaller.batch(draws)["inputs"])
        (16, 4)
    """

    batch_size: int

    def __init__(self, task: Task, batch_size: int) -> None:
        check_size_options([batch_size], "batch_size")
        available: int | None = getattr(task, "batch_size", None)
        if available is None:
            raise ValueError(
                f"{task.name} has no batch_size, so its mini-batches cannot be made smaller; do not transform it."
            )
        drawn = task.batch(derived_generator(0, "shapes")).items()
        lengths = {name: value.shape[:1] for name, value in drawn if not name.startswith(AUXILIARY_PREFIX)}
        if batch_size > available or any(length != (available,) for length in lengths.values()):
            raise ValueError(
                f"{task.name} has mini-batches of {available} examples in entries of length "
                f"{ {name: tuple(length) for name, length in lengths.items()} }; use at most that many examples "
                f"(got {batch_size}), and give every entry a first axis of examples."
            )
        super().__init__(task, f"b{batch_size}", {"name": SmallerBatch.name, "batch_size": batch_size})
        self.batch_size = batch_size
        if task.steps_per_epoch is not None:
            self.steps_per_epoch = task.steps_per_epoch * available / batch_size
        self.available = available

    def draw(self, generator: torch.Generator, *lead: int, split: Split = "train") -> Batch:
        drawn = super().draw(generator, *lead, split=split)
        order = torch.rand(math.prod(lead), self.available, generator=generator).argsort(-1)[:, : self.batch_size]
        return drawn | {self.entry_name("order"): order.reshape(*lead, self.batch_size)}

    def look_up(self, drawn: Batch, split: Split = "train") -> Batch:
        order = drawn[self.entry_name("order")]
        lead, groups = order.shape[:-1], math.prod(order.shape[:-1])
        first_rows = self.available * torch.arange(groups, device=order.device)
        rows = (first_rows[:, None] + order.reshape(groups, self.batch_size)).flatten()

        def part(value: Tensor) -> Tensor:
            item_shape = value.shape[len(lead) + 1 :]
            part_rows = value.reshape(groups * self.available, *item_shape).index_select(0, rows)
            return part_rows.reshape(*lead, self.batch_size, *item_shape)

        batch = super().look_up(self.inner_entries(drawn), split)
        return {name: value if name.startswith(AUXILIARY_PREFIX) else part(value) for name, value in batch.items()}


@dataclass(frozen=True)
class SmallerBatch(Transform):
    """:class:`SmallerBatchTask` with a share of the batch drawn log-uniformly; tasks without batch size do not change.

    Attributes:
        smallest: smallest share of a mini-batch to use, in (0, 1].

    Example:
        >>> from lightning_lopt.tasks import ImageMLP
        >>> draws = torch.Generator().manual_seed(0)
        >>> task = ImageMLP(variety=False, batch_sizes=(16,)).sample(draws)
        >>> SmallerBatch(smallest=0.25)(task, draws.manual_seed(0)).config["transforms"]
        [{'name': 'smaller_batch', 'batch_size': 12}]
    """

    name: ClassVar[str] = "smaller_batch"
    smallest: float = 0.125

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.smallest <= 1:
            raise ValueError(f"{self.name}: smallest must lie in (0, 1], got {self.smallest!r}.")

    def apply(self, task: Task, generator: torch.Generator) -> Task:
        share = log_uniform(self.smallest, 1.0, generator)
        available: int | None = getattr(task, "batch_size", None)
        return task if available is None else SmallerBatchTask(task, max(1, round(share * available)))


class FrozenTask(TransformedTask):
    """Some tensors keep their initial values; the rule does not get them.

    Args:
        task: the task to change.
        frozen: names of tensors, some of ``task.roles`` but not all.

    Raises:
        ValueError: if a name is unknown or no tensor is left to train.

    Example:
        >>> from lightning_lopt.tasks import ImageMLP
        >>> draws = torch.Generator().manual_seed(0)
        >>> task = ImageMLP(variety=False, batch_sizes=(16,)).sample(draws)
        >>> last = list(task.roles)[-1]
        >>> set(task.roles) - set(FrozenTask(task, [last]).roles) == {last}
        True
    """

    def __init__(self, task: Task, frozen: Sequence[str]) -> None:
        if not set(frozen) < set(task.roles):
            raise ValueError(f"frozen must be some but not all of {sorted(task.roles)}, got {frozen!r}.")
        settings = {"name": FrozenTensors.name, "frozen": sorted(frozen)}
        super().__init__(task, f"frozen({len(frozen)}~{tag(settings)})", settings)
        self.roles = {name: role for name, role in task.roles.items() if name not in frozen}

    def gradient(self, params: Params, batch: Batch) -> tuple[Params, Tensor, Params]:
        grads, loss, carried = super().gradient(params, batch)
        return {name: grad for name, grad in grads.items() if name in self.roles}, loss, carried


@dataclass(frozen=True)
class FrozenTensors(Transform):
    """:class:`FrozenTask` with a random part of the tensors; a task with a single tensor does not change.

    Attributes:
        largest: largest share of the tensors that are frozen, in [0, 1].

    Example:
        >>> from lightning_lopt.tasks import ImageMLP
        >>> draws = torch.Generator().manual_seed(0)
        >>> task = ImageMLP(variety=False, batch_sizes=(16,)).sample(draws)
        >>> len(FrozenTensors(largest=0.5)(task, draws.manual_seed(0)).roles) < len(task.roles)
        True
    """

    name: ClassVar[str] = "frozen_tensors"
    largest: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.largest <= 1:
            raise ValueError(f"{self.name}: largest must lie in [0, 1], got {self.largest!r}.")

    def apply(self, task: Task, generator: torch.Generator) -> Task:
        names = list(task.roles)
        share = uniform(0.0, self.largest, generator)
        order = torch.randperm(len(names), generator=generator).tolist()
        count = min(math.ceil(share * len(names)), len(names) - 1)
        return FrozenTask(task, [names[index] for index in sorted(order[:count])]) if count else task
