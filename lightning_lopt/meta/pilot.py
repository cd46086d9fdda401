"""Pilots: a few inner steps from the present state of a model, for several θ side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from lightning_lopt.meta.theta import Theta
from lightning_lopt.rules.base import Params, Role, State, StepContext, UpdateRule
from lightning_lopt.tasks.base import Batch, Task


@dataclass(frozen=True)
class RunSnapshot:
    """The state of a run at one step, from which pilots start.

    Attributes:
        params: trained parameters by name.
        state: state of the rule, for these names.
        roles: roles of the parameters.
        step: steps made so far.
        total_steps: steps planned; ``None`` for a rule that does not read the horizon.
        lr: factor on the rule's step, by name; a missing name has the factor 1.
        weight_decay: extra decoupled weight decay, by name.
        clip_norm: largest norm of the gradient of all parameters together; ``None`` for no clipping.
        clip_value: largest absolute value of an entry of the gradient; ``None`` for no clipping.
        epochs: planned passes over the training data; ``None`` if unknown.
    """

    params: Params
    state: State
    roles: Mapping[str, Role]
    step: int
    total_steps: int | None
    lr: Mapping[str, float] = field(default_factory=dict)
    weight_decay: Mapping[str, float] = field(default_factory=dict)
    clip_norm: float | None = None
    clip_value: float | None = None
    epochs: float | None = None


def pilot_losses(
    rule: UpdateRule,
    particles: Theta,
    task: Task,
    snapshot: RunSnapshot,
    batches: Sequence[Sequence[Batch]],
    held_out: Sequence[Batch],
) -> Tensor:
    r"""Mean loss on held-out batches after a pilot of K steps with each θ, all from the same snapshot.

    The K steps represent all remaining steps: step k is made as if it were step :math:`s + (T - s)\, k / K` of the run,
    so a schedule that ends at 0 in the run ends at 0 in the pilot, too. Otherwise small steps would look best, even if
    larger steps are better for the whole run (short-horizon bias, Wu et al. 2018, https://arxiv.org/abs/1803.02021).

    Args:
        rule: the rule; its own parameters are replaced by ``particles``.
        particles: θ by name, leading axis N.
        task: the task that defines the loss.
        snapshot: common start of all pilots.
        batches: K lists of batches; the mean gradient of a list makes one step.
        held_out: batches for measuring, which are not trained on in the pilot.

    Returns:
        the mean losses, shape ``(N,)``, in the unit of the loss; not finite for a pilot with a loss that is not finite.
    """
    count = len(next(iter(particles.values())))

    def repeated(value: Tensor) -> Tensor:
        return value.expand(count, *value.shape)

    params = {name: repeated(value) for name, value in snapshot.params.items()}
    tensors = {
        name: {key: repeated(v) for key, v in tensor_state.items()}
        for name, tensor_state in snapshot.state.tensors.items()
    }
    state = State(tensors, {key: repeated(value) for key, value in snapshot.state.shared.items()})
    with torch.no_grad():
        for index, step_batches in enumerate(batches):
            context = _context(rule, snapshot, index, len(batches), next(iter(snapshot.params.values())).device)
            stacked = [{name: repeated(value) for name, value in batch.items()} for batch in step_batches]
            params, state = _advance(rule, particles, task, params, state, stacked, context, snapshot)
        measure = vmap(task.loss, in_dims=(0, None))
        return torch.stack([measure(params, batch) for batch in held_out]).mean(0)


def _context(rule: UpdateRule, snapshot: RunSnapshot, index: int, steps: int, device: torch.device) -> StepContext:
    total = snapshot.total_steps
    represented_steps = float(index) if total is None else (total - snapshot.step) * index / steps
    step = torch.full((), snapshot.step + represented_steps, device=device)
    horizon = torch.full((), float(total or 1), device=device)
    phase = rule.phase_of(snapshot.step + index)
    epochs = None if snapshot.epochs is None else torch.full((), snapshot.epochs, device=device)
    return StepContext(step, horizon, None, snapshot.roles, snapshot.weight_decay, phase, epochs=epochs)


def _advance(
    rule: UpdateRule,
    particles: Theta,
    task: Task,
    params: Params,
    state: State,
    batches: list[Batch],
    context: StepContext,
    snapshot: RunSnapshot,
) -> tuple[Params, State]:
    """One step of all pilots; values that a task carries from step to step do not change."""

    def pilot_step(theta: Theta, params: Params, state: State, batches: list[Batch]) -> tuple[Params, State]:
        batch_results = [task.gradient(params, batch) for batch in batches]
        grads = {name: torch.stack([result[0][name] for result in batch_results]).mean(0) for name in params}
        loss = torch.stack([result[1] for result in batch_results]).mean()
        grads = _clipped(grads, snapshot)
        updates, new_state = functional_call(rule, theta, (params, grads, state, replace(context, loss=loss)))
        rates = {name: snapshot.lr.get(name, 1.0) for name in params}
        tensors = {name: rule.at_rates(tensor_state, [rates[name]]) for name, tensor_state in new_state.tensors.items()}
        params_after = {name: value + rates[name] * updates[name] for name, value in params.items()}
        return params_after, State(tensors, new_state.shared)

    new_params, new_state = vmap(pilot_step)(particles, params, state, batches)
    return new_params, new_state


def _clipped(grads: Params, snapshot: RunSnapshot) -> Params:
    if snapshot.clip_norm is not None:
        norm = torch.sqrt(torch.stack([grad.square().sum() for grad in grads.values()]).sum())
        factor = torch.clamp(snapshot.clip_norm / (norm + 1e-6), max=1.0)
        grads = {name: grad * factor for name, grad in grads.items()}
    if snapshot.clip_value is not None:
        grads = {name: grad.clamp(-snapshot.clip_value, snapshot.clip_value) for name, grad in grads.items()}
    return grads
