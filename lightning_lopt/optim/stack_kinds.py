"""Numbers kinds of stacks, and makes the keys of their graphs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from torch import Tensor

from lightning_lopt.optim.common_inputs import TreeTemplate
from lightning_lopt.rules.base import StepContext
from lightning_lopt.rules.contract.stacks import Stack


class StackKinds:
    """Numbers the kinds of stacks. A stack that keeps its state dictionary and its layout is not examined again."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._last: list[tuple[object, Hashable, int]] = []

    def of(self, stacks: Sequence[Stack]) -> list[int]:
        """The number of the kind of each stack."""
        if len(stacks) != len(self._last):
            self._last = [(None, None, 0)] * len(stacks)
        for index, ((state, layout, _), stack) in enumerate(zip(self._last, stacks, strict=True)):
            params = stack.params
            layout_now = params.dtype, params.device, params.shape, params.stride(), stack.grads.stride()
            if state is not stack.state or layout != layout_now:
                number = self._numbers.setdefault(_kind_of(stack), len(self._numbers))
                self._last[index] = stack.state, layout_now, number
        return [number for _, _, number in self._last]


def _kind_of(stack: Stack) -> Hashable:
    """The properties of a stack that its graphs depend on."""
    state = tuple([(key, x.dtype, x.shape, x.stride()) for key, x in stack.state.items()])
    params = stack.params
    layout = params.dtype, params.device, params.shape, params.stride(), stack.grads.stride()
    return len(stack.names), stack.role, layout, state


def decay_of(stack: Stack) -> Hashable:
    """The value of a weight decay that is a number, since it is part of the graph; the type, device and strides of a
    weight decay that is a tensor, since it is an input of the graph."""
    decay = stack.weight_decay
    return (decay.dtype, decay.device, decay.stride()) if isinstance(decay, Tensor) else decay


def prelude_key(kinds: Sequence[int], shared: Mapping[str, Tensor], context: StepContext) -> Hashable:
    """The properties that the graph of the quantities of all tensors depends on."""
    shared_strides = [(key, x.stride()) for key, x in shared.items()]
    return (*kinds, *shared_strides, context.loss is None, context.scheduled is None, context.epochs is None)


def step_key(stack: Stack, kind: int, at: TreeTemplate) -> Hashable:
    """The properties that the graph of the step of a stack depends on."""
    return *stack_key(stack, kind), at.text


def stack_key(stack: Stack, kind: int) -> tuple[Hashable, ...]:
    """The properties of a stack that the graph of its step depends on."""
    return kind, stack.full, decay_of(stack)
