"""Tasks that start from given parameters, for instance from the results of another training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_lopt.rules.base import Params
from lightning_lopt.seeding import generator as derived_generator
from lightning_lopt.tasks.base import Task
from lightning_lopt.tasks.transforms.base import TransformedTask


class GivenStartTask(TransformedTask):
    """Some tensors start at given values, the same in every run; the other tensors are drawn as in ``task``.

    Args:
        task: the task to change.
        start: values by name, in the shapes of ``task.init``.

    Raises:
        ValueError: if a name is unknown or a shape differs.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Quadratic(torch.tensor([1.0, 4.0]))
        >>> GivenStartTask(bowl, {"x": torch.tensor([1.0, -2.0])}).init(torch.Generator())
        {'x': tensor([ 1., -2.])}
    """

    def __init__(self, task: Task, start: Mapping[str, Tensor]) -> None:
        initial_params = task.init(derived_generator(0, "shapes"))
        for name, value in start.items():
            if name not in initial_params or initial_params[name].shape != value.shape:
                expected = (
                    tuple(initial_params[name].shape) if name in initial_params else f"one of {sorted(initial_params)}"
                )
                raise ValueError(f"start has {name!r} of shape {tuple(value.shape)}; {task.name} needs {expected}.")
        super().__init__(task, f"start({len(start)})", {"name": "given_start", "tensors": sorted(start)})
        self.start = {name: value.detach().clone() for name, value in start.items()}

    def init(self, generator: torch.Generator) -> Params:
        return super().init(generator) | {name: value.clone() for name, value in self.start.items()}
