"""The steps of stacks of parameters, computed by the rule itself (neither compiled nor traced)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from lightning_lopt.optim.precision import all_finite, both_true, extremes_of_each
from lightning_lopt.optim.state_types import changed_keys, rounded_like, widened, with_wide_state
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
        wide_state = widened(stack.state, stack.params.dtype)
        update, new_state = rule.stepped(replace(stack, state=wide_state), dict(controls), at)
        # State that was written to the memory of the old state has changed, although it is the same object.
        changed = changed_keys(new_state, wide_state) if stack.may_write is False else new_state
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
    stacks = allowed_to_write(stacks, extremes, context)
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


def allowed_to_write(stacks: Sequence[Stack], extremes: Tensor, context: StepContext) -> Sequence[Stack]:
    """The stacks; those that are computed in blocks may write their new state to the memory of the old state, if the
    loss and all gradients are finite. New averages are then finite, too.

    Args:
        stacks: all stacks of a step.
        extremes: as in :class:`ModelStep`.
        context: contains the loss.
    """
    if not any(is_large(stack.params) for stack in stacks):
        return stacks
    finite = both_true(all_finite(extremes), context.loss is None or all_finite(context.loss))
    return [
        replace(stack, may_write=finite.to(stack.params.device) if isinstance(finite, Tensor) else finite)
        if is_large(stack.params)
        else stack
        for stack in stacks
    ]


def extremes_of_gradients(stacks: Sequence[Stack]) -> Tensor:
    """``extremes`` of :class:`ModelStep`."""
    return extremes_of_each([stack.grads for stack in stacks], stacks[0].params.device)
