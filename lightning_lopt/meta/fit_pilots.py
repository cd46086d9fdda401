"""Pilots from where a fit is: its module as a task, its optimizer's state, and their losses over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.meta.pilot import RunSnapshot, pilot_losses
from lightning_lopt.meta.search import Search
from lightning_lopt.optim import LearnedOptimizer
from lightning_lopt.optim.guard_adamw import without_copies
from lightning_lopt.optim.precision import wide
from lightning_lopt.optim.rates import multiplier
from lightning_lopt.optim.state_types import widened
from lightning_lopt.rules.base import State
from lightning_lopt.tasks.base import Split
from lightning_lopt.tasks.lightning_batches import StackedBatches
from lightning_lopt.tasks.lightning_task import LightningTask
from lightning_lopt.tasks.side_effects import untouched
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
        trainer: of the fit.
        module: that is trained, let alone.
        optimizer: of the fit, let alone.
        search: asked for θ.
        step: steps that the optimizer has made.
        coming: batches of training, those that are kept apart for measuring last.
        validation: batches to measure on; without any, the last ``held_out`` of the coming ones are.
        held_out: how many batches a pilot is measured on.

    Raises:
        ValueError: for a module or batches that cannot be a task.
        Exception: whatever else the module's code raises.
    """
    kind = type(module).__name__
    with untouched():
        stacked = StackedBatches(coming, f"{kind}, coming batches")
        measured = StackedBatches(validation, f"{kind}, validation batches") if validation else None
        accumulated = trainer.accumulate_grad_batches
        steps = (len(stacked) - (0 if measured else held_out)) // accumulated
        if steps < 1:
            raise ValueError(f"{kind}: only {len(stacked)} of {len(coming)} coming batches have the same shapes.")
        task = LightningTask(module, stacked, measured)
        first = search.rounds * len(coming)
        train = [task.nth(index, first + index) for index in range(steps * accumulated)]
        windows = [train[k * accumulated : (k + 1) * accumulated] for k in range(steps)]
        split: Split = "valid" if measured else "train"
        count = len(task.data[split])
        begin = search.rounds * held_out if measured else count - held_out
        places = range(begin, begin + min(held_out, count))
        measured_on = [task.nth(index % count, None, split) for index in places]
        snapshot = snapshot_of(trainer, module, optimizer, task, step)
        return pilot_losses(optimizer.rule, search.ask(), task, snapshot, windows, measured_on)


def snapshot_of(trainer: Any, module: Any, optimizer: LearnedOptimizer, task: LightningTask, step: int) -> RunSnapshot:
    """Where the fit is, by the module's own names."""
    if optimizer.guard_state.startswith("switched"):
        raise ValueError(f"the guard has given the training to AdamW ({optimizer.guard_state}).")
    names = {param: name for name, param in module.named_parameters()}
    params, tensors, roles, lr, decay = {}, {}, {}, {}, {}
    for group in optimizer.param_groups:
        for param, role in zip(group["params"], group["roles"], strict=True):
            name = names[param]
            if name in task.roles:  # those that require a gradient now
                params[name], roles[name] = param.detach(), group["role"] or role
                kept = without_copies(optimizer.state.get(param, {}))
                tensors[name] = widened(kept, wide(params[name]).dtype)
                lr[name], decay[name] = float(multiplier(group)), float(group["weight_decay"])
    shared = dict(optimizer.param_groups[0].get("shared") or {})
    new = [name for name, state in tensors.items() if not state]  # no gradient has reached them so far
    if new:
        begun = optimizer.rule.init_state({name: params[name] for name in new}, {name: roles[name] for name in new})
        tensors.update({name: begun.tensors[name] for name in new})
        shared = shared or begun.shared
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
    )


def agreed(trainer: Any, module: Any, losses: Callable[[], Tensor], count: int) -> tuple[Tensor, str]:
    """Losses, mean over ranks, and why there are none, the same decision on all ranks. Called on all ranks.

    Args:
        losses: gives this rank's, shape ``(count,)``; whatever it raises is no reason to end somebody's fit.
    """
    found, failure = torch.zeros(count), ""
    try:
        found = losses()
    except Exception as error:
        failure = str(error) if type(error) is ValueError else named(error)
    failed = torch.tensor(float(bool(failure)), device=module.device)
    both = torch.cat([found.to(failed.device).float(), failed[None]])
    both = trainer.strategy.reduce(both, reduce_op="mean").cpu()
    if both[-1] > 0 and not failure:
        failure = "another rank could not make its pilots."
    return both[:-1], failure
