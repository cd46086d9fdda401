"""The inner step through ``torch.compile``."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_lopt.meta.inner import Theta, advance_runs
from lightning_lopt.rules.base import Params, State, UpdateRule
from lightning_lopt.tasks.base import Batch, Task


class CompiledAdvance:
    """:func:`~lightning_lopt.meta.inner.advance_runs` compiled: the same numbers up to rounding, in fewer kernels.

    What is compiled is one inner step of all runs, anew for each architecture of a task (shapes, batch size,
    activation): worth it where few architectures see many steps. Where compiling fails (an operation that cannot be
    traced, no C++ compiler, more architectures than ``torch._dynamo.config.recompile_limit``), that architecture stays
    eager and the reason is logged once.

    Args:
        backend: as in ``torch.compile``.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.compiled = torch.compile(advance_runs, fullgraph=True, dynamic=False, backend=backend)
        self.works: dict[Any, bool] = {}

    def __call__(
        self,
        rule: UpdateRule,
        task: Task,
        theta: Theta,
        params: Params,
        state: State,
        batch: Batch,
        step: Tensor,
        total_steps: Tensor,
    ) -> tuple[Params, State, Tensor]:
        arguments = (rule, task, theta, params, state, batch, step, total_steps)
        key = (type(rule), type(task), torch.is_grad_enabled(), _shapes(theta), _shapes(params), _shapes(batch))
        if self.works.get(key, True):
            try:
                result = self.compiled(*arguments)
            except Exception as error:  # whatever is wrong with the step itself is raised again by the eager one
                self.works[key] = False
                rank_zero_warn(f"inner steps of {task.name} are not compiled: {type(error).__name__}: {error}")
            else:
                self.works[key] = True
                return result
        return advance_runs(*arguments)


def _shapes(tensors: dict[str, Tensor]) -> tuple[Any, ...]:
    return tuple((name, value.shape, value.dtype, value.device) for name, value in tensors.items())
