"""The common part of families of fine-tuning tasks: draws of a pretrained network and of its trained part."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from lightning_lopt.checks import check_name_options, check_size_options
from lightning_lopt.seeding import generator as derived_generator
from lightning_lopt.tasks._draw import integer, uniform
from lightning_lopt.tasks.base import Task
from lightning_lopt.tasks.finetune.pretraining import Pretraining
from lightning_lopt.tasks.finetune.task import FineTuneTask
from lightning_lopt.tasks.model_family import ModelFamily

TRAINED = ("all", "part", "adapters")
"""The part trained besides the head: the whole body, all but its first layers, or low-rank adapters of its matrices."""

Source = TypeVar("Source")


@dataclass(frozen=True)
class Body(Generic[Source]):
    """A pretrained network, the common start of several tasks.

    Attributes:
        pretraining: computes the parameters of the network at first use.
        settings: keyword arguments of its architecture, also for the network of a new task.
        source: data from which the family draws the new tasks.
        label: short name of the network.
        names: the argument ``body`` of :class:`~lightning_lopt.tasks.finetune.FineTuneTask`.
        config: settings that were drawn for the network, JSON values only.
    """

    pretraining: Pretraining
    settings: dict[str, Any]
    source: Source
    label: str
    names: Mapping[str, str] | None = None
    config: dict[str, Any] = field(default_factory=dict)


class FineTuneFamily(ModelFamily, Generic[Source]):
    """Tasks of few examples for a small number of pretrained networks.

    The networks are numbered, and each network is drawn from its number alone. A network is pretrained when a task
    needs its parameters for the first time; this takes seconds, once in a process.

    Args:
        bodies: number of pretrained networks to draw from, >= 1.
        steps: steps of each pretraining, >= 1.
        trained: some of :data:`TRAINED` to draw from.
        ranks: ranks of the adapters to draw from.
        options: ``activations``, ``batch_sizes``, ``schemes``, ``init_scales`` of
            :class:`~lightning_lopt.tasks.ModelFamily`.

    Raises:
        ValueError: if a list is empty or an entry is unknown or out of range.

    Example:
        >>> from lightning_lopt.tasks.finetune import FineTuneStudents  # one of the families
        >>> issubclass(FineTuneStudents, FineTuneFamily)
        True
    """

    def __init__(
        self,
        *,
        bodies: int = 8,
        steps: int = 400,
        trained: Sequence[str] = ("all", "all", "part", "adapters"),
        ranks: Sequence[int] = (1, 2, 4),
        **options: Any,
    ) -> None:
        super().__init__(**{"batch_sizes": (8, 16, 32), "init_scales": (1.0, 1.0), "schemes": ("uniform",), **options})
        self.bodies = check_size_options([bodies], "bodies")[0]
        self.steps = check_size_options([steps], "steps")[0]
        self.ranges |= {
            "trained": check_name_options(trained, "trained", TRAINED),
            "ranks": check_size_options(ranks, "ranks"),
        }
        self._bodies: dict[int, Body[Source]] = {}

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"bodies": self.bodies, "steps": self.steps}

    def sample(self, generator: torch.Generator) -> FineTuneTask:
        number = integer(0, self.bodies, generator)
        if number not in self._bodies:
            self._bodies[number] = self._draw_body(derived_generator(number, self.name), number)
        body = self._bodies[number]
        mode = self.pick("trained", generator)
        rank = self.pick("ranks", generator) if mode == "adapters" else 0
        share = uniform(0.25, 0.9, generator) if mode == "part" else 0.0
        batch_size = self.pick("batch_sizes", generator)
        task = self._draw_task(body, batch_size, generator)
        names = FineTuneTask(task, body.pretraining, body=body.names).body
        frozen = list(names)[: max(round(share * len(names)), 1)] if mode == "part" else []
        return FineTuneTask(task, body.pretraining, body=names, frozen=frozen, rank=rank)

    def new_task_name(self, body: Body[Source], batch_size: int, generator: torch.Generator) -> str:
        """A task name with a random tag, since many tasks start from the same network."""
        return f"{self.name}/{body.label}~{integer(0, 16**6, generator):06x}/b{batch_size}"

    def draw_architecture(self, generator: torch.Generator) -> dict[str, Any]:
        """Activation, scheme and scale of initial weights, as keyword arguments of a task."""
        return {key: value for key, value in self.draw_common(generator).items() if key != "batch_size"}

    @abstractmethod
    def _draw_body(self, generator: torch.Generator, number: int) -> Body[Source]:
        """Draw a network and the task of its pretraining."""

    @abstractmethod
    def _draw_task(self, body: Body[Source], batch_size: int, generator: torch.Generator) -> Task:
        """Draw a new task for the network, with few examples."""
