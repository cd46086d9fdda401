"""The steps of stacks of parameters, computed by the rule itself (neither compiled nor traced)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lopt.optim.precision import Flag, all_finite, both_true, extremes_of_each
from lightning_lopt.optim.rounding import next_seed, rounded
from lightning_lopt.optim.state_types import NARROW, changed_keys, rounded_like, widened, with_wide_state
from lightning_lopt.rules.base import StepContext, TensorState, UpdateRule
from lightning_lopt.rules.contract.stacks import Stack
from lightning_lopt.rules.shared.blocks import is_large

StackStep = tuple[Tensor, TensorState, Tensor]
"""The updates of a stack, its state after the step, and the smallest and the largest entry of the updates, (2,)."""

MOST_TOGETHER = 2**18
"""Largest total number of entries of stacks that are stepped together; their temporary tensors take some MiB."""


def fit_together(stacks: Sequence[Stack]) -> bool:
    """Whether all stacks are stepped first and then written at once. In larger models, stacks are stepped and written
    one by one, so that only the temporary tensors of one stack exist at a time."""
    return sum(stack.params.numel() for stack in stacks) <= MOST_TOGETHER


def step_of_stack(
    rule: UpdateRule, stack: Stack, controls: Mapping[str, Tensor], at: Any, seed: Tensor | None = None
) -> StackStep:
    """The step of a stack; the new state has the types of the old state.

    Args:
        rule: makes the step.
        stack: a stack of n tensors.
        controls: results of :meth:`UpdateRule.exchanged` for this stack.
        at: result of :meth:`UpdateRule.at`.
        seed: 0-dim, for the rounding of state that is stored in a narrower type than that of the arithmetic; ``None``
            if no state is stored in a narrower type.
    """
    if seed is None:
        update, new_state = rule.stepped(stack, dict(controls), at)
    else:
        is_stored = stack.store is not None  # then blocks are widened one by one
        wide_state = widened(stack.state, stack.params.dtype, large=not is_stored)
        update, new_state = rule.stepped(replace(stack, state=wide_state), dict(controls), at)
        changed = changed_keys(new_state, wide_state)
        del wide_state  # frees its memory before the new state is rounded
        new_state = rounded_like(new_state, changed, stack.state, seed)
    return update, new_state, extremes_of_each([update], update.device)


class ModelStep(NamedTuple):
    """The step of all stacks.

    Attributes:
        shared: the shared state after the step.
        extremes: the smallest and the largest entry of the gradients of each of n stacks, (2 n,).
        stacks: the steps of the stacks, computed one by one as they are read, or all in advance.
    """

    shared: dict[str, Tensor]
    extremes: Tensor
    stacks: Iterable[StackStep]


def steps_of_stacks(
    rule: UpdateRule,
    stacks: Sequence[Stack],
    seeds: Sequence[Tensor | None],
    shared: dict[str, Tensor],
    context: StepContext,
) -> ModelStep:
    """The step of all stacks; the stacks are computed one by one.

    Args:
        rule: makes the steps.
        stacks: all stacks of a step.
        seeds: one seed for each stack, as in :func:`step_of_stack`.
        shared: the shared state before the step.
        context: loss, step and horizon.
    """
    extremes = extremes_of_gradients(stacks)
    stacks = with_stores(rule, stacks, seeds, extremes, context)
    at = rule.at(shared, context)
    controls, new_shared = rule.exchanged([with_wide_state(stack) for stack in stacks], at, shared, context)
    return ModelStep(
        new_shared,
        extremes,
        (
            step_of_stack(rule, stack, stack_controls, at, seed)
            for stack, stack_controls, seed in zip(stacks, controls, seeds, strict=True)
        ),
    )


def with_stores(
    rule: UpdateRule, stacks: Sequence[Stack], seeds: Sequence[Tensor | None], extremes: Tensor, context: StepContext
) -> Sequence[Stack]:
    """The stacks, with a :class:`StateStore` where the rule writes state itself and the step is computed in blocks.

    If the loss and the gradients are finite, running averages are finite after the step, too, so they are written
    before the update is known to be finite. Otherwise they must keep their values.

    Args:
        rule, stacks, seeds, context: as in :func:`steps_of_stacks`.
        extremes: as in :class:`ModelStep`.
    """
    if not rule.stores or not any(is_large(stack.params) for stack in stacks):
        return stacks
    finite = both_true(all_finite(extremes), context.loss is None or all_finite(context.loss))
    if finite is False:
        return stacks
    return [
        replace(stack, store=StateStore(finite, seed)) if is_large(stack.params) else stack
        for stack, seed in zip(stacks, seeds, strict=True)
    ]


class StateStore:
    """Writes new values of state to the memory of the state, rounded at random where its type is narrower.

    Args:
        allowed: whether values may be written; a 0-dim tensor on a device that has not yet found the answer.
        seed: 0-dim, for rounding; ``None`` if no state is stored in a narrower type.
    """

    def __init__(self, allowed: Flag, seed: Tensor | None) -> None:
        self.allowed, self.seed = allowed, seed

    def __call__(self, memory: Tensor, values: Tensor) -> None:
        if isinstance(self.allowed, Tensor):
            values = torch.where(self.allowed.to(memory.device), values, memory.to(values.dtype))
        if self.seed is not None and memory.dtype == NARROW:
            (values,) = rounded([values], self.seed)
            self.seed = next_seed(self.seed)
        memory.copy_(values)


def extremes_of_gradients(stacks: Sequence[Stack]) -> Tensor:
    """``extremes`` of :class:`ModelStep`."""
    return extremes_of_each([stack.grads for stack in stacks], stacks[0].params.device)
