"""The types that a rule and its caller exchange: parameters, updates, state, and the context of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_lopt.rules.contract.roles import Role

THETA_DTYPE = torch.float32
"""Type of θ, independent of the default type of torch, which is half under Lightning's 16-true and bf16-true."""

Params = dict[str, Tensor]
Updates = dict[str, Tensor]
TensorState = dict[str, Tensor]
Columns = dict[str, Tensor]
"""Numbers of each of n tensors, shape (n, ...), by name."""


class State(NamedTuple):
    """The state of a rule between two inner steps. It is a pytree, so ``vmap`` maps over it.

    Attributes:
        tensors: state tensors of each parameter by name and key, e.g. ``{"net.weight": {"momentum": ...}}``.
        shared: state that belongs to no single parameter, e.g. running averages of the loss.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> state = AdamRule().init_state({"w": torch.ones(2)}, roles={"w": "vector"})
        >>> state.tensors["w"]["momentum"], state.shared
        (tensor([0., 0.]), {})
    """

    tensors: dict[str, dict[str, Tensor]]
    shared: dict[str, Tensor]


class Rollback(NamedTuple):
    """The decision about the parameters after a validation loss; both entries are 0-dim and boolean.

    Attributes:
        is_best: whether the present parameters are the best so far.
        is_due: whether training goes back to the best parameters.

    >>> Rollback(is_best=torch.tensor(True), is_due=torch.tensor(False)).is_best
    tensor(True)
    """

    is_best: Tensor
    is_due: Tensor


@dataclass(frozen=True)
class StepContext:
    """The inputs of a step besides parameters, gradients and state.

    Attributes:
        step: number of inner steps before this step, 0-dim; 0 on the first call. It may exceed ``total_steps``.
        total_steps: planned number of inner steps (the horizon), 0-dim.
        loss: loss of this step before the update, 0-dim, in the unit of the task's loss; ``None`` if unknown
            (only for rules with ``reads_loss = False``).
        roles: role of each parameter; a missing name has the role of :func:`~lightning_lopt.rules.role_of_shape`.
        weight_decay: extra decoupled weight decay of the user, by parameter name; a missing name has 0. A rule
            multiplies it by its step size, as AdamW multiplies it by the learning rate.
        phase: selects the stacks that make a full step, with the work that is not needed at every step: all stacks if
            ``None``, else the stacks whose index i has (i + phase) % period = 0; see :meth:`UpdateRule.phase_of`. A
            phase is a Python number, so a rule may branch on it without a wait for the device; when compiled, each
            phase has a separate graph.
        scheduled: step for schedules, 0-dim, if it differs from ``step`` since the horizon has changed during the run;
            otherwise ``None``.
        epochs: planned number of passes over the training data, 0-dim, > 0; ``None`` or NaN if it is unknown.

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
    epochs: Tensor | None = None

    @property
    def scheduled_step(self) -> Tensor:
        """The step for schedules, 0-dim: at most the last step of the horizon, so schedules keep their last value."""
        return torch.minimum(self.step if self.scheduled is None else self.scheduled, self.total_steps - 1)
