"""Exchanges the trained weights of a module for its evaluation weights, for rules in which the two differ.

A checkpoint has two uses: evaluation and deployment read its ``state_dict``; a resumed run reads all entries.

After a forward pass, ``fully_shard`` may keep gathered copies of the parameters for the next forward pass. The
functions of this file free these copies before they change parameters outside of a training step.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lopt.optim.learned_optimizer import LearnedOptimizer
from lightning_lopt.optim.sharding import free_copies, gathered, is_shard, local, local_slice
from lightning_lopt.rules.base import UpdateRule


def to_evaluation(module: nn.Module, optimizers: Sequence[LearnedOptimizer]) -> None:
    """Put the evaluation weights into ``module``, for rules in which they differ from the trained weights."""
    for optimizer in optimizers:
        if _has_evaluation_weights(optimizer.rule):
            free_copies(module)
            optimizer.eval()


def to_training(module: nn.Module, optimizers: Sequence[LearnedOptimizer]) -> None:
    """Put the trained parameters back into ``module``."""
    for optimizer in optimizers:
        if optimizer.is_in_eval:
            free_copies(module)
            optimizer.train()


def put_into(weights: dict[str, Any], module: nn.Module, optimizers: Sequence[LearnedOptimizer]) -> dict[str, Tensor]:
    """Put the evaluation weights into ``weights``, and return the trained parameters.

    A checkpoint of shards (a directory) has only the trained version of each parameter, as a warning says. A single
    file has both versions, as whole tensors. All ranks must call this function at the same time.

    Args:
        weights: state dict of ``module`` that is about to be saved; changed in place. It holds shards or whole tensors;
            it is empty on ranks that do not write.
        module: the module that is saved.
        optimizers: the optimizers that train ``module``.

    Returns:
        for the checkpoint, the trained values of parameters whose evaluation weights are in ``weights``, by name.
    """
    if not any(_has_evaluation_weights(optimizer.rule) for optimizer in optimizers):
        return {}
    free_copies(module)
    trained_params = {param: value for opt in optimizers for param, value in opt.trained_params().items()}
    named_params = list(module.named_parameters(remove_duplicate=False))  # a shared parameter has several names
    if any(is_shard(value) for value in weights.values()):
        weights.update(
            {name: trained_params[param] for name, param in named_params if param in trained_params and name in weights}
        )
        _warn(optimizers[0])
        return {}
    evaluation_params = {param: value for opt in optimizers for param, value in opt.evaluation_params().items()}
    trained: dict[str, Tensor] = {}
    for name, param in named_params:
        second_version = trained_params.get(param, evaluation_params.get(param))
        value = None if second_version is None else gathered(second_version)  # a collective, even if nothing is written
        if value is None or not _fits(weights.get(name), value):
            continue
        if param in trained_params:
            trained[name] = value
        else:
            trained[name], weights[name] = weights[name], value
    return trained


@torch.no_grad()
def take_over(trained: Mapping[str, Tensor], module: nn.Module) -> None:
    """Give ``module`` the trained parameters of a checkpoint, as :func:`put_into` returned them.

    Raises:
        ValueError: if the trained parameters are shards: the checkpoint has only the shards of the rank that wrote it.
    """
    if trained:
        free_copies(module)
    for name, param in module.named_parameters():
        if name in trained:
            if is_shard(trained[name]):
                raise ValueError(
                    f"the trained weights in this checkpoint hold only one rank's shard of {name!r}; resume from a "
                    "checkpoint that a newer lightning_lopt has saved."
                )
            local(param).copy_(local_slice(trained[name], param))


def _fits(saved: Any, value: Tensor) -> bool:
    return isinstance(saved, Tensor) and saved.shape == value.shape


def _has_evaluation_weights(rule: UpdateRule) -> bool:
    return type(rule).evaluation_params is not UpdateRule.evaluation_params


def _warn(optimizer: LearnedOptimizer) -> None:
    if "evaluation weights" not in optimizer.signals.warned:
        optimizer.signals.warned.add("evaluation weights")
        warnings.warn(
            "a checkpoint of shards holds the trained weights, not the evaluation weights of this rule; to save "
            "evaluation weights, write a single file, with ModelParallelStrategy(save_distributed_checkpoint=False).",
            stacklevel=3,
        )
