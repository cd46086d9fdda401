"""Pilots of a fit, which start from its module and optimizer state; their losses are averaged over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.meta.pilot import RunSnapshot, pilot_losses
from lightning_lopt.meta.search import Search
from lightning_lopt.optim import LearnedOptimizer
from lightning_lopt.optim.copies import without_copies
from lightning_lopt.optim.precision import wide
from lightning_lopt.optim.rates import multiplier
from lightning_lopt.optim.state_types import widened
from lightning_lopt.rules.base import State
from lightning_lopt.tasks.base import Split
from lightning_lopt.tasks.lightning_batches import StackedBatches
from lightning_lopt.tasks.lightning_task import LightningTask
from lightning_lopt.tasks.side_effects import random_states_restored
from lightning_lopt.tasks.users_code import named


def losses_of_round(
    trainer: Any,
    module: Any,
    optimizer: LearnedOptimizer,
    search: Search,
    *,
    step: int,
    coming: list[Any],
    validation: list[Any],
    held_out: int,
) -> Tensor:
    """Losses of the pilots of one round on this rank's batches, shape ``(N,)`` for N particles of the search.

    Args:
        trainer: Trainer of the fit.
        module: the module that is trained; it is not changed.
        optimizer: optimizer of the fit; it is not changed.
        search: gives the θ to compare.
        step: steps that the optimizer has made.
        coming: recorded training batches; the batches for measuring come last.
        validation: batches for measuring; if there are none, the last ``held_out`` of ``coming`` are used.
        held_out: number of batches for measuring.

    Raises:
        ValueError: if the module and the batches cannot form a task.
        Exception: any exception that the module's code raises.
    """
    class_name = type(module).__name__
    with random_states_restored():
        stacked = StackedBatches(coming, f"{class_name}, coming batches")
        measuring_data = StackedBatches(validation, f"{class_name}, validation batches") if validation else None
        accumulated = trainer.accumulate_grad_batches
        steps = (len(stacked) - (0 if measuring_data else held_out)) // accumulated
        if steps < 1:
            raise ValueError(f"{class_name}: only {len(stacked)} of {len(coming)} coming batches have the same shapes.")
        task = LightningTask(module, stacked, measuring_data)
        first_batch = search.rounds * len(coming)
        train = [task.nth(index, first_batch + index) for index in range(steps * accumulated)]
        windows = [train[k * accumulated : (k + 1) * accumulated] for k in range(steps)]
        split: Split = "valid" if measuring_data else "train"
        count = len(task.data[split])
        begin = search.rounds * held_out if measuring_data else count - held_out
        batch_indices = range(begin, begin + min(held_out, count))
        measuring_batches = [task.nth(index % count, None, split) for index in batch_indices]
        snapshot = snapshot_of(trainer, module, optimizer, task, step)
        return pilot_losses(optimizer.rule, search.ask(), task, snapshot, windows, measuring_batches)


def snapshot_of(trainer: Any, module: Any, optimizer: LearnedOptimizer, task: LightningTask, step: int) -> RunSnapshot:
    """The present state of the fit, by name of the module's parameters."""
    if optimizer.guard_switched:
        raise ValueError(f"LossGuard has given the training to AdamW ({optimizer.guard_state}).")
    names = {param: name for name, param in module.named_parameters()}
    params, tensors, roles, lr, decay = {}, {}, {}, {}, {}
    for group in optimizer.param_groups:
        for param, role in zip(group["params"], group["roles"], strict=True):
            name = names[param]
            if name in task.roles:  # parameters that require a gradient now
                params[name], roles[name] = param.detach(), group["role"] or role
                rule_state = without_copies(optimizer.state.get(param, {}))
                tensors[name] = widened(rule_state, wide(params[name]).dtype)
                lr[name], decay[name] = float(multiplier(group)), float(group["weight_decay"])
    shared = dict(optimizer.param_groups[0].get("shared") or {})
    names_without_state = [name for name, state in tensors.items() if not state]  # parameters without a gradient so far
    if names_without_state:
        initial_state = optimizer.rule.init_state(
            {name: params[name] for name in names_without_state}, {name: roles[name] for name in names_without_state}
        )
        tensors.update({name: initial_state.tensors[name] for name in names_without_state})
        shared = shared or initial_state.shared
    clip = None if trainer.gradient_clip_val is None else float(trainer.gradient_clip_val)
    by_value = trainer.gradient_clip_algorithm == "value"
    return RunSnapshot(
        params,
        State(tensors, shared),
        roles,
        step,
        optimizer.total_steps if isinstance(optimizer.total_steps, int) else None,
        lr,
        decay,
        clip_norm=None if by_value else clip,
        clip_value=clip if by_value else None,
        epochs=optimizer.epochs,
    )


def agreed(trainer: Any, module: Any, losses: Callable[[], Tensor], count: int) -> tuple[Tensor, str]:
    """Mean losses over all ranks, and the reason if a rank failed; every rank must call this function.

    All ranks return the same losses, and each rank returns a reason if any rank failed.

    Args:
        losses: computes the losses of this rank, shape ``(count,)``; the text of its exception becomes the reason.
    """
    losses_here, failure = torch.zeros(count), ""
    try:
        losses_here = losses()
    except Exception as error:
        failure = str(error) if type(error) is ValueError else named(error)
    failed = torch.tensor(float(bool(failure)), device=module.device)
    losses_and_failure = torch.cat([losses_here.to(failed.device).float(), failed[None]])
    losses_and_failure = trainer.strategy.reduce(losses_and_failure, reduce_op="mean").cpu()
    if losses_and_failure[-1] > 0 and not failure:
        failure = "another rank could not compute its pilot losses."
    return losses_and_failure[:-1], failure
