"""The interface of transforms: random changes of a task, drawn for each task of a family."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_lopt.rules.base import Params
from lightning_lopt.seeding import derive_seed
from lightning_lopt.tasks._draw import chance
from lightning_lopt.tasks.accelerations import draws_in_one_call, in_one_call
from lightning_lopt.tasks.base import AUXILIARY_PREFIX, Batch, Split, Task, TaskFamily


class TransformedTask(Task):
    """A task after a transform, which behaves as ``task`` except for the methods that a subclass overrides.

    Args:
        task: the task to change, which may itself be a transformed task.
        label: suffix of the name of the task, after a ``+``.
        settings: entry of the list ``config["transforms"]``, JSON values only.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Quadratic(torch.tensor([1.0, 4.0]))
        >>> TransformedTask(bowl, "renamed", {"name": "renamed"}).name
        'quadratic/d2+renamed'
    """

    def __init__(self, task: Task, label: str, settings: dict[str, Any]) -> None:
        config = getattr(task, "config", {})
        self.task = task
        self.name = f"{task.name}+{label}"
        self.roles = task.roles
        self.loss_scale = task.loss_scale
        self.batch_size: int | None = getattr(task, "batch_size", None)
        self.steps_per_epoch = task.steps_per_epoch
        self.config = config | {"transforms": [*config.get("transforms", []), settings]}
        self.depth: int = getattr(task, "depth", 0) + 1

    def entry_name(self, name: str) -> str:
        """The name of an entry of params or batch that belongs to this transform: ``"~<depth>/<name>"``."""
        return f"{AUXILIARY_PREFIX}{self.depth}/{name}"

    def inner_entries(self, entries: dict[str, Tensor]) -> dict[str, Tensor]:
        """The entries of params, draws or batch that do not belong to this transform."""
        return {name: value for name, value in entries.items() if not name.startswith(self.entry_name(""))}

    def inner(self, params: Params) -> Params:
        """The parameters of the inner task, ``task``."""
        return self.inner_entries(params)

    def init(self, generator: torch.Generator) -> Params:
        return self.task.init(generator)

    @in_one_call(lambda task: draws_in_one_call(task.task))
    def draw(self, generator: torch.Generator, *lead: int, split: Split = "train") -> Batch:
        return self.task.draw(generator, *lead, split=split)

    def look_up(self, drawn: Batch, split: Split = "train") -> Batch:
        return self.task.look_up(drawn, split)

    def full_batch(self, split: Split) -> Batch:
        return self.task.full_batch(split)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return self.task.loss(self.inner(params), batch)

    def gradient(self, params: Params, batch: Batch) -> tuple[Params, Tensor, Params]:
        return self.task.gradient(self.inner(params), batch)

    def metrics(self, params: Params, batch: Batch) -> dict[str, Tensor]:
        return self.task.metrics(self.inner(params), batch)


@dataclass(frozen=True)
class Transform(ABC):
    """A distribution of changes of a task; a subclass defines the change, and draws its settings.

    Attributes:
        probability: share of tasks that are changed, in [0, 1].

    Example:
        >>> from lightning_lopt.tasks import QuadraticFamily
        >>> @dataclass(frozen=True)
        ... class Renamed(Transform):
        ...     name = "renamed"
        ...     def apply(self, task, generator):
        ...         return TransformedTask(task, self.name, {"name": self.name})
        >>> Augmented(QuadraticFamily(dims=(2,)), [Renamed()]).sample(torch.Generator().manual_seed(0)).name
        'quadratic/d2/k1000/n0.1/e57d67+renamed'
    """

    name: ClassVar[str]
    probability: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"{self.name}: probability must lie in [0, 1], got {self.probability!r}.")

    @property
    def config(self) -> dict[str, Any]:
        """The class and its fields, JSON values only."""
        fields = asdict(self).items()
        return {"name": self.name} | {key: list(value) if isinstance(value, tuple) else value for key, value in fields}

    def __call__(self, task: Task, generator: torch.Generator) -> Task:
        """The task, which is changed with probability :attr:`probability`; ``generator`` makes all draws."""
        return self.apply(task, generator) if chance(self.probability, generator) else task

    @abstractmethod
    def apply(self, task: Task, generator: torch.Generator) -> Task:
        """The changed task, its settings drawn from ``generator`` alone; ``task`` itself if nothing can change."""


class Augmented(TaskFamily):
    """A family whose tasks are transformed, with the first transform innermost.

    The inner tasks are those that the plain family draws from the same generator. The family keeps its name, so that
    logs still distinguish families; names and ``config`` of its tasks contain the transforms.

    Args:
        family: the family of the inner tasks.
        transforms: transforms of each task, in this order.

    Example:
        >>> from lightning_lopt.tasks import QuadraticFamily
        >>> from lightning_lopt.tasks.transforms import GradientNoise
        >>> family = Augmented(QuadraticFamily(), [GradientNoise(probability=1.0)])
        >>> task = family.sample(torch.Generator().manual_seed(0))
        >>> task.name
        'quadratic/d2/k1000/n0.1/e57d67+noise(0.1839)'
    """

    def __init__(self, family: TaskFamily, transforms: Sequence[Transform]) -> None:
        self.family = family
        self.transforms = tuple(transforms)
        self.name = family.name

    @property
    def config(self) -> dict[str, Any]:
        return self.family.config | {"transforms": [transform.config for transform in self.transforms]}

    def sample(self, generator: torch.Generator) -> Task:
        task = self.family.sample(generator)
        for transform in self.transforms:
            task = transform(task, generator)
        return task


def tag(settings: dict[str, Any]) -> str:
    """Four characters: a hash of settings that are too long for a name."""
    return f"{derive_seed(0, json.dumps(settings)) & 0xFFFF:04x}"
