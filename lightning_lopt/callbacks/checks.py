"""What a Trainer must not have beside an adapter, said in a sentence before anything is built."""

from __future__ import annotations

import lightning.pytorch as L

from lightning_lopt._lightning import is_lightning


def check_callbacks(trainer: L.Trainer, kind: type) -> None:
    """Refuse several adapters.

    Raises:
        ValueError: if more than one callback of the Trainer is a ``kind``.
    """
    names = [type(callback).__name__ for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]
    if len(names) > 1:
        raise ValueError(
            f"the Trainer has {len(names)} adapters for learned optimizers, {' and '.join(names)}; keep one "
            "(MetaTraining is a LearnedOptimizerAdapter itself)."
        )


def check_strategy(trainer: L.Trainer) -> None:
    """Refuse strategies that hide from a rule what it needs.

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
            "strategy='deepspeed' takes the optimizer into an engine of its own, which hides the loss and the shapes "
            "of parameters; use ModelParallelStrategy (FSDP2) or 'ddp'."
        )
