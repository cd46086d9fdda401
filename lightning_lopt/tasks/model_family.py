"""The common part of families of networks: draws of activation, batch size and initial weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_lopt.checks import check_name_options, check_number_options, check_size_options
from lightning_lopt.tasks._draw import chance, choice, log_uniform
from lightning_lopt.tasks.base import TaskFamily
from lightning_lopt.tasks.layers import ACTIVATIONS
from lightning_lopt.tasks.layout import SCHEMES


class ModelFamily(TaskFamily):
    """A distribution over networks and data; a subclass adds its own lists to :attr:`ranges`.

    Args:
        activations: names in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS` to draw from; ``None`` if the
            networks have no choice of activation.
        batch_sizes: batch sizes to draw from.
        schemes: names in :data:`~lightning_lopt.tasks.layout.SCHEMES` to draw from.
        init_scales: bounds of a factor on the initial weights, drawn log-uniformly for half of the tasks; the other
            half has the factor 1.

    Attributes:
        ranges: lists that tasks draw from, by name; part of :attr:`config`.

    Raises:
        ValueError: if a list is empty or an entry is unknown.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> class Bowls(ModelFamily):  # a custom family, which adds a list to the common lists
        ...     name = "bowls"
        ...     def __init__(self, curvatures=(1.0, 10.0), **options):
        ...         super().__init__(activations=None, **options)
        ...         self.ranges["curvatures"] = tuple(curvatures)
        ...     def sample(self, generator):
        ...         return Quadratic(torch.tensor([1.0, self.pick("curvatures", generator)]))
        >>> list(Bowls(batch_sizes=(16,)).config)
        ['name', 'batch_sizes', 'schemes', 'init_scales', 'curvatures']
    """

    def __init__(
        self,
        *,
        activations: Sequence[str] | None = tuple(ACTIVATIONS),
        batch_sizes: Sequence[int] = (16, 32, 64),
        schemes: Sequence[str] = SCHEMES,
        init_scales: tuple[float, float] = (0.5, 1.5),
    ) -> None:
        low, high = check_number_options(init_scales, "init_scales")
        if not 0 < low <= high:
            raise ValueError(f"init_scales must be two numbers > 0, the smaller one first, got {init_scales!r}.")
        self.ranges: dict[str, tuple[Any, ...]] = {
            "batch_sizes": check_size_options(batch_sizes, "batch_sizes"),
            "schemes": check_name_options(schemes, "schemes", SCHEMES),
            "init_scales": (low, high),
        }
        if activations is not None:
            self.ranges["activations"] = check_name_options(activations, "activations", tuple(ACTIVATIONS))

    @property
    def config(self) -> dict[str, Any]:
        return {"name": self.name} | {key: list(value) for key, value in self.ranges.items()}

    def pick(self, name: str, generator: torch.Generator) -> Any:
        """One entry of the list ``name`` of :attr:`ranges`."""
        return choice(self.ranges[name], generator)

    def between(self, name: str, generator: torch.Generator) -> int:
        """An integer between the two entries of the list ``name`` of :attr:`ranges`, uniformly in its logarithm."""
        low, high = self.ranges[name]
        return round(log_uniform(low, high, generator))

    def draw_common(self, generator: torch.Generator) -> dict[str, Any]:
        """Draw the settings that every network has, as keyword arguments of its task."""
        settings: dict[str, Any] = {}
        if "activations" in self.ranges:
            settings["activation"] = self.pick("activations", generator)
        settings["batch_size"] = self.pick("batch_sizes", generator)
        low, high = self.ranges["init_scales"]
        is_rescaled = low < high and chance(0.5, generator)
        settings["init_scale"] = round(log_uniform(low, high, generator), 3) if is_rescaled else 1.0
        schemes = self.ranges["schemes"]
        settings["scheme"] = choice(schemes, generator) if len(schemes) > 1 else schemes[0]
        return settings

    def task_name(self, label: str, shape: str, settings: dict[str, Any]) -> str:
        """A name that contains family, data, architecture, activation and batch size."""
        parts = (self.name, label, shape, settings.get("activation"), f"b{settings['batch_size']}")
        return "/".join(part for part in parts if part is not None)
