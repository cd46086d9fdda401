"""How many steps a Trainer is going to make, from where it stands."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning.pytorch as L

from lightning_lopt._lightning import is_lightning
from lightning_lopt.callbacks.pace import Pace


class Progress(NamedTuple):
    """Where a fit stands.

    Attributes:
        epoch: number of the present epoch, from 0.
        done: batches of it that are over, without the one that is running.
        is_over: whether all of its batches are, as after a validation at its end.
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


def progress_of(trainer: L.Trainer) -> Progress:
    """Where the fit stands; right from ``on_train_start`` on, when the loops and the dataloaders are restored."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress
    begun = epochs.ready > epochs.processed  # an epoch that the loop, or a checkpoint, is in the middle of
    between = batches.current.ready == batches.current.processed
    limit, steps = trainer.max_epochs, trainer.max_steps
    return Progress(
        epoch=epochs.processed,
        done=batches.current.processed if begun else 0,
        is_over=begun and between and (batches.is_last_batch or batches.current.ready >= trainer.num_training_batches),
        length=trainer.num_training_batches,
        epochs_after=math.inf if limit in (None, -1) else max(limit - epochs.processed - 1, 0),
        steps_left=math.inf if steps == -1 else max(steps - trainer.global_step, 0),
    )


def trainer_steps_left(trainer: L.Trainer, at: Progress) -> float:
    """Steps to come in automatic optimization, with those of the batch that is running; infinite where it is open."""

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
    here = 0 if at.is_over else max(math.ceil(length / window) - at.done // window, 0)
    return min(here + sum(math.ceil(length / accumulated(epoch)) for epoch in later), at.steps_left)


def paced_steps_left(pace: Pace, others: Sequence[Pace], at: Progress, batch: int) -> float:
    """Steps to come of an optimizer in manual optimization, after the present one; infinite where it is open.

    Args:
        pace: of the optimizer, with its present step.
        others: of the other optimizers, whose steps count for ``max_steps`` too.
        at: where the fit stands, this batch begun, the present step not counted.
        batch: number of this batch since the optimizers were made.
    """
    by_epochs = by_steps = math.inf
    if math.isfinite(at.length + at.epochs_after):
        by_epochs = pace.steps_left(int(at.length), at.done + 1, int(at.epochs_after))
    if math.isfinite(at.steps_left):
        made_now = sum(other.now for other in others if other.last == batch) + pace.now - 1
        # one that has made no step may be about to make its first in this batch
        rates = [other.rate if other.total or batch > 1 else pace.rate for other in others]
        batches = math.ceil((at.steps_left + made_now) / (pace.rate + sum(rates)) - 1e-9)
        by_steps = pace.steps_within(batches - 1)
    return min(by_epochs, by_steps)


class TrainerHorizon:
    """The steps of a Trainer as a horizon that is read at the first step.

    It stands in until the adapter plans, since Lightning's tuners run a few steps without calling any callback. Copies
    hold no Trainer; they are ``None``.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = weakref.ref(trainer)

    def __call__(self) -> int:
        trainer = self._trainer()
        steps = math.inf if trainer is None else trainer_steps_left(trainer, progress_of(trainer))
        return int(steps) if 1 <= steps < math.inf else 1000

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return type(None), ()
