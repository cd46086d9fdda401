"""What an update rule is: a module whose parameters are θ, and whose state is passed in and handed back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_lopt.rules.pickled import PickledAsData

Role = Literal["matrix", "vector", "embedding", "head"]
ROLES: tuple[Role, ...] = ("matrix", "vector", "embedding", "head")

THETA_DTYPE = torch.float32
"""Rules make θ in this type, whatever torch's default type is: under Lightning's 16-true and bf16-true it is half."""

Params = dict[str, Tensor]
Updates = dict[str, Tensor]


class State(NamedTuple):
    """Everything a rule remembers between two inner steps. A pytree, so ``vmap`` maps over it.

    Attributes:
        tensors: for every parameter name its own state tensors by key, e.g. ``{"net.weight": {"momentum": ...}}``.
        shared: state that belongs to no single parameter, e.g. running averages of the loss.
    """

    tensors: dict[str, dict[str, Tensor]]
    shared: dict[str, Tensor]


@dataclass(frozen=True)
class StepContext:
    """What the gradient does not tell.

    Attributes:
        step: inner steps made before this one, 0-dim; 0 on the first call. It goes on past ``total_steps``.
        total_steps: planned number of inner steps (the horizon), 0-dim.
        loss: loss of this step before the update, 0-dim, in the unit of the task's loss; ``None`` if unknown
            (only for rules with ``reads_loss = False``).
        roles: role of each parameter; a name that is missing has :func:`~lightning_lopt.rules.role_of_shape`'s role.
        weight_decay: extra decoupled weight decay asked for by the user, by parameter name; a name that is missing
            has 0. A rule multiplies it by its own step size, as AdamW multiplies it by the learning rate.
        full: whether this is a full step, as :meth:`UpdateRule.is_full` says of its number. Unlike what tensors hold it
            is known without waiting for the device, so a rule may branch on it: compiled, that makes two graphs. Left
            ``True`` throughout, a rule does all its work at every step.
        scheduled: step at which schedules stand, 0-dim, where a horizon that changed during the run has moved it away
            from ``step``; ``None`` where it is ``step``.
    """

    step: Tensor
    total_steps: Tensor
    loss: Tensor | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    weight_decay: Mapping[str, float | Tensor] = field(default_factory=dict)
    full: bool = True
    scheduled: Tensor | None = None

    @property
    def scheduled_step(self) -> Tensor:
        """The step for schedules, 0-dim: it stops at the last of the horizon, so schedules keep that value."""
        return torch.minimum(self.step if self.scheduled is None else self.scheduled, self.total_steps - 1)


class UpdateRule(PickledAsData, ABC):
    """An update rule. θ are this module's parameters; everything else it needs is passed in and handed back.

    A rule writes nothing in place and branches on no tensor's value, so ``torch.func.functional_call`` and
    ``torch.vmap`` run many θ and many inner models at once, and :class:`~lightning_lopt.LearnedOptimizer` runs the
    very same code for one.

    Attributes:
        rule_name: the key in :data:`RULES`, written into ``config.json`` by ``save_rule``.
        reads_loss: whether :meth:`forward` reads ``context.loss``.
        reads_horizon: whether :meth:`forward` needs a meaningful ``context.total_steps``.
        calibrates_steps: whether a run finds the common scale of its steps by itself.
        period: one step in how many is a full one, in which the rule does what it need not do at every step, >= 1.
        starts_random: whether a new rule of this class steps at random until θ is meta-trained or loaded.
        trained: whether θ of this rule was meta-trained or loaded; set to ``True`` by ``load_state_dict`` (and so by
            :func:`~lightning_lopt.load_rule`) and :class:`~lightning_lopt.MetaTrainer`.
    """

    rule_name: ClassVar[str] = ""
    reads_loss: bool = False
    reads_horizon: bool = False
    calibrates_steps: bool = False
    period: int = 1
    starts_random: ClassVar[bool] = False
    trained: bool = False

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Called by ``load_state_dict`` of this module and of any module that holds it, a ``MetaTrainer`` for one."""
        super()._load_from_state_dict(state_dict, prefix, *others)
        self.trained = self.trained or any(name.startswith(prefix) for name in state_dict)

    @property
    def needs_loss(self) -> bool:
        """Whether :meth:`forward` fails without ``context.loss``; a rule that reads the loss only where there is one
        overrides it."""
        return self.reads_loss

    def is_full(self, step: int) -> bool:
        """Whether the step after ``step`` others is a full one, for :class:`StepContext`; the first step is."""
        return step % self.period == 0

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Keyword arguments that build this rule again, JSON values only; θ is not part of it."""

    @abstractmethod
    def init_state(self, params: Params, roles: Mapping[str, Role]) -> State:
        """State before the first step. Must not read θ (a learned initial state is read at step 0 instead).

        Args:
            params: parameters by name, of any shape, rank 0 to 4 and beyond, float32 or float64, on any device; on the
                meta device too, where shapes are all there is.
            roles: role of each parameter.
        """

    @abstractmethod
    def forward(self, params: Params, grads: Params, state: State, context: StepContext) -> tuple[Updates, State]:
        """One step: what to *add* to each parameter, and the state after it.

        Args:
            params: parameters by name.
            grads: gradient of the loss for exactly these names, same shapes.
            state: what :meth:`init_state` or the last call returned, for at least these names.
            context: loss, step and horizon, roles.

        Returns:
            ``updates`` with ``new_param = param + update``, in the parameters' types, and the new state for these
            names, with the keys, shapes and types that it came with.
        """

    def evaluation_params(self, params: Params, state: State) -> Params:
        """The parameters to measure and to keep, where they are not the ones that gradients are taken at.

        A rule that trains at one point and answers for another, as averages of iterates do, overrides it; pure and
        vmap-able, it must not read θ. :func:`~lightning_lopt.evaluation.runs.run_rules` measures here.

        Args:
            params: parameters by name, after any number of steps.
            state: the state after these steps, for at least these names.

        Returns:
            parameters of the same names and shapes; by default ``params`` themselves.
        """
        return params

    def diagnostics(self, state: State) -> dict[str, Tensor]:
        """Numbers of the state that tell a person how the run goes, 0-dim each, by name; none by default."""
        return {}

    def validated(self, state: State, loss: Tensor) -> State:
        """The state with a validation loss, 0-dim, taken into ``state.shared``; a rule that reads it overrides this."""
        return state


RULES: dict[str, type[UpdateRule]] = {}
"""Rules that files may name: what :func:`~lightning_lopt.load_rule` is allowed to build."""

_RuleClass = TypeVar("_RuleClass", bound=type[UpdateRule])


def register_rule(name: str) -> Callable[[_RuleClass], _RuleClass]:
    """Class decorator: make a rule loadable from a file under ``name``.

    Raises:
        ValueError: if another class already has that name.
    """

    def register(cls: _RuleClass) -> _RuleClass:
        if name in RULES and RULES[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"rule name {name!r} is taken by {RULES[name].__qualname__}; choose another name.")
        cls.rule_name = name
        RULES[name] = cls
        return cls

    return register
