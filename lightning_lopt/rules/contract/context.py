"""What passes between a rule and its caller: parameters, updates, state, and the context of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_lopt.rules.contract.roles import Role

THETA_DTYPE = torch.float32
"""Rules make θ in this type, whatever torch's default type is: under Lightning's 16-true and bf16-true it is half."""

Params = dict[str, Tensor]
Updates = dict[str, Tensor]
TensorState = dict[str, Tensor]
Columns = dict[str, Tensor]
"""Numbers of each of n tensors, (n, ...), by what they are."""


class State(NamedTuple):
    """Everything a rule remembers between two inner steps. A pytree, so ``vmap`` maps over it.

    Attributes:
        tensors: for every parameter name its own state tensors by key, e.g. ``{"net.weight": {"momentum": ...}}``.
        shared: state that belongs to no single parameter, e.g. running averages of the loss.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> state = AdamRule().init_state({"w": torch.ones(2)}, roles={"w": "vector"})
        >>> state.tensors["w"]["momentum"], state.shared
        (tensor([0., 0.]), {})
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
        phase: which stacks do in this step what need not be done at every step, as :meth:`UpdateRule.phase_of` says of
            its number: all of them if ``None``, else those whose index i has (i + phase) % period = 0. Unlike what
            tensors hold it is known without waiting for the device, so a rule may branch on it: compiled, that makes as
            many graphs as there are phases.
        scheduled: step at which schedules stand, 0-dim, where a horizon that changed during the run has moved it away
            from ``step``; ``None`` where it is ``step``.

    Example:
        >>> context = StepContext(step=torch.tensor(120), total_steps=torch.tensor(100), roles={"w": "head"})
        >>> context.scheduled_step  # schedules stay at the last step of the horizon
        tensor(99)
    """

    step: Tensor
    total_steps: Tensor
    loss: Tensor | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    weight_decay: Mapping[str, float | Tensor] = field(default_factory=dict)
    phase: int | None = None
    scheduled: Tensor | None = None

    @property
    def scheduled_step(self) -> Tensor:
        """The step for schedules, 0-dim: it stops at the last of the horizon, so schedules keep that value."""
        return torch.minimum(self.step if self.scheduled is None else self.scheduled, self.total_steps - 1)
