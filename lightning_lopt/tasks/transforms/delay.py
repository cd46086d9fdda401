"""Delayed gradients, taken at the parameters of some steps ago, as in asynchronous training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_lopt.checks import check_size_options
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks._draw import choice
from lightning_lopt.tasks.base import Batch, Task
from lightning_lopt.tasks.transforms.base import Transform, TransformedTask


class DelayedGradientTask(TransformedTask):
    r"""Loss and gradient of an inner step are taken at the parameters of ``delay`` steps ago.

    .. math:: x_{t+1} = x_t + u\big(\nabla L(x_{\max(t - d, 0)};\, z_t)\big)

    The rule and the meta-loss also get the delayed loss, as from an asynchronous worker; :meth:`loss` is the loss at
    the present parameters. Past parameters are carried entries of ``params`` with leading axis d, the oldest first.

    Args:
        task: the task to change.
        delay: number d >= 1 of inner steps; the task stores d further copies of the trained tensors.

    Raises:
        ValueError: if ``delay`` is not a positive integer.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = DelayedGradientTask(Quadratic(torch.tensor([1.0, 4.0])), delay=2)
        >>> bowl.name
        'quadratic/d2+delay(2)'
    """

    def __init__(self, task: Task, delay: int) -> None:
        check_size_options([delay], "delay")
        super().__init__(task, f"delay({delay})", {"name": DelayedGradients.name, "delay": delay})
        self.delay = delay

    def init(self, generator: torch.Generator) -> Params:
        params = super().init(generator)
        return params | {self.entry_name(name): torch.stack([params[name]] * self.delay) for name in self.roles}

    def gradient(self, params: Params, batch: Batch) -> tuple[Params, Tensor, Params]:
        past = {name: params[self.entry_name(name)] for name in self.roles}
        stale = {name: value[0] for name, value in past.items()}
        grads, loss, carried = super().gradient(params | stale, batch)
        queue = {self.entry_name(name): torch.cat([value[1:], params[name][None]]) for name, value in past.items()}
        return grads, loss, carried | queue


@dataclass(frozen=True)
class DelayedGradients(Transform):
    """:class:`DelayedGradientTask` with one of several delays.

    Attributes:
        delays: inner steps, each >= 1.

    Example:
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Quadratic(torch.tensor([1.0, 4.0]))
        >>> DelayedGradients(delays=(4,))(bowl, torch.Generator()).name
        'quadratic/d2+delay(4)'
    """

    name: ClassVar[str] = "delayed_gradients"
    delays: Sequence[int] = (1, 2, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size_options(self.delays, "delays")

    def apply(self, task: Task, generator: torch.Generator) -> Task:
        return DelayedGradientTask(task, choice(self.delays, generator))
