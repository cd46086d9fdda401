"""The steps of stacks of parameters through graphs that inductor has compiled."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_lopt.inductor_graphs import compiled
from lightning_lopt.operations import Run
from lightning_lopt.optim.traced_steps import Graph, TracedSteps
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.rules.contract.stacks import Stack
from lightning_lopt.rules.shared.blocks import whole_tensors

_log = logging.getLogger(__name__)


class CompiledSteps(TracedSteps):
    """:class:`TracedSteps` with compiled graphs: they give the same numbers up to rounding, with fewer kernels.

    All kinds of stacks get graphs, on any device, at the second step with such a stack. The parts of a step are
    compiled one by one and called in turn: a graph of the whole step would be compiled once for each phase of a rule.
    Weight decay is an input of the graphs, and the graphs round state that is stored in a narrower type. If compiling
    fails, for instance without a C++ compiler, one warning says so, and no later step is compiled.
    """

    build: ClassVar[Callable[..., Run]] = staticmethod(compiled)
    checks_parts: ClassVar[bool] = True

    def _prepared(self, stacks: Sequence[Stack]) -> Sequence[Stack]:
        return [_with_decay_as_tensor(stack) for stack in stacks]

    def _may_begin(self, steps_ahead: int) -> bool:
        return True

    def _covers(self, stack: Stack) -> bool:
        return True

    def _pays(self, uses: int) -> bool:
        return True

    def _joins(self, uses: int, seeds: Sequence[Tensor | None]) -> bool:
        return True

    def _new_graph(self, rule: UpdateRule, graph_name: str, make: Callable[[], Graph]) -> Graph:
        began = time.perf_counter()
        with whole_tensors():  # the compiler generates its own loops
            graph = make()
        _log.info("LearnedOptimizer: %s: compiled in %.1f s", graph_name, time.perf_counter() - began)
        return graph

    def _fail(self, why: object) -> None:
        self.failure = str(why)
        self._delete_graphs()
        rank_zero_warn(f"LearnedOptimizer: steps are not compiled: {why}")


def _with_decay_as_tensor(stack: Stack) -> Stack:
    """A stack whose weight decay, unless it is 0, is a tensor, so that a change of weight decay needs no new graph."""
    decay, count = stack.weight_decay, len(stack.names)
    if isinstance(decay, Tensor) or decay == 0.0:
        return stack
    return replace(stack, weight_decay=stack.params.new_full((count,) if count > 1 else (), decay))
