"""Graphs of the parts of a step (the quantities of all tensors, and each stack) and of a whole step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from torch import Tensor

from lightning_lopt.hoisting import MOST_ENTRIES
from lightning_lopt.optim.common_inputs import CommonInputs, TreeTemplate, tensors_of_context
from lightning_lopt.optim.precision import extremes_of_each
from lightning_lopt.optim.stack_steps import ModelStep, StackStep, extremes_of_gradients
from lightning_lopt.optim.state_types import changed_keys, rounded_like, widened, with_wide_state
from lightning_lopt.rules.base import Columns, StepContext, UpdateRule
from lightning_lopt.rules.contract.stacks import Stack
from lightning_lopt.script_graphs import interpreted
from lightning_lopt.traced_calls import TracedCalls
from lightning_lopt.tracing import BuildRun, TracedFunction, UntraceableError

Entry = TypeVar("Entry")


class PreludeGraph:
    """:meth:`UpdateRule.at`, :meth:`UpdateRule.exchanged` and the extremes of the gradients as a graph.

    Names of parameters, their weight decay and the kind of the step are not inputs of the graph; reading them while the
    graph is traced raises an error.

    Attributes:
        examples: ``at`` and the controls of each stack from the recording.
    """

    def __init__(
        self,
        rule: UpdateRule,
        stacks: Sequence[Stack],
        shared: Mapping[str, Tensor],
        context: StepContext,
        build: BuildRun = interpreted,
        *,
        check: bool = True,
    ) -> None:
        unread: Any = _Unread()
        blank_stacks = [
            replace(stack, names=[""] * len(stack.names), weight_decay=unread, full=unread) for stack in stacks
        ]

        def prelude(*tensors: Tensor) -> list[Tensor]:
            remaining = iter(tensors)
            input_stacks = [_refilled(stack, remaining) for stack in blank_stacks]
            shared_inputs = {key: next(remaining) for key in shared}
            fields = {key: next(remaining) for key in tensors_of_context(context)}
            traced_context = StepContext(**fields, roles=unread, weight_decay=unread, phase=unread)
            at, self.template = TreeTemplate.of(rule.at(shared_inputs, traced_context))
            controls, new_shared = rule.exchanged(
                [with_wide_state(stack) for stack in input_stacks],
                self.template.tree(at),
                shared_inputs,
                traced_context,
            )
            self._controls, self._shared = [list(stack_controls) for stack_controls in controls], list(new_shared)
            self.examples = CommonInputs(at, self.template), controls
            extremes = extremes_of_gradients(input_stacks)
            return [
                extremes,
                *at,
                *(value for stack_controls in controls for value in stack_controls.values()),
                *new_shared.values(),
            ]

        self.graph = TracedFunction(prelude, self._arguments(stacks, shared, context), build, check=check)

    def __call__(
        self, stacks: Sequence[Stack], shared: Mapping[str, Tensor], context: StepContext
    ) -> tuple[Tensor, CommonInputs, list[Columns], dict[str, Tensor]]:
        extremes, at, controls, new_shared = self.split(self.graph(self._arguments(stacks, shared, context)))
        return extremes, CommonInputs(at, self.template), controls, new_shared

    def split(self, results: Iterable[Entry]) -> tuple[Entry, list[Entry], list[dict[str, Entry]], dict[str, Entry]]:
        """The results of the graph: the extremes of the gradients, the tensors of ``at``, the controls of each stack,
        and the shared state."""
        remaining = iter(results)
        extremes = next(remaining)
        at = [next(remaining) for leaf in self.template.leaves if leaf is ...]
        controls = [{key: next(remaining) for key in keys} for keys in self._controls]
        return extremes, at, controls, {key: next(remaining) for key in self._shared}

    def _arguments(self, stacks: Sequence[Stack], shared: Mapping[str, Tensor], context: StepContext) -> list[Tensor]:
        stack_tensors = [x for stack in stacks for x in (stack.params, stack.grads, *stack.state.values())]
        return [*stack_tensors, *shared.values(), *tensors_of_context(context).values()]


class StepGraph:
    """:meth:`UpdateRule.stepped` as a graph; a compiled graph also rounds the new state.

    Attributes:
        rounds: whether the graph rounds the new state; the stored state and a seed are then inputs of the graph.
    """

    def __init__(
        self,
        rule: UpdateRule,
        stack: Stack,
        controls: Columns,
        at: CommonInputs,
        seed: Tensor | None,
        build: BuildRun = interpreted,
        *,
        check: bool = True,
    ) -> None:
        self.rounds = seed is not None and build is not interpreted
        input_stack = stack if self.rounds or seed is None else _widened(stack)
        blank_stack = replace(input_stack, names=[""] * len(stack.names))

        def step(*tensors: Tensor) -> list[Tensor]:
            remaining = iter(tensors)
            stored_stack = _refilled(blank_stack, remaining)
            if isinstance(stack.weight_decay, Tensor):
                stored_stack = replace(stored_stack, weight_decay=next(remaining))
            rule_stack = _widened(stored_stack) if self.rounds else stored_stack
            stack_controls = {key: next(remaining) for key in controls}
            update, new_state = rule.stepped(rule_stack, stack_controls, at.template.tree(remaining))
            if self.rounds:
                changed = changed_keys(new_state, rule_stack.state)
                new_state = rounded_like(new_state, changed, stored_stack.state, next(remaining), reads=False)
            self.keys = list(new_state)
            return [update, extremes_of_each([update], update.device), *new_state.values()]

        self.graph = TracedFunction(step, self._arguments(blank_stack, controls, at, seed), build, check=check)

    def __call__(self, stack: Stack, controls: Columns, at: CommonInputs, seed: Tensor | None) -> StackStep:
        rounds_here = seed is not None and not self.rounds
        rule_stack = _widened(stack) if rounds_here else stack
        update, extremes, *values = self.graph(self._arguments(rule_stack, controls, at, seed))
        new_state = dict(zip(self.keys, values, strict=True))
        if seed is not None and rounds_here:
            changed = changed_keys(new_state, rule_stack.state)
            new_state = rounded_like(new_state, changed, stack.state, seed)
        return update, new_state, extremes

    def unchanged(self, stack: Stack) -> list[int]:
        """The indices, among the arguments, of the small tensors of the state that a step returns as they are."""
        places = {key: index for index, key in enumerate(stack.state, start=2)}
        results = dict(zip(self.keys, self.graph.results[2:], strict=True))
        small = [key for key, x in stack.state.items() if x.numel() <= MOST_ENTRIES]
        return [places[key] for key in small if results.get(key) == (True, places[key])]

    def _arguments(self, stack: Stack, controls: Columns, at: CommonInputs, seed: Tensor | None) -> list[Tensor]:
        seeds = [seed] if seed is not None and self.rounds else []
        return [*_tensors_of_stack(stack), *controls.values(), *at.tensors, *seeds]


class WholeStepGraph:
    """One graph that calls the graphs of a prelude and of the steps of all stacks. If state is rounded, these graphs
    round it.

    Args:
        prelude: graph of the prelude of these stacks.
        steps: graphs of the steps, one for each stack.
        stacks, seeds, shared, context: examples of the arguments of a call.
    """

    def __init__(
        self,
        prelude: PreludeGraph,
        steps: Sequence[StepGraph],
        stacks: Sequence[Stack],
        seeds: Sequence[Tensor | None],
        shared: Mapping[str, Tensor],
        context: StepContext,
    ) -> None:
        count = len(self._arguments(stacks, seeds, shared, context))
        self._calls = TracedCalls(count)
        indices = iter(range(count))
        step_indices = [[next(indices) for _ in _tensors_of_stack(stack)] for stack in stacks]
        common_indices = [next(indices) for _ in (*shared, *tensors_of_context(context))]
        seed_indices = [[next(indices)] if graph.rounds else [] for graph in steps]
        prelude_indices = [
            index
            for stack, stack_indices in zip(stacks, step_indices, strict=True)
            for index in stack_indices[: 2 + len(stack.state)]
        ]
        prelude_results = self._calls.add(prelude.graph, [*prelude_indices, *common_indices])
        extremes, at, controls, new_shared = prelude.split(prelude_results)
        results = [extremes, *new_shared.values()]
        parts = zip(step_indices, steps, controls, seed_indices, strict=True)
        for stack_indices, graph, stack_controls, seed in parts:
            results += self._calls.add(graph.graph, [*stack_indices, *stack_controls.values(), *at, *seed])
        self._shared, self._keys = list(new_shared), [graph.keys for graph in steps]
        fields = zip(tensors_of_context(context), common_indices[len(shared) :], strict=True)
        lasting = [index for field, index in fields if field in _LASTING_FIELDS]
        for stack_indices, graph, stack in zip(step_indices, steps, stacks, strict=True):
            lasting += [stack_indices[index] for index in graph.unchanged(stack)]
        self._calls.join(results, lasting)

    def __call__(
        self,
        stacks: Sequence[Stack],
        seeds: Sequence[Tensor | None],
        shared: Mapping[str, Tensor],
        context: StepContext,
    ) -> ModelStep:
        gradient_extremes, *results = self._calls(self._arguments(stacks, seeds, shared, context))
        start = len(self._shared)
        new_shared = dict(zip(self._shared, results[:start], strict=True))
        steps = []
        for keys in self._keys:
            update, extremes, *values = results[start : start + 2 + len(keys)]
            start += 2 + len(keys)
            steps.append((update, dict(zip(keys, values, strict=True)), extremes))
        return ModelStep(new_shared, gradient_extremes, steps)

    def _arguments(
        self,
        stacks: Sequence[Stack],
        seeds: Sequence[Tensor | None],
        shared: Mapping[str, Tensor],
        context: StepContext,
    ) -> list[Tensor]:
        stack_tensors = [x for stack in stacks for x in _tensors_of_stack(stack)]
        present_seeds = [seed for seed in seeds if seed is not None]
        return [*stack_tensors, *shared.values(), *tensors_of_context(context).values(), *present_seeds]


class _Unread:
    """A placeholder that raises an error if it is read while a function is traced."""

    def _refuse(self, *_: object) -> NoReturn:
        raise UntraceableError("the rule reads names, weight decay or the kind of a step in at() or exchanged()")

    __bool__ = __getattr__ = __getitem__ = __iter__ = __len__ = __add__ = __radd__ = __mul__ = __rmul__ = _refuse


def _refilled(stack: Stack, tensors: Iterator[Tensor]) -> Stack:
    """``stack`` with parameters, gradients and state from ``tensors``."""
    return replace(stack, params=next(tensors), grads=next(tensors), state={key: next(tensors) for key in stack.state})


def _widened(stack: Stack) -> Stack:
    """A stack with its state in the type of the arithmetic."""
    return replace(stack, state=widened(stack.state, stack.params.dtype))


def _tensors_of_stack(stack: Stack) -> list[Tensor]:
    """Parameters, gradients and state, and a weight decay that is a tensor."""
    decay = [stack.weight_decay] if isinstance(stack.weight_decay, Tensor) else []
    return [stack.params, stack.grads, *stack.state.values(), *decay]


_LASTING_FIELDS = ("total_steps", "epochs")
