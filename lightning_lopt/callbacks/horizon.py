"""The number of steps that a Trainer is still going to make, and the number of its passes over the data."""

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
        done: finished batches of this epoch, without the one that is running.
        is_over: whether all batches of this epoch are finished, as after a validation at its end.
        length: batches of an epoch, infinite where it is not known.
        epochs_after: epochs to come after this one, infinite without a limit.
        steps_left: steps of all optimizers until ``max_steps``, infinite without a limit.
    """

    epoch: int
    done: int
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
    begun = epochs.ready > epochs.processed  # the loop, or the checkpoint, is in the middle of an epoch
    between = batches.current.ready == batches.current.processed
    limit, steps = trainer.max_epochs, trainer.max_steps
    return FitProgress(
        epoch=epochs.processed,
        done=batches.current.processed if begun else 0,
        is_over=begun and between and (batches.is_last_batch or batches.current.ready >= trainer.num_training_batches),
        length=trainer.num_training_batches,
        epochs_after=math.inf if limit in (None, -1) else max(limit - epochs.processed - 1, 0),
        steps_left=math.inf if steps == -1 else max(steps - trainer.global_step, 0),
    )


def trainer_steps_left(trainer: L.Trainer, at: FitProgress) -> float:
    """Remaining steps in automatic optimization, including that of the running batch; infinite without an end."""

    def accumulated(epoch: int) -> int:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if is_lightning(callback, "GradientAccumulationScheduler"):
                return int(callback.get_accumulate_grad_batches(epoch))
        return trainer.accumulate_grad_batches

    if math.isinf(at.length + at.epochs_after):
        return at.steps_left
    length, later = int(at.length), range(at.epoch + 1, at.epoch + 1 + int(at.epochs_after))
    # a step after each full window, and one at the end of the epoch
    window = accumulated(at.epoch)
    steps_in_epoch = 0 if at.is_over else max(math.ceil(length / window) - at.done // window, 0)
    return min(steps_in_epoch + sum(math.ceil(length / accumulated(epoch)) for epoch in later), at.steps_left)


def planned_epochs(trainer: L.Trainer) -> float | None:
    """Planned passes over the training data of the whole fit; ``None`` if they are unknown.

    Where ``limit_train_batches`` leaves batches out, an epoch is a part of a pass, unless the batches are the same ones
    in each epoch (``overfit_batches``). With several optimizers, ``max_steps`` counts the steps of all of them.
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
    """Batches of a pass over the training data; 0 where batches repeat or their number is unknown."""
    loader = trainer.train_dataloader
    if trainer.overfit_batches or not isinstance(loader, DataLoader):  # type: ignore[attr-defined]
        return 0
    return sized_len(loader) or 0


def paced_steps_left(pace: Pace, other_paces: Sequence[Pace], at: FitProgress, batch: int) -> float:
    """Remaining steps of an optimizer in manual optimization, after the present one; infinite without an end.

    Args:
        pace: pace of the optimizer, including its present step.
        other_paces: paces of the other optimizers, whose steps count for ``max_steps`` too.
        at: progress of the fit in this batch, without the present step.
        batch: number of this batch since the optimizers were made.
    """
    by_epochs = by_steps = math.inf
    if math.isfinite(at.length + at.epochs_after):
        by_epochs = pace.steps_left(int(at.length), at.done + 1, int(at.epochs_after))
    if math.isfinite(at.steps_left):
        made_by_others = sum(each.steps_in_last_batch for each in other_paces if each.last_batch == batch)
        made_now = made_by_others + pace.steps_in_last_batch - 1
        # an optimizer without a step so far may make its first one in this batch
        rates = [other_pace.rate if other_pace.total or batch > 1 else pace.rate for other_pace in other_paces]
        batches = math.ceil((at.steps_left + made_now) / (pace.rate + sum(rates)) - 1e-9)
        by_steps = pace.steps_within(batches - 1)
    return min(by_epochs, by_steps)


class TrainerHorizon:
    """The steps of a Trainer as a horizon that is read at the first step.

    It is used until the adapter plans, since Lightning's tuners run a few steps without calling any callback. A copy or
    a pickle of it is ``None``, so that it contains no Trainer.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = weakref.ref(trainer)

    def __call__(self) -> int:
        trainer = self._trainer()
        steps = math.inf if trainer is None else trainer_steps_left(trainer, progress_of(trainer))
        return int(steps) if 1 <= steps < math.inf else 1000

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return type(None), ()
