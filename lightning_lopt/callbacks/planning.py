"""The horizons of the learned optimizers of a fit, planned at the start and again during the fit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from lightning_lopt.callbacks.horizon import paced_steps_left, planned_epochs, progress_of, trainer_steps_left
from lightning_lopt.callbacks.pace import Pace
from lightning_lopt.optim import LearnedOptimizer


class Plan(ABC):
    """Updates the horizons of learned optimizers during a fit, and passes them the planned number of epochs.

    A horizon from the user wins; if it is not the number of steps of the fit, a warning names both numbers.

    Args:
        trainer: Trainer of the fit, after its loops were restored.
        learned: the learned optimizers.
        total_steps: horizon from the user for all learned optimizers; ``None`` without one.
    """

    def __init__(self, trainer: L.Trainer, learned: Sequence[LearnedOptimizer], total_steps: int | None) -> None:
        epochs = planned_epochs(trainer)
        self._trainer = trainer
        self._learned = list(learned)
        self._with_user_horizon = {o for o in learned if total_steps is not None or o.total_steps_given}
        self._warned: set[LearnedOptimizer] = set()
        if total_steps is not None:
            for optimizer in learned:
                optimizer.set_horizon(total_steps)
        for optimizer in learned:
            optimizer.plan_epochs(epochs)

    @abstractmethod
    def begin(self, saved: dict[str, Any]) -> None:
        """Plan at the start of training; ``saved`` is the ``state_dict`` of a checkpoint, or empty.

        Raises:
            ValueError: if a rule needs a horizon and the fit has no end.
        """

    def batch_begins(self) -> None:  # noqa: B027
        """Plan again if the length of the fit has changed; called before the backward pass of a batch."""

    @abstractmethod
    def before_step(self, optimizer: Optimizer) -> None:
        """Count a step; called before a step of any optimizer of the fit."""

    def epoch_ends(self) -> None:  # noqa: B027
        """Count an epoch; called after its last batch."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, plain numbers."""

    def _set(self, optimizer: LearnedOptimizer, total: int, *, announce: bool) -> None:
        """Set the horizon of ``optimizer`` to ``total`` steps since its first step, unless the user gave a horizon."""
        if optimizer in self._with_user_horizon:
            user_steps = optimizer.total_steps
            if isinstance(user_steps, int) and user_steps != total and optimizer not in self._warned and announce:
                self._warned.add(optimizer)
                rank_zero_warn(
                    f"total_steps={user_steps} was given, but this fit comes to {total} steps of the "
                    "optimizer; without total_steps, the adapter plans for this number."
                )
            return
        previous_total = optimizer.total_steps
        optimizer.set_horizon(total)
        if announce and optimizer.calls and isinstance(previous_total, int) and previous_total != total:
            rank_zero_info(
                f"The horizon of rule {optimizer.rule_label!r} changes from {previous_total} to {total} steps after "
                f"{optimizer.calls}; its schedule continues without a jump."
            )

    def _check_end(self, is_open: bool) -> None:
        without_horizon = [o for o in self._learned if o.rule.reads_horizon and o not in self._with_user_horizon]
        if is_open and without_horizon:
            raise ValueError(
                f"rule {without_horizon[0].rule_label!r} needs the number of planned steps, but the end of this fit is "
                "not known; set max_steps, or max_epochs with a dataloader that has a length, or pass "
                "LearnedOptimizerAdapter(total_steps=...)."
            )


class AutomaticPlan(Plan):
    """Automatic optimization: there is one optimizer, which makes a step for each step of the Trainer.

    The last step of the Trainer is computed at the start and at the first batch of each epoch, at which the number of
    batches, or of accumulated batches, may change. If ``optimizer_step`` of the module leaves steps out, the plan
    assumes that the ratio of the steps of the optimizer to those of the Trainer does not change.
    """

    def begin(self, saved: dict[str, Any]) -> None:
        (optimizer,) = self._learned
        steps_left = trainer_steps_left(self._trainer, progress_of(self._trainer))
        self._check_end(math.isinf(steps_left))
        self._end = self._trainer.global_step + steps_left
        resumed = bool(optimizer.calls)
        self._start, self._steps = self._trainer.global_step, 0
        if resumed and {"start", "steps"} <= saved.keys():
            self._start, self._steps = saved["start"], saved["steps"]
        self._ratio = self._present_ratio()
        self._has_checked_end = False
        if steps_left < 1 or math.isinf(steps_left) or (resumed and saved.get("end") == self._end):
            return
        steps_made = optimizer.steps_made if resumed else 0
        self._set(optimizer, steps_made + round(steps_left * self._ratio), announce=True)

    def batch_begins(self) -> None:
        if self._has_checked_end and self._trainer.fit_loop.epoch_loop.batch_progress.current.ready != 1:
            return
        self._has_checked_end = True
        steps_left = trainer_steps_left(self._trainer, progress_of(self._trainer))
        end, ratio = self._trainer.global_step + steps_left, self._present_ratio()
        if math.isinf(steps_left) or (end, ratio) == (self._end, self._ratio):
            return
        self._end, self._ratio = end, ratio
        (optimizer,) = self._learned
        self._set(optimizer, max(optimizer.steps_made + round(steps_left * ratio), 1), announce=True)

    def before_step(self, optimizer: Optimizer) -> None:
        self._steps += 1

    def _present_ratio(self) -> float:
        """Number of steps of the optimizer per step of the Trainer."""
        steps = self._trainer.global_step - self._start
        return self._steps / steps if steps and self._steps else 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"end": self._end, "start": self._start, "steps": self._steps}


class ManualPlan(Plan):
    """Manual optimization: each optimizer has its own pace, and each of its steps plans its horizon."""

    def begin(self, saved: dict[str, Any]) -> None:
        self._check_end(progress_of(self._trainer).is_open)
        batches: Any = self._trainer.fit_loop.epoch_loop.batch_progress
        optimizers = self._trainer.optimizers
        resumed = any(optimizer.calls for optimizer in self._learned)
        saved_paces = [Pace.from_state(pace) for pace in saved.get("paces", ())]
        if resumed and len(saved_paces) == len(optimizers):
            paces = saved_paces
            self._batches_before, self._is_complete_epoch = saved["before"], True
        else:
            paces = [Pace(total=getattr(optimizer, "calls", 0)) for optimizer in optimizers]
            self._batches_before, self._is_complete_epoch = (
                batches.total.processed,
                progress_of(self._trainer).finished_batches == 0,
            )
        self._paces = dict(zip(optimizers, paces, strict=True))

    def before_step(self, optimizer: Optimizer) -> None:
        batch = self._trainer.fit_loop.epoch_loop.batch_progress.total.ready - self._batches_before
        pace = self._paces[optimizer]
        pace.stepped(batch)
        if isinstance(optimizer, LearnedOptimizer):
            other_paces = [other_pace for other_pace in self._paces.values() if other_pace is not pace]
            progress = progress_of(self._trainer)
            steps_left = paced_steps_left(pace, other_paces, progress, batch)
            if math.isfinite(steps_left):
                total, previous_total = pace.total + int(steps_left), optimizer.total_steps
                is_large_change = (
                    not isinstance(previous_total, int) or abs(total - previous_total) > 0.1 * previous_total
                )
                # The user's number may include a short last window, which is counted only at the end of an epoch.
                is_counted = pace.whole_epoch >= 0 or math.isinf(progress.length)
                is_certain = is_counted if optimizer in self._with_user_horizon else pace.stepping > 1
                self._set(optimizer, total, announce=is_certain and is_large_change)

    def epoch_ends(self) -> None:
        batches: Any = self._trainer.fit_loop.epoch_loop.batch_progress
        for pace in self._paces.values():
            pace.epoch_ended(batches.current.processed, complete=self._is_complete_epoch)
        self._is_complete_epoch = True

    def state_dict(self) -> dict[str, Any]:
        return {"before": self._batches_before, "paces": [pace.state_dict() for pace in self._paces.values()]}
