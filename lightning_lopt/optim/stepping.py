"""One step of a rule on the parameters of an optimizer: begin the state, apply the rule, count the step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_lopt.optim.compiled_steps import CompiledSteps
from lightning_lopt.optim.copies import without_copies
from lightning_lopt.optim.diagnostics import relative_steps
from lightning_lopt.optim.groups import Member
from lightning_lopt.optim.guard_adamw import SWITCHED
from lightning_lopt.optim.guard_readings import measured
from lightning_lopt.optim.habits import RateWatch
from lightning_lopt.optim.inputs import StepSignals
from lightning_lopt.optim.precision import Flag, all_finite, both_true, real, wide
from lightning_lopt.optim.rates import multiplier
from lightning_lopt.optim.rounding import seeds_of
from lightning_lopt.optim.run import RunOptimizer
from lightning_lopt.optim.sharding import cut_like, gathered, is_sharded, local, local_slice, mean_over_ranks, reduced
from lightning_lopt.optim.skips import SkipWatch, not_finite
from lightning_lopt.optim.stack_steps import ModelStep, StackStep, fit_together, steps_of_stacks
from lightning_lopt.optim.stacking import StackedState, dense
from lightning_lopt.optim.state_types import narrowed
from lightning_lopt.optim.traced_steps import TracedSteps
from lightning_lopt.rules.base import Params, State, StepContext, TensorState, UpdateRule
from lightning_lopt.rules.contract.stacks import Stack
from lightning_lopt.tracing import tensors_of


class Stepped(NamedTuple):
    """The step of a stack.

    Attributes:
        stack: the stack before the step.
        members: parameters of the stack.
        update, new_state: as in :data:`~lightning_lopt.optim.stack_steps.StackStep`.
        sound: whether the step is written, which it is if loss, gradients and the updates of this stack are finite.
    """

    stack: Stack
    members: list[Member]
    update: Tensor
    new_state: TensorState
    sound: Flag


class RuleOptimizer(RunOptimizer):
    """The part of :class:`~lightning_lopt.LearnedOptimizer` that makes the steps.

    Attributes:
        compiles: whether the step of a stack of parameters is compiled; with ``None`` it is traced if that saves time.
        state_dtype: type of the stored state of parameters; ``None`` for the types that the rule makes.
    """

    compiles: bool | None
    state_dtype: torch.dtype | None

    def _begin_watching(self) -> None:
        """Make the attributes that belong to this process; they are neither copied nor saved."""
        self.signals = StepSignals()
        self._skips = SkipWatch()
        self._rates = RateWatch()
        self._stacked = StackedState()
        self._numbers = {}
        self._compiled_steps = CompiledSteps()
        self._traced_steps = TracedSteps()

    def _advance(self, members: Sequence[Member], loss: Tensor | None) -> None:
        """Make a step with the parameters of ``members``, or count a skipped step."""
        first_group, rule = self.param_groups[0], self._acting
        context, finite = self._context(members, loss)
        sharded = is_sharded(members)
        stacks = self._stacks(members, context, sharded)
        wants_diagnostics, self.signals.wants_diagnostics = self.signals.wants_diagnostics, False
        # Diagnostics are relative to the parameters before the step.
        params_before = {name: x.clone() for name, x in _by_name(stacks, "params").items()} if wants_diagnostics else {}
        is_watched = wants_diagnostics or self._guard is not None
        updates: dict[str, Tensor] = {}
        suspects: dict[str, Tensor] = {}
        seeds = [None] * len(stacks) if self.state_dtype is None else seeds_of(first_group["step"], len(stacks))
        shared, extremes, steps = self._steps(rule, stacks, seeds, first_group["shared"], context)
        finite = both_true(finite, all_finite(extremes))
        if finite is not False or is_watched:
            all_finite_so_far = finite
            by_name = {member.name: member for member in members}
            step_iterator = iter(steps)
            for batch in [stacks] if fit_together(stacks) else ([stack] for stack in stacks):
                # Each batch has its own call, so that the steps of a batch are freed before the next are computed.
                watched = updates if is_watched else None
                sound = self._step_and_commit(batch, step_iterator, by_name, finite, suspects, watched, sharded)
                all_finite_so_far = both_true(all_finite_so_far, sound)
            finite = all_finite_so_far
            first_group["shared"] = {
                key: unless(finite, value, first_group["shared"][key]) for key, value in shared.items()
            }
        if wants_diagnostics:
            relative = relative_steps(members, params_before, updates)
            self.signals.diagnostics = relative | rule.diagnostics(State({}, first_group["shared"]))
            if self._guard is not None:
                self.signals.diagnostics.setdefault(SWITCHED, torch.zeros(()))
        self._run.calls += 1
        _count(first_group, finite)
        if self._guard is not None:  # before `self._skips`, which may raise an error
            params = {m.name: m.param.detach() for m in members}
            reading = partial(measured, members, params, _by_name(stacks, "grads"), updates, loss)
            self._guard.look(reading, self._members, self.state, first_group["shared"], self.total_steps)
        self._rates.look(self.param_groups)
        self._skips.look(first_group, self.calls, lambda: not_finite(loss, _by_name(stacks, "grads"), suspects))

    def _steps(
        self,
        rule: UpdateRule,
        stacks: Sequence[Stack],
        seeds: Sequence[Tensor | None],
        shared: dict[str, Tensor],
        context: StepContext,
    ) -> ModelStep:
        """The step of all stacks: compiled if ``compiles`` and compiling succeeds, else traced if that saves time."""
        arguments, total = (rule, stacks, seeds, shared, context), self.total_steps
        if self.compiles is False or torch.compiler.is_compiling():
            return steps_of_stacks(*arguments)
        steps = self._compiled_steps if self.compiles and not self._compiled_steps.failure else self._traced_steps
        theta = self._theta if rule is self.rule else tensors_of(rule)
        return steps(*arguments, theta, steps_ahead=total - self.calls if isinstance(total, int) else 0)

    def _stacks(self, members: Sequence[Member], context: StepContext, sharded: bool) -> list[Stack]:
        """The stacks of this step: parameters and gradients in wide types, and the state in its stored types."""
        if sharded:
            return self._acting.stacked(*self._gathered(members), context)
        self._begin_unsharded(members)
        if self._guard is not None:
            self._guard.prepare(members, self.state)
        return self._stacked.stacks(self._acting, members, self.state, context, self.state_dtype)

    def _step_and_commit(
        self,
        stacks: Sequence[Stack],
        step_iterator: Iterator[StackStep],
        by_name: Mapping[str, Member],
        finite: Flag,
        suspects: dict[str, Tensor],
        updates: dict[str, Tensor] | None,
        sharded: bool,
    ) -> Flag:
        """Compute and write the steps of some stacks; return whether all these steps are finite.

        Args:
            stacks, step_iterator: the stacks, and an iterator whose next items are their steps.
            by_name: the parameters by name.
            finite: whether loss and gradients are finite.
            suspects: receives the updates that may not be finite, by name.
            updates: receives all updates by name, unless it is ``None``.
            sharded: whether any of the parameters is sharded.
        """
        steps = []
        for stack in stacks:
            update, new_state, extremes = next(step_iterator)
            sound = both_true(finite, all_finite(extremes))
            steps.append(Stepped(stack, [by_name[name] for name in stack.names], update, new_state, sound))
        self._commit(steps, sharded)
        for stack, _, update, _, sound in steps:
            finite = both_true(finite, sound)
            if sound is not True:
                suspects |= _suspects(stack, update, sound)
            if updates is not None:
                updates |= zip(stack.names, stack.parts(update), strict=True)
        return finite

    def _commit(self, steps: Sequence[Stepped], sharded: bool) -> None:
        """Add updates to the parameters of stacks, and store their new state, in place."""
        params, increments, state_tensors, new_values = [], [], [], []
        rates_are_one = all(_is_unit_rate(multiplier(group)) for group in self.param_groups)
        for stack, members, update, new_state, sound in steps:
            if sound is False:
                continue
            updates = stack.parts(update if sound is True else torch.where(sound, update, 0.0))
            rates = [] if rates_are_one else [multiplier(member.group) for member in members]
            if not all(map(_is_unit_rate, rates)):
                updates = [part * rate for part, rate in zip(updates, rates, strict=True)]
                new_state = self._acting.at_rates(new_state, rates)
            if sharded:
                params += [real(local(member.param)) for member in members]
                increments += [local_slice(part, member.param) for part, member in zip(updates, members, strict=True)]
                for member, tensors in zip(members, stack.parts(new_state), strict=True):
                    state = self.state[member.param]
                    state_tensors += [local(state[key]) for key in tensors]
                    new_values += [
                        unless(sound, local_slice(x, state[key]), local(state[key])) for key, x in tensors.items()
                    ]
                continue
            params += [real(member.param) for member in members]
            increments += updates
            for key, state_tensor in stack.state.items():
                new_value = new_state[key]
                if new_value is not state_tensor:  # otherwise the rule has returned it unchanged
                    state_tensors.append(state_tensor)
                    new_values.append(new_value if sound is True else unless(sound, new_value, state_tensor))
        if params:
            # The sum is computed in the wider type and rounded once.
            torch._foreach_add_(params, increments)
        if state_tensors:
            torch._foreach_copy_(state_tensors, new_values)

    def _begin(self, members: Sequence[Member]) -> None:
        """Make the initial state of the ``members`` that have no state."""
        if is_sharded(members):
            self._gathered(members)
        else:
            self._begin_unsharded(members)

    def _begin_unsharded(self, members: Sequence[Member]) -> None:
        """Make the initial state of the ``members`` that have no state; no member may be sharded."""
        beginners = [m for m in members if not self.state.get(m.param)]
        self._begin_state(beginners, {m.name: wide(m.param.detach()) for m in beginners})

    def _gathered(self, members: Sequence[Member]) -> tuple[Params, Params, dict[str, TensorState]]:
        """Parameters, gradients and state of sharded ``members`` by name, all gathered. Parameters and gradients have
        wide types, the state has its stored types. Members without state get their initial state."""
        grads = {m.name: reduced(dense(m.param.grad), m.param) for m in members}
        tensors = {m.name: without_copies(self.state[m.param]) for m in members if self.state.get(m.param)}
        # Checkpoints of torch.distributed miss the state of a trainable parameter that has had no gradient.
        waiting = [m for m in self._members() if m.param.requires_grad and m.param not in self.state]
        beginners = [m for m in members if m.name not in tensors] + [m for m in waiting if m.name not in grads]
        params = {m.name: m.param.detach() for m in (*members, *beginners)}
        params, grads, tensors = gathered((params, grads, tensors))
        params, grads = ({name: wide(x) for name, x in tensors_by_name.items()} for tensors_by_name in (params, grads))
        grads = mean_over_ranks(grads, members)
        tensors = {**tensors, **self._begin_state(beginners, params)}
        return {m.name: params[m.name] for m in members}, grads, {m.name: tensors[m.name] for m in members}

    def _begin_state(self, members: Sequence[Member], params: Params) -> dict[str, dict[str, Tensor]]:
        """Make the initial state of ``members``, whose gathered values are ``params``; return it, gathered, by name."""
        first_group, initial_states = self.param_groups[0], {}
        for member in members:  # in a loop, so that only the wide state of one tensor exists at a time
            name, param = member.name, member.param
            state = self._acting.init_state({name: params[name]}, {name: member.role})
            initial_states[name] = narrowed(state.tensors[name], self.state_dtype, self._acting)
            self.state[param] = {k: cut_like(v, param) for k, v in initial_states[name].items()}
            first_group["shared"] = first_group["shared"] or state.shared
        return initial_states

    def _is_made_to_create_state(self, members: Sequence[Member], loss: Tensor | None) -> bool:
        """Whether ``torch.distributed.checkpoint`` makes this step only to create the state: there is neither a loss
        nor a state, and all gradients and learning rates are 0."""
        if self.state or loss is not None or any(float(m.group["lr"]) for m in members):
            return False
        grads = gathered([reduced(dense(m.param.grad), m.param) for m in members])
        return not any(bool(grad.any()) for grad in grads)


def _is_unit_rate(rate: Any) -> bool:
    """Whether the rate is the Python number 1."""
    return isinstance(rate, float) and rate == 1.0


def unless(sound: Flag, new: Tensor, otherwise: Tensor) -> Tensor:
    """``new`` if ``sound`` is true, else ``otherwise``, of the same shape; selected by ``where``, as 0 x nan is nan."""
    if isinstance(sound, Tensor):
        return new if new is otherwise else torch.where(sound, new, otherwise)
    return new if sound else otherwise


def _count(group: dict[str, Any], finite: Flag) -> None:
    """Count a step in the first parameter group, as a step that was made or that was skipped."""
    is_made: int | Tensor = finite.long() if isinstance(finite, Tensor) else int(finite)
    group["step"] = group["step"] + is_made
    if finite is True:
        group["skipped_in_a_row"] = torch.zeros_like(group["skipped_in_a_row"])
    else:
        skipped = 1 - is_made
        group["skipped_steps"] = group["skipped_steps"] + skipped
        group["skipped_in_a_row"] = (group["skipped_in_a_row"] + skipped) * skipped


def _by_name(stacks: Sequence[Stack], field: Literal["params", "grads"]) -> dict[str, Tensor]:
    """Parameters or gradients of all stacks, by name."""
    return {
        name: x for stack in stacks for name, x in zip(stack.names, stack.parts(getattr(stack, field)), strict=True)
    }


def _suspects(stack: Stack, update: Tensor, sound: Flag) -> dict[str, Tensor]:
    """Updates by name that may not be finite; on an accelerator, numbers in their place, NaN unless ``sound``."""
    if isinstance(sound, Tensor):
        return dict.fromkeys(stack.names, torch.where(sound, 0.0, math.nan))
    return dict(zip(stack.names, stack.parts(update), strict=True))
