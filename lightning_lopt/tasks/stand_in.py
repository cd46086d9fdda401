"""A stand-in Trainer, which returns the values that a training_step reads, and never trains."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch

from lightning_lopt.tasks.lightning_classes import lightning_package
from lightning_lopt.tasks.seeded_random import isolated


@dataclass(frozen=True)
class Fit:
    """The fit that a stand-in Trainer describes.

    Attributes:
        total_steps: planned optimizer steps, >= 1.
        batches: training batches of an epoch, >= 1.
        epochs: planned epochs; ``None`` to compute their number from the steps.
        global_step: steps made so far.
        current_epoch: epochs finished so far.
        datamodule: the data module; ``None`` if there is no data module.
    """

    total_steps: int = 1
    batches: int = 1
    epochs: int | None = None
    global_step: int = 0
    current_epoch: int = 0
    datamodule: Any = None

    @classmethod
    def of(cls, trainer: Any) -> Fit:
        """The present fit of a real Trainer."""
        batches = trainer.num_training_batches
        # before and after a fit there are no dataloaders, and the estimate would create dataloaders
        steps = trainer.max_steps if trainer.train_dataloader is None else trainer.estimated_stepping_batches
        if not 1 <= batches < math.inf:
            batches = 1
        if not 1 <= steps < math.inf:
            steps = max(1, trainer.global_step)
        return cls(
            int(steps),
            int(batches),
            trainer.max_epochs,
            trainer.global_step,
            trainer.current_epoch,
            getattr(trainer, "datamodule", None),
        )


def attach_stand_in(module: Any, fit: Fit) -> Any:
    """Give ``module`` a Trainer that never runs, from the package of its LightningModule, and return that Trainer.

    The Trainer has one process, on the module's device. It returns the steps, batches and epochs of ``fit``; its logger
    ignores all values. It has no optimizers before :func:`give_optimizers`.
    """
    package = lightning_package(module)
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    epochs = fit.epochs if fit.epochs is not None else math.ceil(fit.total_steps / fit.batches)
    with _quiet(), isolated(0):
        trainer = _stand_in_class(package, fit)(
            accelerator="cpu" if device.type == "cpu" else "gpu",
            devices=1 if device.type == "cpu" else [device.index or 0],
            strategy="auto",
            plugins=[import_module(f"{package}.plugins.environments").LightningEnvironment()],
            max_epochs=epochs,
            max_steps=fit.total_steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.loggers = [import_module(f"{package}.loggers.logger").DummyLogger()]
        trainer.datamodule = fit.datamodule
        trainer.training = True
        module.trainer = trainer
        trainer.strategy.connect(module)
    return trainer


def give_optimizers(trainer: Any, module: Any) -> None:
    """Give a stand-in Trainer the optimizers and schedulers of the module's ``configure_optimizers``, since a step may
    read their learning rates; if that method fails or returns no optimizer, the stand-in gets an AdamW.
    """
    with _quiet(), isolated(0):
        optimizers, schedulers = _optimizers(module, lightning_package(module))
        trainer.strategy.optimizers, trainer.strategy.lr_scheduler_configs = optimizers, schedulers


def _stand_in_class(package: str, fit: Fit) -> type:
    values = {
        "estimated_stepping_batches": fit.total_steps,
        "num_training_batches": fit.batches,
        "global_step": fit.global_step,
        "current_epoch": fit.current_epoch,
    }
    properties = {name: property(partial(_constant, value)) for name, value in values.items()}
    return type("StandInTrainer", (import_module(package).Trainer,), properties)


def _constant(value: int, trainer: Any) -> int:
    return value


def _optimizers(module: Any, package: str) -> tuple[list[Any], list[Any]]:
    """The optimizers, and the configurations of the schedulers."""
    core = import_module(f"{package}.core.optimizer")
    try:
        optimizers, schedulers = core._init_optimizers_and_lr_schedulers(module)
        if optimizers and all(isinstance(optimizer, torch.optim.Optimizer) for optimizer in optimizers):
            return optimizers, schedulers
    except Exception:  # any error: the step may never use the optimizers
        pass
    trained = [value for value in module.parameters() if value.requires_grad]
    return [torch.optim.AdamW(trained)] if trained else [], []


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings, and the messages of a Trainer when it is built."""
    disabled_level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled_level)
