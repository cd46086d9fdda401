"""Checks of a Trainer and its module, which give an error of one sentence before the optimizers are built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
import torch

from lightning_lopt._lightning import is_lightning
from lightning_lopt.optim import LearnedOptimizer


class ErrorWithoutBrackets(type):
    """A metaclass for callbacks: a class in place of an object, ``callbacks=[LearnedOptimizerAdapter]``, is an error.

    The Trainer reads ``state_key`` of each callback; of a class, it is the property of this metaclass.
    """

    @property
    def state_key(cls) -> str:
        raise TypeError(f"callbacks=[...] holds the class {cls.__name__}; write {cls.__name__}(), with brackets.")


def check_callbacks(trainer: L.Trainer, kind: type) -> None:
    """Raise if there is more than one adapter.

    Raises:
        ValueError: if more than one callback of the Trainer is a ``kind``.
    """
    names = [type(callback).__name__ for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]
    if len(names) > 1:
        raise ValueError(
            f"the Trainer has {len(names)} adapters for learned optimizers, {' and '.join(names)}; keep one "
            "(OnlineMetaTraining is a LearnedOptimizerAdapter itself)."
        )


def check_strategy(trainer: L.Trainer) -> None:
    """Raise for strategies that hide the shapes of parameters or the loss from a rule.

    Raises:
        ValueError: for FSDP1 and DeepSpeed.
    """
    if is_lightning(trainer.strategy, "FSDPStrategy"):
        raise ValueError(
            "strategy='fsdp' flattens parameters, so their shapes are lost to the rule; use ModelParallelStrategy "
            "(FSDP2) or 'ddp'."
        )
    if is_lightning(trainer.strategy, "DeepSpeedStrategy"):
        raise ValueError(
            "strategy='deepspeed' puts the optimizer into its own engine, which hides the loss and the shapes of "
            "parameters; use ModelParallelStrategy (FSDP2) or 'ddp'."
        )


def refuse_search_arguments(removed: Mapping[str, Any]) -> None:
    """Raise for arguments that belong to a search, and for unknown ones.

    Raises:
        TypeError: if there is any.
    """
    for name in removed:
        if name not in ("entries", "sigma", "pairs", "seed"):
            raise TypeError(f"OnlineMetaTraining.__init__() got an unexpected keyword argument {name!r}")
    if removed:
        given = ", ".join(f"{name}={value!r}" for name, value in removed.items())
        only_search = "pairs" in removed or "seed" in removed
        raise TypeError(
            f"OnlineMetaTraining got {given}, which the search takes; pass "
            f"search=functools.partial({'Search' if only_search else 'default_search'}, {given}), of "
            "lightning_lopt.meta.search"
            + (", or leave it out for a rule that calibrates its steps, as 'base' does." if only_search else ".")
        )


def only_learned_optimizer(trainer: L.Trainer, module: L.LightningModule) -> LearnedOptimizer:
    """The only optimizer of the fit, after a check that pilots can repeat its steps.

    Raises:
        ValueError: for manual optimization, several optimizers, an optimizer that is not learned, sharded or
            half-precision parameters, or parameters that do not belong to the module.
    """
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} uses manual optimization, so OnlineMetaTraining cannot repeat its steps; set "
            "automatic_optimization = True, or use LearnedOptimizerAdapter."
        )
    if is_lightning(trainer.strategy, "ModelParallelStrategy"):
        raise ValueError("OnlineMetaTraining needs whole parameters on every rank; use 'ddp' or a single device.")
    if len(trainer.optimizers) != 1 or not isinstance(trainer.optimizers[0], LearnedOptimizer):
        names = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
        raise ValueError(
            f"OnlineMetaTraining needs exactly one LearnedOptimizer, got {names or 'none'}; return one from "
            "configure_optimizers, or give the callback a rule, as in OnlineMetaTraining('base')."
        )
    optimizer = trainer.optimizers[0]
    module_params = set(module.parameters())
    for param in (param for group in optimizer.param_groups for param in group["params"]):
        if param.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"OnlineMetaTraining needs float32 parameters, got {param.dtype}; use precision='bf16-mixed' or "
                "'32-true'."
            )
        if param not in module_params:
            raise ValueError(
                "OnlineMetaTraining needs an optimizer whose parameters all belong to the module; some do not."
            )
    return optimizer
