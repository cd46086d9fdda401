"""One inner step: of one run, and of all runs side by side."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from lightning_lopt.meta.batches import Batches
from lightning_lopt.meta.runs import Position
from lightning_lopt.meta.theta import Theta
from lightning_lopt.rules.base import Params, State, StepContext, UpdateRule
from lightning_lopt.tasks.base import Split, Task

SteppedRuns = tuple[Params, State, dict[Split, Tensor]]
"""Parameters and state after an inner step, and losses before the step."""


def inner_step(
    rule: UpdateRule,
    theta: Theta,
    task: Task,
    params: Params,
    state: State,
    batches: Batches,
    step: Tensor,
    total_steps: Tensor,
    phase: int | None = None,
    epochs: Tensor | None = None,
) -> SteppedRuns:
    """One step of one inner run: new parameters, new state, and losses before the step, as a pure function.

    The step uses ``batches["train"]``; for batches of other splits, only the loss is measured.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.tasks import Quadratic
        >>> rule, bowl = AdamRule(0.1), Quadratic(torch.tensor([1.0, 4.0]))
        >>> params = bowl.init(torch.Generator())
        >>> state, theta = rule.init_state(params, bowl.roles), dict(rule.named_parameters())
        >>> batches, step = {"train": bowl.full_batch("train")}, torch.tensor(0.0)
        >>> params, state, losses = inner_step(rule, theta, bowl, params, state, batches, step, torch.tensor(10.0))
        >>> params["x"].detach(), losses["train"].item()
        (tensor([0.9000, 0.9000]), 2.5)
    """
    grads, loss, carried = task.gradient(params, batches["train"])
    trained = {name: params[name] for name in grads}
    context = StepContext(step, total_steps, loss, task.roles, phase=phase, epochs=epochs)
    losses = {split: loss if split == "train" else task.loss(params, batch) for split, batch in batches.items()}
    updates, state = functional_call(rule, theta, (trained, grads, state, context))
    return params | {name: value + updates[name] for name, value in trained.items()} | carried, state, losses


def advance_runs(
    rule: UpdateRule,
    task: Task,
    theta: Theta,
    params: Params,
    state: State,
    batches: Batches,
    position: Position,
    phase: int | None = None,
) -> SteppedRuns:
    """:func:`inner_step` for all runs side by side; θ, parameters, state, batches and losses have the leading axis N.

    The tensors of ``position`` are 0-dim if all runs have the same position. If they have the shape ``(N,)``, runs at
    their horizon do not change.
    """
    is_shared = position.step.ndim == 0

    def advance_run(
        theta: Theta, params: Params, state: State, batches: Batches, step: Tensor, total_steps: Tensor, epochs: Tensor
    ) -> SteppedRuns:
        params_after, state_after, losses = inner_step(
            rule, theta, task, params, state, batches, step, total_steps, phase, epochs
        )
        if not is_shared:
            is_running = step < total_steps
            params_after, state_after = tree_map(
                lambda after, before: torch.where(is_running, after, before),
                (params_after, state_after),
                (params, state),
            )
        return params_after, state_after, losses

    axis = None if is_shared else 0
    return vmap(advance_run, in_dims=(0, 0, 0, 0, axis, axis, axis))(theta, params, state, batches, *position)
