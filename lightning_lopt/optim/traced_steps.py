"""Traces the steps of stacks of parameters into graphs that run without Python, one for each kind of stack."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from operator import is_
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_lopt.operations import Run
from lightning_lopt.optim.common_inputs import CommonInputs
from lightning_lopt.optim.stack_kinds import StackKinds, decay_of, prelude_key, stack_key, step_key
from lightning_lopt.optim.stack_steps import (
    ModelStep,
    StackStep,
    fit_together,
    step_of_stack,
    steps_of_stacks,
    with_stores,
)
from lightning_lopt.optim.step_graphs import PreludeGraph, StepGraph, WholeStepGraph
from lightning_lopt.rules.base import Columns, StepContext, UpdateRule
from lightning_lopt.rules.contract.stacks import Stack
from lightning_lopt.script_graphs import interpreted
from lightning_lopt.tracing import UntraceableError, same_bits

_log = logging.getLogger(__name__)
Graph = TypeVar("Graph")

FIRST = 4  # number of steps before tracing begins, so that short runs spend no time on graphs
RETURNS = 1  # number of untraced steps of each kind of stack; a stack whose kind always changes is never traced
LEAST_USES = 20  # least number of planned steps of a kind of stack; tracing takes 4 to 12 ms
LEAST_JOINED_USES = 15  # the same of the graph of a whole step; joining its parts takes 7 ms
MOST_KINDS = 256
MOST_ENTRIES = 2**20  # entries of a stack above which a graph saves no time: arithmetic takes much longer than calls


class TracedSteps:
    """Runs :func:`~lightning_lopt.optim.stack_steps.steps_of_stacks` through graphs, which compute the same bits.

    Stacks share a graph if they agree in the number of tensors, in their shape, type and role, in the types of their
    state, in their weight decay, and in whether the step is a full one. One more graph computes :meth:`UpdateRule.at`
    and :meth:`UpdateRule.exchanged`, which read all tensors. If all stacks have graphs and few entries
    (:func:`~lightning_lopt.optim.stack_steps.fit_together`), one graph calls all these graphs. Stacks of more than
    :data:`MOST_ENTRIES` entries, and stacks on other devices than the CPU, are stepped without a graph. If a step
    cannot be traced, the log gives the reason once, at level ``INFO``, and no later step is traced.

    Attributes:
        build: makes a function from recorded operations.
        checks_parts: whether the graphs of the parts of a step are checked, and not the graph of the whole step.
        failure: the reason why tracing has ended; empty while steps are traced.
    """

    build: ClassVar[Callable[..., Run]] = staticmethod(interpreted)
    checks_parts: ClassVar[bool] = False

    def __init__(self) -> None:
        self.failure = ""
        self._calls = 0
        self._kinds = StackKinds()
        self._signature: Any = None
        self._theta: list[Tensor] = []
        self._delete_graphs()

    @property
    def count(self) -> int:
        """Number of graphs."""
        return len(self._preludes) + len(self._steps)

    def __call__(
        self,
        rule: UpdateRule,
        stacks: Sequence[Stack],
        seeds: Sequence[Tensor | None],
        shared: dict[str, Tensor],
        context: StepContext,
        theta: list[Tensor],
        *,
        steps_ahead: int,
    ) -> ModelStep:
        """The step of all stacks, as from :func:`~lightning_lopt.optim.stack_steps.steps_of_stacks`.

        Args:
            rule, stacks, seeds, shared, context: as in that function.
            theta: all tensors of the rule.
            steps_ahead: number of planned steps that remain; 0 if unknown.
        """
        self._calls, stacks = self._calls + 1, self._prepared(stacks)
        if self.failure or not self._may_begin(steps_ahead) or not any(map(self._covers, stacks)):
            return steps_of_stacks(rule, stacks, seeds, shared, context)
        self._follow(rule, theta)
        kinds = self._kinds.of(stacks)
        if fit_together(stacks) and all(map(self._covers, stacks)):
            uses = steps_ahead // rule.period if any(stack.full for stack in stacks) else steps_ahead
            model_step = self._whole_step(rule, stacks, kinds, seeds, shared, context, uses)
            if model_step is not None:
                return model_step
        prelude = self._prelude(rule, stacks, kinds, shared, context, steps_ahead)
        if prelude is None:
            for stack, kind in zip(stacks, kinds, strict=True):
                self._returns(stack_key(stack, kind))
            return steps_of_stacks(rule, stacks, seeds, shared, context)
        extremes, at, controls, new_shared = prelude
        stacks = with_stores(rule, stacks, seeds, extremes, context)

        def steps_in_turn() -> Iterator[StackStep]:
            for stack, kind, columns, seed in zip(stacks, kinds, controls, seeds, strict=True):
                # The step has no name, which would keep its tensors in memory while the next step is computed.
                yield (
                    self._step(rule, stack, kind, columns, at, seed, steps_ahead) if self._covers(stack) else None
                ) or step_of_stack(rule, stack, columns, at.tree, seed)

        return ModelStep(new_shared, extremes, steps_in_turn())

    def _prepared(self, stacks: Sequence[Stack]) -> Sequence[Stack]:
        """The stacks in the form that graphs take as input."""
        return stacks

    def _may_begin(self, steps_ahead: int) -> bool:
        """Whether this step may make or use graphs."""
        return self._calls > FIRST and (self.count > 0 or self._pays(steps_ahead))

    def _covers(self, stack: Stack) -> bool:
        """Whether the step of a stack may get a graph."""
        return stack.params.numel() <= MOST_ENTRIES and stack.params.device.type == "cpu"

    def _joins(self, uses: int, seeds: Sequence[Tensor | None]) -> bool:
        """Whether the graphs of a step are joined into one graph."""
        return uses >= LEAST_JOINED_USES and all(seed is None for seed in seeds)

    def _pays(self, uses: int) -> bool:
        """Whether a graph saves more time than its construction takes."""
        return uses >= LEAST_USES

    def _new_graph(self, rule: UpdateRule, graph_name: str, make: Callable[[], Graph]) -> Graph:
        """The graph that ``make`` returns; the first graph adds a line to the log."""
        graph = make()
        if not self.count:
            label = rule.rule_name or type(rule).__name__
            _log.info("LearnedOptimizer: steps of rule %r are traced from here on", label)
        return graph

    def _follow(self, rule: UpdateRule, theta: list[Tensor]) -> None:
        """Delete the graphs if the rule, its parameters, its config or the default type of torch has changed."""
        signature = rule, rule.config, [(x.dtype, x.stride()) for x in theta], torch.get_default_dtype()
        if signature != self._signature or not all(map(is_, theta, self._theta)):
            self._signature, self._theta = signature, theta
            self._delete_graphs()

    def _delete_graphs(self) -> None:
        self._waits = 0  # number of steps in a row whose kinds of stacks were new
        self._preludes: dict[Hashable, PreludeGraph] = {}
        self._steps: dict[Hashable, StepGraph] = {}
        self._whole_steps: dict[Hashable, WholeStepGraph] = {}
        self._times: Counter[Hashable] = Counter()

    def _fail(self, why: object) -> None:
        self.failure = str(why)
        self._delete_graphs()
        _log.info("LearnedOptimizer: steps are not traced: %s", why)

    def _returns(self, kind: Hashable) -> bool:
        """Count an occurrence of this kind of stack, and return whether the kind is frequent enough to be traced."""
        if self.failure:
            return False
        self._times[kind] += 1
        if len(self._times) > MOST_KINDS:
            self._fail(f"there are more than {MOST_KINDS} kinds of stacks")
        return self._times[kind] > RETURNS

    def _prelude(
        self,
        rule: UpdateRule,
        stacks: Sequence[Stack],
        kinds: Sequence[int],
        shared: dict[str, Tensor],
        context: StepContext,
        steps_ahead: int,
    ) -> tuple[Tensor, CommonInputs, list[Columns], dict[str, Tensor]] | None:
        """The results of the graph that precedes the steps of stacks; ``None`` if it is not traced."""
        key = prelude_key(kinds, shared, context)
        prelude = self._preludes.get(key)
        try:
            if prelude is None:
                if not self._pays(steps_ahead) or not self._returns(key):
                    return None
                prelude = self._preludes[key] = self._new_graph(
                    rule,
                    "the quantities of all tensors",
                    lambda: PreludeGraph(rule, stacks, shared, context, self.build),
                )
            return prelude(stacks, shared, context)
        except (UntraceableError, RuntimeError) as error:
            self._fail(error)
            return None

    def _whole_step(
        self,
        rule: UpdateRule,
        stacks: Sequence[Stack],
        kinds: Sequence[int],
        seeds: Sequence[Tensor | None],
        shared: dict[str, Tensor],
        context: StepContext,
        uses: int,
    ) -> ModelStep | None:
        """The results of one graph of the whole step; ``None`` if there is no such graph, or a new one does not pay."""
        key = (prelude_key(kinds, shared, context), *((stack.full, decay_of(stack)) for stack in stacks))
        arguments = stacks, seeds, shared, context
        try:
            if key in self._whole_steps:
                return self._whole_steps[key](*arguments)
            if not self._joins(uses, seeds):
                return None
            count, waits = self.count, self._waits
            parts = self._parts(rule, stacks, kinds, seeds, shared, context, uses)
            if parts is None:
                return None if self._waits == waits else steps_of_stacks(rule, *arguments)
            whole = WholeStepGraph(*parts, stacks, seeds, shared, context)
            results = whole(*arguments)
            if not self.checks_parts and self.count > count:
                expected = steps_of_stacks(rule, *arguments)
                expected = expected._replace(stacks=list(expected.stacks))
                if not all(map(same_bits, tree_leaves(results), tree_leaves(expected))):
                    raise UntraceableError("the traced graph gives other values than the rule")
            self._whole_steps[key] = whole
            return results
        except (UntraceableError, RuntimeError) as error:
            self._fail(error)
            return None

    def _parts(
        self,
        rule: UpdateRule,
        stacks: Sequence[Stack],
        kinds: Sequence[int],
        seeds: Sequence[Tensor | None],
        shared: dict[str, Tensor],
        context: StepContext,
        uses: int,
    ) -> tuple[PreludeGraph, list[StepGraph]] | None:
        """The graphs to join, recorded where they are missing; ``None`` if some are missing that do not pay yet."""
        prelude = self._preludes.get(key := prelude_key(kinds, shared, context))
        missing = [key] if prelude is None else []
        for pair in zip(stacks, kinds, strict=True):
            if prelude is None or step_key(*pair, prelude.template) not in self._steps:
                missing.append(stack_key(*pair))
        if missing and (self.checks_parts or self._waits > RETURNS or not self._pays(uses)):
            return None
        counted = [self._returns(kind) for kind in missing]  # a list, so that each kind is counted
        self._waits = 0 if all(counted) else self._waits + 1
        if self._waits:
            return None
        if prelude is None:
            prelude = self._preludes[key] = self._new_graph(
                rule, "", lambda: PreludeGraph(rule, stacks, shared, context, check=False)
            )
        at, controls = prelude.examples
        steps = []
        for stack, kind, columns, seed in zip(stacks, kinds, controls, seeds, strict=True):
            graph_key = step_key(stack, kind, at.template)
            if graph_key not in self._steps:
                self._steps[graph_key] = StepGraph(rule, stack, columns, at, seed, check=False)
            steps.append(self._steps[graph_key])
        return prelude, steps

    def _step(
        self,
        rule: UpdateRule,
        stack: Stack,
        kind: int,
        controls: Columns,
        at: CommonInputs,
        seed: Tensor | None,
        steps_ahead: int,
    ) -> StackStep | None:
        """The step of a stack from its graph; ``None`` if it is not traced."""
        if self.failure:
            return None
        key = step_key(stack, kind, at.template)
        graph = self._steps.get(key)
        try:
            if graph is None:
                uses = steps_ahead // rule.period if stack.full else steps_ahead
                if not self._pays(uses) or not self._returns(stack_key(stack, kind)):
                    return None
                graph = self._steps[key] = self._new_graph(
                    rule,
                    f"step of {stack.role}, {tuple(stack.params.shape)}, full={stack.full}",
                    lambda: StepGraph(rule, stack, controls, at, seed, self.build),
                )
            return graph(stack, controls, at, seed)
        except (UntraceableError, RuntimeError) as error:
            self._fail(error)
            return None
