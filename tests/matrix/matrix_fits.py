"""One cell of the contract matrix: a real fit, and what it leaves as numbers."""

import warnings
from functools import partial
from typing import Any

import lightning.pytorch
import torch
from matrix_cells import EPOCHS, STEPS, Cell
from matrix_networks import module_for, trainer_settings

from lightning_lopt import LearnedOptimizer, LearnedOptimizerAdapter


class Watch(lightning.pytorch.Callback):
    """Records the loss and the horizon that reach the rule, and by what each step of the rule is multiplied."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.horizons: list[float] = []
        self.rates: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for optimizer in trainer.optimizers:
            optimizer.rule.at = partial(self._see, optimizer.rule.at)

    def _see(self, at: Any, shared: Any, context: Any) -> Any:
        self.losses.append(float(context.loss))
        self.horizons.append(float(context.total_steps))
        return at(shared, context)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        group = optimizer.param_groups[0]
        self.rates.append(float(group["lr"]) / group.get("lr_unit", 1.0))  # a swap keeps the rates of the module


def run(cell: Cell, epochs: int = EPOCHS) -> dict[str, Any]:
    """Fit the cell; its end as tensors, numbers and strings, or ``{"error": ...}`` where it raised."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            return {**_fit(cell, epochs), "warnings": [str(warning.message) for warning in caught]}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _fit(cell: Cell, epochs: int) -> dict[str, Any]:
    lightning_like = lightning.pytorch
    if cell.network == "pytorch_lightning":
        import pytorch_lightning as lightning_like
    module, watch = module_for(cell, lightning_like), Watch()
    horizon = STEPS if cell.loop == "manual" and cell.accumulation == "short" else None  # windows differ in length
    adapter = LearnedOptimizerAdapter(None if cell.optimizer == "own" else "base", total_steps=horizon)
    trainer = lightning_like.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[adapter, watch],
        max_epochs=epochs,
        **trainer_settings(cell, lightning_like),
    )
    trainer.fit(module)
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, LearnedOptimizer)
    named = {name.replace("_orig_mod.", ""): param for name, param in module.net.named_parameters()}
    return {
        "end": {name: whole(param) for name, param in named.items()},
        "with_state": [name for name, param in named.items() if optimizer.state.get(param)],
        "state": [whole(v) for state in optimizer.state.values() for v in state.values()],
        "losses": watch.losses,
        "horizons": watch.horizons,
        "rates": watch.rates,
        "steps": int(optimizer.param_groups[0]["step"]),
        "skipped": optimizer.skipped_steps,
        "global_step": trainer.global_step,
    }


def whole(param: torch.Tensor) -> torch.Tensor:
    """A copy of a parameter, gathered where it is sharded."""
    value = param.detach()
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()
