"""Inner steps through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from lightning_lopt.compiling import CompiledFunction, own_copy, signature_of
from lightning_lopt.meta.batches import BatchDraws
from lightning_lopt.meta.engine.execution import Advanced, Execution, steps_one_by_one
from lightning_lopt.meta.engine.step import SteppedRuns, advance_runs
from lightning_lopt.meta.runs import InnerRuns
from lightning_lopt.meta.theta import Theta
from lightning_lopt.rules.base import UpdateRule


class Compiled(Execution):
    """Compiled inner steps: results of :class:`~lightning_lopt.meta.engine.Eager` up to rounding, with fewer kernels.

    One inner step of all runs is compiled, once for each architecture of a task (shapes, batch size, activation) and
    each phase of the rule (:meth:`UpdateRule.phase_of <lightning_lopt.UpdateRule.phase_of>`). Compiling
    saves time for few architectures with many steps each. If compiling fails, the steps of that architecture are eager
    (:class:`~lightning_lopt.compiling.CompiledFunction`).

    On CUDA, kernels that do not depend on each other are combined: a step of Celo2's rule has 59 kernels instead of 88.

    Each graph is one step, since graphs of several steps compile much longer and are hardly faster on a CPU (Celo2's
    rule, ``examples/benchmarks/meta_throughput.py``, one thread, medians of 15 measurements):

    ===============  ======================  ==============
    steps per graph  inner steps per second  compile time/s
    ===============  ======================  ==============
    eager            5,021                   0
    1                10,426                  12
    2                10,627                  32
    5                11,028                  78
    10               11,147                  240
    ===============  ======================  ==============

    Args:
        backend: as in ``torch.compile``.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.meta import start_runs, unroll
        >>> from lightning_lopt.meta.theta import stacked_theta
        >>> from lightning_lopt.tasks import Quadratic
        >>> rule, bowl = AdamRule(), Quadratic(torch.tensor([1.0, 4.0]))
        >>> runs = start_runs(rule, bowl, pairs=1, horizon=10, seed=0, copies=1)
        >>> compiled = Compiled(backend="eager")  # "inductor" for speed; "eager" needs no compiler
        >>> runs, losses = unroll(rule, stacked_theta([rule], 1), runs, 3, torch.Generator(), execution=compiled)
        >>> tuple(losses.shape)
        (1, 3, 1)
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self._backend = backend
        self._functions: dict[int | None, CompiledFunction[SteppedRuns]] = {}  # by phase

    @property
    def uncompiled(self) -> list[str]:
        """Reasons why steps are not compiled, one for each architecture and phase without compiled steps."""
        return [reason for function in self._functions.values() for reason in function.uncompiled.values()]

    def step(self, *arguments: Any) -> SteppedRuns:
        rule, task, theta, params, _, batches, _, phase = arguments
        if phase not in self._functions:
            self._functions[phase] = CompiledFunction(_steps_of(phase), backend=self._backend)
        signature = (type(rule), type(task), *signature_of(theta, params, *batches.values()))
        return self._functions[phase](*arguments, signature=signature, label=f"inner steps of {task.name}")

    def steps(
        self, rule: UpdateRule, theta: Theta, groups: Sequence[InnerRuns], draws: Sequence[BatchDraws], steps: int
    ) -> Advanced:
        return steps_one_by_one(self.step, rule, theta, groups, draws, steps)


@cache
def _steps_of(phase: int | None) -> Callable[..., SteppedRuns]:
    """A copy of :func:`advance_runs` for each phase, since torch compiles a function for only eight argument sets."""
    return own_copy(advance_runs)
