"""Stores the state of parameters of one shape and role as one stack; entries of ``optimizer.state`` are views of it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.allocator import MIB, keep_freed_memory
from lightning_lopt.optim.copies import COPIES
from lightning_lopt.optim.groups import Member
from lightning_lopt.optim.precision import real, wide
from lightning_lopt.optim.state_types import narrowed
from lightning_lopt.rules.base import StepContext, UpdateRule
from lightning_lopt.rules.contract.stacks import Stack, grouped, joined, joined_decay

States = MutableMapping[Tensor, dict[str, Tensor]]
FREED_MEMORY = 64 * MIB
"""Limit of the freed memory that a process keeps: the temporary tensors of a stack are freed before the next stack is
stepped. Without kept memory, a step of ``Celo2BaseRule`` on a transformer of width 128 takes twice as long.
"""


class StoredStack:
    """The state of n parameters of one shape and role.

    Attributes:
        members: the parameters.
        state: tensors by key, of shape (n, *s) for state of shape s; of shape s for a single parameter.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self.names = [member.name for member in members]
        self.state: dict[str, Tensor] = {}
        self._views: list[dict[str, Tensor]] = [{} for _ in members]

    def follow(self, states: States, state_dtype: torch.dtype | None, rule: UpdateRule) -> None:
        """Stack the tensors that were put into ``states`` since the last step, and replace them by views of the stack.

        The stack has ``state_dtype``, as far as the rule allows. Copies of parameters are not changed.
        """
        member_states = [states[member.param] for member in self.members]
        if all(_is_unchanged(state, views) for state, views in zip(member_states, self._views, strict=True)):
            return
        keys = [key for key in member_states[0] if key not in COPIES]
        narrow_states = [narrowed({key: state[key] for key in keys}, state_dtype, rule) for state in member_states]
        if len(member_states) == 1:
            self.state = {key: _writable(value) for key, value in narrow_states[0].items()}
            member_states[0].update(self.state)
        else:
            self.state = {key: torch.stack([state[key] for state in narrow_states]) for key in keys}
            for row, state in enumerate(member_states):
                state.update((key, value[row]) for key, value in self.state.items())
        self._views = [{key: state[key] for key in keys} for state in member_states]


class StackedState:
    """The stacks of an optimizer; they are rebuilt when parameters, roles, types or devices change."""

    def __init__(self) -> None:
        self._last_params: list[Tensor] = []
        self._last_signature: list[Any] = []
        self.stored_stacks: list[StoredStack] = []

    def stacks(
        self,
        rule: UpdateRule,
        members: Sequence[Member],
        states: States,
        context: StepContext,
        state_dtype: torch.dtype | None = None,
    ) -> list[Stack]:
        """The stacks of a step: the present parameters and gradients, and the stored state.

        Args:
            rule: the rule that makes the step.
            members: parameters with gradients and state; no parameter is sharded.
            states: state of the optimizer.
            context: context of the step.
            state_dtype: type of the stored state; ``None`` for the type that the rule makes.
        """
        params = [member.param for member in members]
        signature = [(m.name, m.role, m.param.shape, m.param.dtype, m.param.device) for m in members]
        if signature != self._last_signature or not all(map(is_, params, self._last_params)):
            by_name = {member.name: member for member in members}
            values = {name: real(member.param.detach()) for name, member in by_name.items()}
            groups = grouped(values, list(by_name), context.roles)
            keep_freed_memory(FREED_MEMORY)
            self.stored_stacks = [StoredStack([by_name[name] for name in names]) for names in groups]
            self._last_signature, self._last_params = signature, params
        for stored in self.stored_stacks:
            stored.follow(states, state_dtype, rule)
        return [_stack(rule, stored, index, context) for index, stored in enumerate(self.stored_stacks)]


def _stack(rule: UpdateRule, stored: StoredStack, index: int, context: StepContext) -> Stack:
    params = wide(joined([member.param.detach() for member in stored.members]))
    grads = wide(joined([dense(member.param.grad) for member in stored.members]))
    decay = joined_decay(stored.names, context.weight_decay, params)
    role, shape = stored.members[0].role, params.shape[len(stored.members) > 1 :]
    full = rule.is_full(index, context, shape, role)
    return Stack(stored.names, params, grads, stored.state, role, decay, full)


def dense(grad: Any) -> Tensor:
    """A gradient as a dense tensor; rows without a gradient are zero, as in a dense embedding."""
    result: Tensor = grad.to_dense() if grad.is_sparse else grad
    return result


def _is_unchanged(state: Mapping[str, Tensor], views: Mapping[str, Tensor]) -> bool:
    return bool(views) and all(map(is_, map(state.get, views), views.values()))


def _writable(value: Tensor) -> Tensor:
    """``value``, or a copy if several entries of ``value`` share memory."""
    overlaps = any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True))
    return value.clone(memory_format=torch.contiguous_format) if overlaps else value
