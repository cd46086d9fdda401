"""The step of a stack of parameters through ``torch.compile``: a graph for each kind of stack."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from lightning_lopt.compiling import CompiledFunction, own_copy
from lightning_lopt.optim.stack_steps import StackStep, step_of_stack
from lightning_lopt.rules.base import StepContext, UpdateRule
from lightning_lopt.rules.contract.stacks import Stack


class CompiledSteps:
    """:func:`~lightning_lopt.optim.stack_steps.step_of_stack`, compiled: the same numbers up to rounding.

    A graph belongs to the number of tensors of a stack, their shape, type, device and role, and whether their step is
    a full one. If compiling fails, for instance without a C++ compiler, one warning says so; no later
    step is compiled, and stacks without a graph are stepped without one.

    Attributes:
        backend: as in ``torch.compile``.
        fails: whether compiling has failed.
    """

    backend: ClassVar[str | Callable[..., Any]] = "inductor"

    def __init__(self) -> None:
        self.fails = False
        self._functions: dict[Hashable, CompiledFunction[StackStep]] = {}

    def __call__(
        self, rule: UpdateRule, stack: Stack, controls: Mapping[str, Tensor], at: Any, seed: Tensor | None = None
    ) -> StackStep:
        decay = stack.weight_decay
        decays = isinstance(decay, Tensor) or decay != 0.0
        params, count = stack.params, len(stack.names)
        kind = (type(rule), count, params.shape, params.dtype, params.device, stack.role, stack.full, decays)
        if kind not in self._functions:
            if self.fails:
                return step_of_stack(rule, stack, controls, at, seed)
            # a copy of the function for each kind, since torch compiles one function for a few shapes only
            self._functions[kind] = CompiledFunction(own_copy(step_of_stack), backend=self.backend)
        # A change of a number or a text makes torch compile again; a change of the entries of a tensor does not.
        if decays and not isinstance(decay, Tensor):
            decay = params.new_full((count,) if count > 1 else (), decay)
        alike = replace(stack, names=("",) * count, weight_decay=decay)
        at = replace(at, roles={}, weight_decay={}, phase=None) if isinstance(at, StepContext) else at
        function, what = self._functions[kind], f"{stack.role}, {tuple(params.shape)}, full={stack.full}"
        result = function(rule, alike, controls, at, seed, signature=kind, what=f"LearnedOptimizer: step of {what}")
        self.fails = self.fails or bool(function.uncompiled)
        return result
