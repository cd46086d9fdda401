"""The steps of small stacks of parameters on a CPU as graphs that run without Python, one for each kind of stack."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lightning_lopt.optim.precision import all_finite
from lightning_lopt.optim.stack_steps import StackStep, step_of_stack, steps_of_stacks
from lightning_lopt.optim.state_types import rounded_like, seen, widened
from lightning_lopt.rules.base import Columns, StepContext, UpdateRule
from lightning_lopt.rules.contract.stacks import CPU_LIMIT, Stack
from lightning_lopt.tracing import TracedFunction, UntraceableError, tensors_of

_log = logging.getLogger(__name__)

FIRST = 20
"""Steps that are made as they are, so that short runs pay for no graph."""
RETURNS = 1
"""How often a kind of stack comes before its step is traced: what changes at every step would be traced at each."""
LEAST_USES = 150
"""Planned steps of a kind of stack from which on tracing it takes less time than it saves."""
MOST_KINDS = 256


class TracedSteps:
    """:func:`~lightning_lopt.optim.stack_steps.steps_of_stacks` through graphs: the same bits in a third of the time.

    A graph belongs to the number of tensors of a stack, their shape, type and role, the types of their state, their
    weight decay, and whether their step is a full one. One more computes what is the same for all tensors, and what
    they get from one another. Stacks of more than :data:`~lightning_lopt.rules.contract.stacks.CPU_LIMIT` entries are
    stepped as they are, since their arithmetic takes longer than its calls. If something cannot be traced, the log says
    why once, at level ``INFO``, and from then on everything is stepped as it is.

    Attributes:
        failure: why nothing is traced any more; empty as long as it is.
    """

    def __init__(self) -> None:
        self.failure = ""
        self._calls = 0
        self._known: Any = None
        self._forget()

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
        *,
        steps_ahead: int,
    ) -> tuple[dict[str, Tensor], Iterator[StackStep]]:
        """As :func:`~lightning_lopt.optim.stack_steps.steps_of_stacks`.

        Args:
            rule, stacks, seeds, shared, context: likewise.
            steps_ahead: planned steps to come; 0 if unknown.
        """
        self._calls += 1
        pays = steps_ahead >= LEAST_USES or self.count > 0
        if self.failure or self._calls <= FIRST or not pays or not any(map(_is_small, stacks)):
            return steps_of_stacks(rule, stacks, seeds, shared, context)
        self._follow(rule)
        kinds = [_kind_of(stack) for stack in stacks]
        prelude = self._prelude(rule, stacks, kinds, shared, context, steps_ahead)
        if prelude is None:
            return steps_of_stacks(rule, stacks, seeds, shared, context)
        at, controls, after = prelude

        def each() -> Iterator[StackStep]:
            for stack, kind, given, seed in zip(stacks, kinds, controls, seeds, strict=True):
                made = self._step(rule, stack, kind, given, at, seed, steps_ahead) if _is_small(stack) else None
                yield made or step_of_stack(rule, stack, given, at.tree, seed)

        return after, each()

    def _follow(self, rule: UpdateRule) -> None:
        """Forget the graphs of another rule, of parameters that were replaced, and of other constants."""
        theta = tensors_of(rule)
        known = rule, [(id(x), x.dtype) for x in theta], rule.config, torch.get_default_dtype()
        if known != self._known:
            self._known, self._theta = known, theta  # the latter so that no id comes again
            self._forget()

    def _forget(self) -> None:
        self._preludes: dict[Hashable, _Prelude] = {}
        self._steps: dict[Hashable, _StepGraph] = {}
        self._times: Counter[Hashable] = Counter()

    def _fail(self, why: object) -> None:
        self.failure = str(why)
        self._forget()
        _log.info("LearnedOptimizer: steps are not traced: %s", why)

    def _returns(self, kind: Hashable) -> bool:
        """Whether a kind has come often enough to be traced."""
        self._times[kind] += 1
        if len(self._times) > MOST_KINDS:
            self._fail(f"there are more than {MOST_KINDS} kinds of stacks")
        return self._times[kind] > RETURNS

    def _prelude(
        self,
        rule: UpdateRule,
        stacks: Sequence[Stack],
        kinds: Sequence[Hashable],
        shared: dict[str, Tensor],
        context: StepContext,
        steps_ahead: int,
    ) -> tuple[_At, list[Columns], dict[str, Tensor]] | None:
        """What precedes the steps of stacks, if it is traced."""
        key = (*kinds, *shared, context.loss is None, context.scheduled is None)
        prelude = self._preludes.get(key)
        try:
            if prelude is None:
                if steps_ahead < LEAST_USES or not self._returns(key):
                    return None
                prelude = _Prelude(rule, stacks, shared, context)
                if not self._preludes:
                    label = rule.rule_name or type(rule).__name__
                    _log.info("LearnedOptimizer: steps of rule %r are traced from here on", label)
                self._preludes[key] = prelude
            return prelude(stacks, shared, context)
        except (UntraceableError, RuntimeError) as error:
            self._fail(error)
            return None

    def _step(
        self,
        rule: UpdateRule,
        stack: Stack,
        kind: Hashable,
        controls: Columns,
        at: _At,
        seed: Tensor | None,
        steps_ahead: int,
    ) -> StackStep | None:
        """The step of a stack, if it is traced."""
        if self.failure:
            return None
        decay = None if isinstance(stack.weight_decay, Tensor) else stack.weight_decay
        key = kind, stack.full, decay, at.layout.text
        graph = self._steps.get(key)
        try:
            if graph is None:
                uses = steps_ahead // rule.period if stack.full else steps_ahead
                if uses < LEAST_USES or not self._returns(key):
                    return None
                graph = self._steps[key] = _StepGraph(rule, stack, controls, at)
            return graph(stack, controls, at, seed)
        except (UntraceableError, RuntimeError) as error:
            self._fail(error)
            return None


@dataclass(frozen=True, eq=False)
class _Layout:
    """What a tree is beside its tensors.

    Attributes:
        structure: of the tree.
        leaves: numbers, texts and ``None`` in their places, ``...`` in those of tensors.
        is_context: whether the tree stands for a :class:`StepContext`.
        text: the same for equal layouts.
    """

    structure: TreeSpec
    leaves: list[Any]
    is_context: bool
    text: str

    @classmethod
    def of(cls, tree: Any) -> tuple[list[Tensor], _Layout]:
        """The tensors of a tree, and its layout."""
        is_context = isinstance(tree, StepContext)
        leaves, structure = tree_flatten(_tensors_of(tree) if is_context else tree)
        others = [... if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        if not all(leaf is ... or leaf is None or isinstance(leaf, bool | int | float | str) for leaf in others):
            raise UntraceableError("the rule's at() returns more than tensors, numbers and texts")
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)], cls(
            structure, others, is_context, f"{structure} {others}"
        )

    def tree(self, tensors: Iterable[Tensor]) -> Any:
        """The inverse of :meth:`of`."""
        rest = iter(tensors)
        tree = tree_unflatten([next(rest) if leaf is ... else leaf for leaf in self.leaves], self.structure)
        return StepContext(**tree) if self.is_context else tree


class _At:
    """What :meth:`UpdateRule.at` returned, taken apart."""

    def __init__(self, tensors: list[Tensor], layout: _Layout) -> None:
        self.tensors, self.layout = tensors, layout

    @cached_property
    def tree(self) -> Any:
        return self.layout.tree(self.tensors)


class _Prelude:
    """:meth:`UpdateRule.at` and :meth:`UpdateRule.exchanged` as a graph.

    What the graph does not depend on raises an error where it is read: names of parameters, their weight decay, and
    what kind of step it is.
    """

    def __init__(
        self, rule: UpdateRule, stacks: Sequence[Stack], shared: Mapping[str, Tensor], context: StepContext
    ) -> None:
        unread: Any = _Unread()
        blank = [replace(stack, names=[""] * len(stack.names), weight_decay=unread, full=unread) for stack in stacks]

        def prelude(*tensors: Tensor) -> list[Tensor]:
            rest = iter(tensors)
            inside = [_refilled(stack, rest) for stack in blank]
            before = {key: next(rest) for key in shared}
            times = {key: next(rest) for key in _tensors_of(context)}
            now = StepContext(**times, roles=unread, weight_decay=unread, phase=unread)
            at, self._layout = _Layout.of(rule.at(before, now))
            controls, after = rule.exchanged([seen(stack) for stack in inside], self._layout.tree(at), before, now)
            self._controls, self._shared = [list(given) for given in controls], list(after)
            return [*at, *(value for given in controls for value in given.values()), *after.values()]

        self._graph = TracedFunction(prelude, self._arguments(stacks, shared, context))

    def __call__(
        self, stacks: Sequence[Stack], shared: Mapping[str, Tensor], context: StepContext
    ) -> tuple[_At, list[Columns], dict[str, Tensor]]:
        results = iter(self._graph(self._arguments(stacks, shared, context)))
        at = _At([next(results) for leaf in self._layout.leaves if leaf is ...], self._layout)
        controls = [{key: next(results) for key in keys} for keys in self._controls]
        return at, controls, {key: next(results) for key in self._shared}

    def _arguments(self, stacks: Sequence[Stack], shared: Mapping[str, Tensor], context: StepContext) -> list[Tensor]:
        of_stacks = [x for stack in stacks for x in (stack.params, stack.grads, *stack.state.values())]
        return [*of_stacks, *shared.values(), *_tensors_of(context).values()]


class _StepGraph:
    """:meth:`UpdateRule.stepped` as a graph."""

    def __init__(self, rule: UpdateRule, stack: Stack, controls: Columns, at: _At) -> None:
        blank = replace(stack, names=[""] * len(stack.names), state=widened(stack.state, stack.params.dtype))

        def step(*tensors: Tensor) -> list[Tensor]:
            rest = iter(tensors)
            inside = _refilled(blank, rest)
            if isinstance(stack.weight_decay, Tensor):
                inside = replace(inside, weight_decay=next(rest))
            given = {key: next(rest) for key in controls}
            update, after = rule.stepped(inside, given, at.layout.tree(rest))
            self._keys = list(after)
            return [update, all_finite([update], update.device), *after.values()]

        self._graph = TracedFunction(step, self._arguments(blank, controls, at))

    def __call__(self, stack: Stack, controls: Columns, at: _At, seed: Tensor | None) -> StackStep:
        before = stack if seed is None else replace(stack, state=widened(stack.state, stack.params.dtype))
        update, finite, *values = self._graph(self._arguments(before, controls, at))
        after = dict(zip(self._keys, values, strict=True))
        return update, after if seed is None else rounded_like(after, before.state, stack.state, seed), finite

    def _arguments(self, stack: Stack, controls: Columns, at: _At) -> list[Tensor]:
        decay = [stack.weight_decay] if isinstance(stack.weight_decay, Tensor) else []
        return [stack.params, stack.grads, *stack.state.values(), *decay, *controls.values(), *at.tensors]


class _Unread:
    """In place of something that must not be read while a function is traced."""

    def _refuse(self, *_: object) -> NoReturn:
        raise UntraceableError("the rule reads names, weight decay or the kind of a step where it looks at all tensors")

    __bool__ = __getattr__ = __getitem__ = __iter__ = __len__ = __add__ = __radd__ = __mul__ = __rmul__ = _refuse


def _is_small(stack: Stack) -> bool:
    return stack.params.numel() <= CPU_LIMIT and stack.params.device.type == "cpu"


def _kind_of(stack: Stack) -> Hashable:
    """What graphs depend on beside the kind of a step."""
    state = tuple([(key, x.dtype, x.shape) for key, x in stack.state.items()])
    params = stack.params
    return len(stack.names), stack.role, params.dtype, params.shape, params.stride(), stack.grads.stride(), state


def _refilled(stack: Stack, tensors: Iterator[Tensor]) -> Stack:
    """A stack with other parameters, gradients and state."""
    return replace(stack, params=next(tensors), grads=next(tensors), state={key: next(tensors) for key in stack.state})


def _tensors_of(context: StepContext) -> dict[str, Tensor]:
    """The tensors of a context by their names there."""
    return {key: x for key in _TIMES if (x := getattr(context, key)) is not None}


_TIMES = ("step", "total_steps", "loss", "scheduled")
