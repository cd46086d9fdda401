"""The inner step through ``torch.compile``."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_lopt.meta.inner import Stepped, Theta, advance_runs
from lightning_lopt.rules.base import Params, State, UpdateRule
from lightning_lopt.tasks.base import Batch, Split, Task


class CompiledAdvance:
    """:func:`~lightning_lopt.meta.inner.advance_runs` compiled: the same numbers up to rounding, in fewer kernels.

    What is compiled is one inner step of all runs, anew for each architecture of a task (shapes, batch size,
    activation): worth it where few architectures see many steps. Where compiling fails (an operation that cannot be
    traced, no C++ compiler, more architectures than ``torch._dynamo.config.recompile_limit``), that architecture stays
    eager, and the reason is logged once.

    On CUDA, kernels that do not depend on each other are combined: 59 instead of 88 in a step of Celo2's rule.

    Several steps in one graph do not pay on a CPU: with Celo2's rule (the work of
    ``examples/benchmarks/meta_throughput.py``, one thread, medians of 15) eager steps make 5,021 inner steps a
    second, one compiled step 10,426 after 12 s of compiling, and graphs of 2, 5 and 10 steps 10,627, 11,028 and 11,147
    after 32, 78 and 240 s.

    Args:
        backend: as in ``torch.compile``.
    """

    def __init__(self, backend: str = "inductor") -> None:
        combined = backend == "inductor" and torch.cuda.is_available()
        options: dict[str, Any] | None = {"combo_kernels": True} if combined else None
        self.compiled: Any = torch.compile(
            advance_runs, fullgraph=True, dynamic=False, backend=backend, options=options
        )
        self.eager: set[Any] = set()  # architectures that could not be compiled

    def __call__(
        self,
        rule: UpdateRule,
        task: Task,
        theta: Theta,
        params: Params,
        state: State,
        batches: dict[Split, Batch],
        step: Tensor,
        total_steps: Tensor,
        phase: int | None = None,
    ) -> Stepped:
        arguments = (rule, task, theta, params, state, batches, step, total_steps, phase)
        shapes = [_shapes(tensors) for tensors in (theta, params, *batches.values())]
        key = (type(rule), type(task), torch.is_grad_enabled(), *shapes)
        if key not in self.eager:
            try:
                result: Stepped = self.compiled(*arguments)
                return result
            except Exception as error:  # whatever is wrong with the step itself is raised again by the eager one
                self.eager.add(key)
                rank_zero_warn(f"inner steps of {task.name} are not compiled: {type(error).__name__}: {error}")
        return advance_runs(*arguments)


def _shapes(tensors: dict[str, Tensor]) -> tuple[Any, ...]:
    return tuple((name, value.shape, value.dtype, value.device) for name, value in tensors.items())
