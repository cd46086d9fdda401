"""The inner step through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_lopt.meta.inner import Theta, advance_runs
from lightning_lopt.rules.base import Params, State, UpdateRule
from lightning_lopt.tasks.base import Batch, Task

GRAPHS = "reduce-overhead"  # the mode of torch.compile that records CUDA graphs
SMALL = 2**24  # parameters of all runs together up to which copying them costs less than launching kernels one by one


class CompiledAdvance:
    """:func:`~lightning_lopt.meta.inner.advance_runs` compiled: the same numbers up to rounding, in fewer kernels.

    What is compiled is one inner step of all runs, anew for each architecture of a task (shapes, batch size,
    activation): worth it where few architectures see many steps. Where compiling fails (an operation that cannot be
    traced, no C++ compiler, more architectures than ``torch._dynamo.config.recompile_limit``), that architecture stays
    eager, or does without CUDA graphs, and the reason is logged once.

    Several steps in one graph do not pay on a CPU: with Celo2's rule (the work of
    ``examples/benchmarks/meta_throughput.py``, one thread, medians of 15) eager steps make 5,021 inner steps a
    second, one compiled step 10,426 after 12 s of compiling, and graphs of 2, 5 and 10 steps 10,627, 11,028 and 11,147
    after 32, 78 and 240 s.

    Args:
        backend: as in ``torch.compile``.
        cuda_graphs: try ``mode="reduce-overhead"`` first; ``None`` to do so where all runs together are small and live
            on a CUDA device. Never where a gradient is needed, which would find the steps before the last overwritten.
    """

    def __init__(self, backend: str = "inductor", cuda_graphs: bool | None = None) -> None:
        self.backend = backend
        self.cuda_graphs = cuda_graphs
        self.modes: dict[Any, list[str]] = {}  # for each architecture, those that have not failed; the first is used
        self._compiled: dict[str, Any] = {}

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
        full: bool = True,
    ) -> tuple[Params, State, Tensor]:
        arguments = (rule, task, theta, params, state, batch, step, total_steps, full)
        key = (type(rule), type(task), torch.is_grad_enabled(), _shapes(theta), _shapes(params), _shapes(batch))
        modes = self.modes.setdefault(key, self._to_try(params.values()))
        while modes:
            try:
                return self._advance(modes[0], arguments)
            except Exception as error:  # whatever is wrong with the step itself is raised again by the eager one
                rank_zero_warn(
                    f"inner steps of {task.name} are not compiled in mode {modes.pop(0)!r}, but "
                    f"{f'in mode {modes[0]!r}' if modes else 'eager'}: {type(error).__name__}: {error}"
                )
        return advance_runs(*arguments)

    def _to_try(self, params: Iterable[Tensor]) -> list[str]:
        """Modes, the preferred one first."""
        graphs = _small_on_cuda(params) if self.cuda_graphs is None else self.cuda_graphs
        return [GRAPHS, "default"] if graphs and not torch.is_grad_enabled() else ["default"]

    def _advance(self, mode: str, arguments: tuple[Any, ...]) -> tuple[Params, State, Tensor]:
        if mode not in self._compiled:
            self._compiled[mode] = torch.compile(
                advance_runs, fullgraph=True, dynamic=False, backend=self.backend, mode=mode
            )
        if mode != GRAPHS:
            result: tuple[Params, State, Tensor] = self._compiled[mode](*arguments)
            return result
        # A graph writes its results to the same memory each time, and they are the next step's arguments.
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        copied: tuple[Params, State, Tensor] = pytree.tree_map(torch.clone, self._compiled[mode](*arguments))
        return copied


def _small_on_cuda(params: Iterable[Tensor]) -> bool:
    values = list(params)
    return all(value.is_cuda for value in values) and sum(value.numel() for value in values) <= SMALL


def _shapes(tensors: dict[str, Tensor]) -> tuple[Any, ...]:
    return tuple((name, value.shape, value.dtype, value.device) for name, value in tensors.items())
