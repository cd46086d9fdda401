"""What families of networks draw in the same way: activation, batch size, initial weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_lopt.tasks._draw import chance, check_names, check_sizes, choice, log_uniform
from lightning_lopt.tasks.base import TaskFamily
from lightning_lopt.tasks.layers import ACTIVATIONS
from lightning_lopt.tasks.layout import SCHEMES


class ModelFamily(TaskFamily):
    """A distribution over networks and data; a subclass adds its own lists to :attr:`ranges`.

    Args:
        activations: names in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS` to draw from.
        batch_sizes: batch sizes to draw from.
        schemes: names in :data:`~lightning_lopt.tasks.layout.SCHEMES` to draw from.
        rescale: draw a factor on the initial weights, log-uniform in [0.5, 2], for half of the tasks.

    Attributes:
        ranges: lists that tasks draw from, by name; part of :attr:`config`.

    Raises:
        ValueError: if a list is empty or an entry is unknown.
    """

    def __init__(
        self,
        *,
        activations: Sequence[str] = tuple(ACTIVATIONS),
        batch_sizes: Sequence[int] = (16, 32, 64),
        schemes: Sequence[str] = SCHEMES,
        rescale: bool = True,
    ) -> None:
        self.rescale = rescale
        self.ranges: dict[str, tuple[Any, ...]] = {
            "activations": check_names(activations, "activations", tuple(ACTIVATIONS)),
            "batch_sizes": check_sizes(batch_sizes, "batch_sizes"),
            "schemes": check_names(schemes, "schemes", SCHEMES),
        }

    @property
    def config(self) -> dict[str, Any]:
        return {"name": self.name, "rescale": self.rescale} | {key: list(value) for key, value in self.ranges.items()}

    def pick(self, name: str, generator: torch.Generator) -> Any:
        """One entry of the list ``name`` of :attr:`ranges`."""
        return choice(self.ranges[name], generator)

    def draw_common(self, generator: torch.Generator) -> dict[str, Any]:
        """Settings that every network has, as keyword arguments of its task."""
        settings = {
            "activation": self.pick("activations", generator),
            "batch_size": self.pick("batch_sizes", generator),
        }
        rescaled = self.rescale and chance(0.5, generator)
        settings["init_scale"] = round(log_uniform(0.5, 2.0, generator), 3) if rescaled else 1.0
        schemes = self.ranges["schemes"]
        settings["scheme"] = choice(schemes, generator) if len(schemes) > 1 else schemes[0]
        return settings
