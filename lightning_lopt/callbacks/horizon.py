"""The number of steps that a Trainer has still to make, and the number of its passes over the training data."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning.pytorch as L
from lightning.fabric.utilities.data import sized_len
from torch.utils.data import DataLoader

from lightning_lopt._lightning import is_lightning
from lightning_lopt.callbacks.pace import Pace


class FitProgress(NamedTuple):
    """Progress of a fit.

    Attributes:
        epoch: number of the present epoch, from 0.
        finished_batches: number of finished batches of this epoch, without the running batch.
        is_over: whether all batches of this epoch are finished, as after a validation at its end.
        length: number of batches of an epoch; infinite if it is not known.
        epochs_after: number of epochs after this one; infinite without a limit.
        steps_left: number of steps of all optimizers until ``max_steps``; infinite without a limit.
    """

    epoch: int
    finished_batches: int
    is_over: bool
    length: float
    epochs_after: float
    steps_left: float

    @property
    def is_open(self) -> bool:
        """Whether no end is known."""
        return math.isinf(self.steps_left) and math.isinf(self.length + self.epochs_after)


def progress_of(trainer: L.Trainer) -> FitProgress:
    """Progress of the fit; correct from ``on_train_start`` on, when the loops and the dataloaders are restored."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress
    has_begun = epochs.ready > epochs.processed  # the loop, or the checkpoint, is in the middle of an epoch
    is_between = batches.current.ready == batches.current.processed  # no batch is running
    limit, steps = trainer.max_epochs, trainer.max_steps
    return FitProgress(
        epoch=epochs.processed,
        finished_batches=batches.current.processed if has_begun else 0,
        is_over=has_begun
        and is_between
        and (batches.is_last_batch or batches.current.ready >= trainer.num_training_batches),
        length=trainer.num_training_batches,
        epochs_after=math.inf if limit in (None, -1) else max(limit - epochs.processed - 1, 0),
        steps_left=math.inf if steps == -1 else max(steps - trainer.global_step, 0),
    )


def trainer_steps_left(trainer: L.Trainer, progress: FitProgress) -> float:
    """Remaining steps in automatic optimization, including the step of the running batch; infinite without an end."""

    def batches_per_step(epoch: int) -> int:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if is_lightning(callback, "GradientAccumulationScheduler"):
                return int(callback.get_accumulate_grad_batches(epoch))
        return trainer.accumulate_grad_batches

    if math.isinf(progress.length + progress.epochs_after):
        return progress.steps_left
    length, next_epoch = int(progress.length), progress.epoch + 1
    # There is a step after each full window, and a step at the end of the epoch.
    window = batches_per_step(progress.epoch)
    steps_in_epoch = 0 if progress.is_over else max(math.ceil(length / window) - progress.finished_batches // window, 0)
    later_epochs = range(next_epoch, next_epoch + int(progress.epochs_after))
    later_steps = sum(math.ceil(length / batches_per_step(epoch)) for epoch in later_epochs)
    return min(steps_in_epoch + later_steps, progress.steps_left)


def planned_epochs(trainer: L.Trainer) -> float | None:
    """Planned passes over the training data of the whole fit; ``None`` if they are unknown.

    If ``limit_train_batches`` leaves batches out, an epoch is a part of a pass, unless each epoch has the same batches
    (``overfit_batches``). With several optimizers, ``max_steps`` counts the steps of all optimizers.
    """
    length, limit, steps = float(trainer.num_training_batches), trainer.max_epochs, trainer.max_steps
    if not 1 <= length < math.inf:
        return None
    epochs = math.inf if limit in (None, -1) else float(limit)
    if steps != -1:
        steps_in_epoch = math.ceil(length / trainer.accumulate_grad_batches) * max(len(trainer.optimizers), 1)
        epochs = min(epochs, steps / steps_in_epoch)
    passes = epochs * length / max(length, _batches_in_data(trainer))
    return passes if 0 < passes < math.inf else None


def _batches_in_data(trainer: L.Trainer) -> float:
    """Number of batches of a pass over the training data; 0 if batches repeat or their number is unknown."""
    loader = trainer.train_dataloader
    if trainer.overfit_batches or not isinstance(loader, DataLoader):  # type: ignore[attr-defined]
        return 0
    return sized_len(loader) or 0


def paced_steps_left(pace: Pace, other_paces: Sequence[Pace], progress: FitProgress, batch: int) -> float:
    """Remaining steps of an optimizer in manual optimization, after the present step; infinite without an end.

    Args:
        pace: pace of the optimizer, including its present step.
        other_paces: paces of the other optimizers, whose steps also count for ``max_steps``.
        progress: progress of the fit in this batch, without the present step.
        batch: number of this batch since the optimizers were made.
    """
    by_epochs = by_steps = math.inf
    if math.isfinite(progress.length + progress.epochs_after):
        batches_so_far = progress.finished_batches + 1
        by_epochs = pace.steps_left(int(progress.length), batches_so_far, int(progress.epochs_after))
    if math.isfinite(progress.steps_left):
        other_steps = sum(other.steps_in_last_batch for other in other_paces if other.last_batch == batch)
        steps_in_batch = other_steps + pace.steps_in_last_batch - 1
        # An optimizer without a step so far may make its first step in this batch.
        rates = [other_pace.rate if other_pace.total or batch > 1 else pace.rate for other_pace in other_paces]
        batches = math.ceil((progress.steps_left + steps_in_batch) / (pace.rate + sum(rates)) - 1e-9)
        by_steps = pace.steps_within(batches - 1)
    return min(by_epochs, by_steps)


class TrainerHorizon:
    """The number of steps of a Trainer, as a horizon that is read at the first step.

    The optimizer has this horizon until the adapter plans, since Lightning's tuners run a few steps without calling any
    callback. A copy or a pickle of this object is ``None``, so that it contains no Trainer.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = weakref.ref(trainer)

    def __call__(self) -> int:
        trainer = self._trainer()
        steps = math.inf if trainer is None else trainer_steps_left(trainer, progress_of(trainer))
        return int(steps) if 1 <= steps < math.inf else 1000

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return type(None), ()
