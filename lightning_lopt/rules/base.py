"""The interface of update rules: modules whose parameters are θ, and whose state is an argument and a result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from lightning_lopt.rules.contract.context import (
    THETA_DTYPE,
    Columns,
    Params,
    Rollback,
    State,
    StepContext,
    TensorState,
    Updates,
)
from lightning_lopt.rules.contract.registry import RULES, register_rule
from lightning_lopt.rules.contract.roles import ROLES, Role, role_of_shape
from lightning_lopt.rules.contract.stacks import (
    Stack,
    TensorInputs,
    grouped,
    joined,
    joined_columns,
    joined_decay,
    scaled,
    split_columns,
)
from lightning_lopt.rules.pickled import PickledAsData

__all__ = [
    "ROLES", "RULES", "THETA_DTYPE", "Columns", "Params", "Role", "Rollback", "State", "StepContext", "TensorInputs",
    "TensorState", "UpdateRule", "Updates", "register_rule",
]  # fmt: skip


class UpdateRule(PickledAsData, ABC):
    """An update rule. θ are the parameters of this module; all other inputs, including the state, are arguments.

    A subclass defines the step of one parameter tensor, :meth:`step`. If the step of a tensor depends on the other
    tensors, :meth:`summary` computes numbers from each tensor, and :meth:`exchange` computes from all of them the
    *controls* of each tensor. :meth:`forward` maps these methods over stacks of tensors of one shape and role.

    A rule writes nothing in place and does not branch on the values of tensors, so ``torch.func.functional_call`` and
    ``torch.vmap`` run many θ and many inner models at once, and :class:`~lightning_lopt.LearnedOptimizer` runs the same
    code for one model.

    Attributes:
        rule_name: the key in :data:`RULES`, written into ``config.json`` by ``save_rule``.
        reads_loss, reads_validation: whether the rule reads ``context.loss``, and the losses of :meth:`validated`.
        reads_horizon: whether the rule needs a meaningful ``context.total_steps``.
        calibrates_steps: whether the rule calibrates the common scale of its steps during a run.
        period: a stack of tensors makes a full step every ``period`` steps, >= 1. Only full steps do the work that is
            not needed at every step.
        exact_state: keys of state tensors that keep their type under ``state_dtype``, such as positions, to which
            rounding would add an error as large as a step.
        update_state: keys of state tensors that hold the last update; the optimizer multiplies them by learning rates.
        stores: whether steps write large state by ``inputs.store``, and read such state in its stored type.
        starts_random: whether a new rule of this class makes random steps until θ is meta-trained or loaded.
        trained: whether θ of this rule was meta-trained or loaded; set to ``True`` by ``load_state_dict`` (and so by
            :func:`~lightning_lopt.load_rule`) and :class:`~lightning_lopt.MetaTrainer`.

    Example:
        >>> from lightning_lopt import LearnedOptimizer
        >>> class SignRule(UpdateRule):
        ...     rule_name = "sign"
        ...     config = {}
        ...     def init_tensor(self, param, role):
        ...         return {}
        ...     def step(self, inputs, controls, at):
        ...         return -0.01 * inputs.grad.sign(), {}
        >>> weight = nn.Parameter(torch.zeros(3))
        >>> optimizer = LearnedOptimizer([weight], SignRule(), total_steps=10)
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([-0.0100, -0.0100, -0.0100])
    """

    rule_name: ClassVar[str] = ""
    reads_loss: bool = False
    reads_validation: bool = False
    reads_horizon: bool = False
    calibrates_steps: bool = False
    stores: bool = False
    period: int = 1
    exact_state: ClassVar[frozenset[str]] = frozenset()
    update_state: ClassVar[frozenset[str]] = frozenset()
    starts_random: ClassVar[bool] = False
    trained: bool = False
    _exchanges: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._exchanges = cls.exchange is not UpdateRule.exchange

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Set ``trained``. ``load_state_dict`` of this module, or of a module that contains it, calls this method."""
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.trained = self.trained or any(name.startswith(prefix) for name in state_dict)

    @property
    def needs_loss(self) -> bool:
        """Whether a step fails without ``context.loss``; a rule that does not need the loss overrides this property."""
        return self.reads_loss

    def phase_of(self, step: int) -> int | None:
        """The phase, for :class:`StepContext`, of the step with number ``step``, from 0."""
        return step % self.period if self.period > 1 else None

    @property
    def phases(self) -> tuple[int | None, ...]:
        """All phases that steps can have."""
        return (None, *range(self.period)) if self.period > 1 else (None,)

    def has_full_steps(self, shape: torch.Size, role: Role) -> bool:
        """Whether full steps of such tensors differ from other steps; if not, none of their steps is a full one."""
        return True

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Keyword arguments that build this rule again, JSON values only; θ is not part of it."""

    @abstractmethod
    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        """The state of one parameter tensor before its first step. This method must not read θ; a learned initial state
        is read at the first step instead.

        Args:
            param: a tensor of any rank, float32 or float64, on any device, including the meta device, on which tensors
                have no values.
            role: role of the tensor in the model.
        """

    def init_shared(self, like: Tensor) -> dict[str, Tensor]:
        """State that belongs to no single tensor, in the type of ``like`` and on its device; empty by default."""
        return {}

    def at(self, shared: Mapping[str, Tensor], context: StepContext) -> Any:
        """Values that are the same for all tensors in a step, computed once; by default the context.

        Args:
            shared: the shared state before the step.
            context: loss, step and horizon.
        """
        return context

    def summary(self, inputs: TensorInputs, at: Any) -> Columns:
        """Numbers of one tensor for :meth:`exchange`, by name; empty by default."""
        return {}

    def exchange(
        self, columns: Columns, at: Any, shared: Mapping[str, Tensor], context: StepContext
    ) -> tuple[Columns, dict[str, Tensor]]:
        """The controls of each of n tensors, shape (n, ...) by name, and the shared state after the step.

        Args:
            columns: summaries of all tensors, shape (n, ...) by name.
            at: result of :meth:`at`.
            shared: the shared state before the step.
            context: loss, step and horizon.
        """
        return {}, dict(shared)

    @abstractmethod
    def step(self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: Any) -> tuple[Tensor, TensorState]:
        """The update to *add* to one tensor, and the state of the tensor after the step.

        Args:
            inputs: parameter, gradient and state of the tensor.
            controls: controls of the tensor from :meth:`exchange`, without the axis n.
            at: result of :meth:`at`.

        Returns:
            the update, with as many entries as the parameter and of any type, and the new state, with the keys, shapes
            and types of the old state.
        """

    @final
    def init_state(self, params: Params, roles: Mapping[str, Role]) -> State:
        """State before the first step.

        Args:
            params: parameters by name.
            roles: role of each parameter; a name that is missing has the role of its shape.
        """
        tensors = {
            name: self.init_tensor(param, roles.get(name, role_of_shape(tuple(param.shape))))
            for name, param in params.items()
        }
        return State(tensors, self.init_shared(next(iter(params.values()))) if params else {})

    def forward(self, params: Params, grads: Params, state: State, context: StepContext) -> tuple[Updates, State]:
        """One step of all tensors: the update to add to each parameter, and the new state.

        Args:
            params: parameters by name.
            grads: gradients of the loss for exactly these names, with the same shapes.
            state: state from :meth:`init_state` or from the last call, for at least these names.
            context: loss, step, horizon and roles.

        Returns:
            ``updates`` with ``new_param = param + update``, in the parameters' shapes and types, and the new state for
            these names, with the keys, shapes and types of the old state.
        """
        if not grads:
            return {}, state
        stacks = self.stacked(params, grads, state.tensors, context)
        at = self.at(state.shared, context)
        controls, shared = self.exchanged(stacks, at, state.shared, context)
        updates: Updates = {}
        tensors: dict[str, TensorState] = {}
        for stack, stack_controls in zip(stacks, controls, strict=True):
            update, new_state = self.stepped(stack, stack_controls, at)
            updates |= zip(stack.names, stack.parts(update), strict=True)
            tensors |= zip(stack.names, stack.parts(new_state), strict=True)
        return {name: updates[name] for name in grads}, State({name: tensors[name] for name in grads}, shared)

    @final
    def stacked(
        self, params: Params, grads: Params, tensors: Mapping[str, TensorState], context: StepContext
    ) -> list[Stack]:
        """The tensors that have gradients, in stacks."""
        stacks = []
        for index, names in enumerate(grouped(params, list(grads), context.roles)):
            first_param = params[names[0]]
            role = context.roles.get(names[0], role_of_shape(tuple(first_param.shape)))
            full = self.is_full(index, context, first_param.shape, role)
            decay = joined_decay(names, context.weight_decay, first_param)
            stack_params, stack_grads = (joined([x[name] for name in names]) for x in (params, grads))
            state = {key: joined([tensors[name][key] for name in names]) for key in tensors[names[0]]}
            stacks.append(Stack(names, stack_params, stack_grads, state, role, decay, full))
        return stacks

    @final
    def is_full(self, index: int, context: StepContext, shape: torch.Size, role: Role) -> bool:
        """Whether a stack makes a full step, see :attr:`period`; ``index`` is its number among all stacks."""
        is_due = context.phase is None or (index + context.phase) % self.period == 0
        return is_due and self.has_full_steps(shape, role)

    @final
    def exchanged(
        self, stacks: Sequence[Stack], at: Any, shared: Mapping[str, Tensor], context: StepContext
    ) -> tuple[list[Columns], dict[str, Tensor]]:
        """The controls of each stack, as arguments of :meth:`Stack.map`, and the shared state after the step."""
        if not self._exchanges:
            return [{} for _ in stacks], dict(shared)
        summaries = [stack.map(lambda inputs, _: self.summary(inputs, at), {}) for stack in stacks]
        controls, new_shared = self.exchange(joined_columns(stacks, summaries), at, shared, context)
        return split_columns(stacks, controls), new_shared

    @final
    def stepped(self, stack: Stack, controls: Columns, at: Any) -> tuple[Tensor, TensorState]:
        """The updates of the tensors of a stack, in their shape and type, and their state after the step."""

        def step_of_tensor(inputs: TensorInputs, tensor_controls: Mapping[str, Tensor]) -> tuple[Tensor, TensorState]:
            update, new_state = self.step(inputs, tensor_controls, at)
            return update.reshape(inputs.param.shape).to(inputs.param.dtype), new_state

        return stack.map(step_of_tensor, controls)

    def evaluation_params(self, params: Params, state: State) -> Params:
        """The *evaluation weights*: the parameters to measure and to deploy.

        A rule whose evaluation weights differ from the trained parameters, such as averages of iterates, overrides this
        method, which is pure and vmap-able, and must not read θ. Losses of a rule are measured at these weights
        (:func:`~lightning_lopt.evaluation.measurement.run_rules`).

        Args:
            params: parameters by name, after any number of steps.
            state: the state after these steps, for at least these names.

        Returns:
            parameters of the same names and shapes; by default ``params`` themselves.
        """
        return params

    def at_rates(self, after: TensorState, rates: Sequence[float | Tensor]) -> TensorState:
        """The state after a step whose n updates are multiplied by n ``rates``; see :attr:`update_state`."""
        return {key: scaled(value, rates) if key in self.update_state else value for key, value in after.items()}

    def diagnostics(self, state: State) -> dict[str, Tensor]:
        """Numbers of the state for logs, 0-dim each, by name; none by default."""
        return {}

    def validated(self, state: State, loss: Tensor, progress: Tensor) -> State:
        """The state after a validation loss, 0-dim, at a share ``progress`` of the planned steps, 0-dim."""
        return state

    def rollback(self, shared: dict[str, Tensor]) -> Rollback:
        """Whether training goes back to earlier parameters, from the shared state after :meth:`validated`; by default,
        it never goes back. The caller keeps the copy of the best parameters."""
        never = torch.zeros((), dtype=torch.bool, device=next(iter(shared.values())).device)
        return Rollback(never, never)
