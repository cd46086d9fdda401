"""Reparametrisation: the same losses with other units of the parameters, which change the dynamics of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from lightning_lopt.checks import check_range
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks._draw import log_uniform
from lightning_lopt.tasks.accelerations import computation_of, computes
from lightning_lopt.tasks.base import Batch, Task
from lightning_lopt.tasks.transforms.base import Transform, TransformedTask, tag


@computes(lambda task: computation_of(task.task))
class ReparametrisedTask(TransformedTask):
    r"""Trains :math:`u = p / s` instead of the parameters p.

    .. math:: L'(u) = L(s u), \qquad \nabla L'(u) = s\, \nabla L(s u), \qquad u_0 = p_0 / s

    The scales are carried entries of ``params``, so that tasks with different scales share compiled code.

    Args:
        task: the task to change.
        scale: s > 0, one number for all trained tensors or a number for each name in ``task.roles``.

    Raises:
        ValueError: if a scale is missing or not a positive number.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Quadratic(torch.tensor([1.0, 4.0]))
        >>> bowl.init(torch.Generator())["x"], ReparametrisedTask(bowl, 10.0).init(torch.Generator())["x"]
        (tensor([1., 1.]), tensor([0.1000, 0.1000]))
    """

    def __init__(self, task: Task, scale: float | Mapping[str, float]) -> None:
        scales = dict(scale) if isinstance(scale, Mapping) else dict.fromkeys(task.roles, scale)
        if scales.keys() != task.roles.keys():
            raise ValueError(
                f"scale names the tensors {sorted(scales)}, but {task.name} trains {sorted(task.roles)}; "
                "give one number for each of these tensors, or one number for all."
            )
        if not all(0 < value < float("inf") for value in scales.values()):
            raise ValueError(f"scale must be positive numbers, got {scale!r}.")
        settings = {"name": Reparametrise.name, "scale": scales if isinstance(scale, Mapping) else scale}
        label = f"each~{tag(settings)}" if isinstance(scale, Mapping) else f"{scale:g}"
        super().__init__(task, f"reparam({label})", settings)
        self.scales = scales

    def inner(self, params: Params) -> Params:
        return self._scaled(super().inner(params), params)

    def init(self, generator: torch.Generator) -> Params:
        params = self.task.init(generator)
        scales = {
            self.entry_name(name): torch.tensor(scale, dtype=params[name].dtype) for name, scale in self.scales.items()
        }
        return {name: value / self.scales.get(name, 1.0) for name, value in params.items()} | scales

    def gradient(self, params: Params, batch: Batch) -> tuple[Params, torch.Tensor, Params]:
        grads, loss, carried = super().gradient(params, batch)
        return self._scaled(grads, params), loss, carried

    def _scaled(self, values: Params, params: Params) -> Params:
        """Each trained tensor times its scale."""
        return {
            name: value * params[self.entry_name(name)] if name in self.roles else value
            for name, value in values.items()
        }


@dataclass(frozen=True)
class Reparametrise(Transform):
    """:class:`ReparametrisedTask` with scales drawn log-uniformly.

    Attributes:
        low, high: bounds of the scale, > 0.
        per_tensor: draw a scale for each tensor, not one scale for all tensors.

    References: Metz et al. 2022, https://arxiv.org/abs/2211.09760; Moudgil et al. 2025, https://arxiv.org/abs/2501.12670.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Quadratic(torch.tensor([1.0, 4.0]))
        >>> Reparametrise(low=10.0, high=10.0)(bowl, torch.Generator()).name
        'quadratic/d2+reparam(10)'
    """

    name: ClassVar[str] = "reparametrise"
    low: float = 1e-3
    high: float = 1e3
    per_tensor: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.low, self.high, self.name)

    def apply(self, task: Task, generator: torch.Generator) -> Task:
        if self.per_tensor:
            return ReparametrisedTask(task, {name: self._scale(generator) for name in task.roles})
        return ReparametrisedTask(task, self._scale(generator))

    def _scale(self, generator: torch.Generator) -> float:
        return float(f"{log_uniform(self.low, self.high, generator):.4g}")
