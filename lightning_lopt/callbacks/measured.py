"""Weights in checkpoints, where a rule answers for other parameters than it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
from torch import Tensor

from lightning_lopt.optim import LearnedOptimizer


def put_measured_weights(
    weights: dict[str, Any], module: L.LightningModule, optimizers: Sequence[LearnedOptimizer]
) -> dict[str, Tensor]:
    """Put the parameters to measure into ``weights``, the module's ``state_dict``, in place.

    Returns:
        the parameters that training goes on with, by name; empty where they are the same.
    """
    apart = {param: value for optimizer in optimizers for param, value in optimizer.trained_params().items()}
    measured = {param: value for optimizer in optimizers for param, value in optimizer.evaluation_params().items()}
    trained: dict[str, Tensor] = {}
    for name, param in module.named_parameters(remove_duplicate=False):  # shared ones under each of their names
        if param in apart:
            trained[name] = apart[param]
        elif param in measured and type(weights.get(name)) is type(measured[param]):  # else sharded, or gathered
            trained[name], weights[name] = weights[name], measured[param]
    return trained
