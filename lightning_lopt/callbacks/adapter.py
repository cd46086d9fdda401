"""Where a rule meets somebody's Trainer: loss and horizon in, and the optimizer swapped if asked to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_lopt.optim import LearnedOptimizer, evaluation_weights, labels_of, named_groups
from lightning_lopt.optim.inputs import checked_horizon
from lightning_lopt.rules.base import UpdateRule

TRAINED = "lightning_lopt_trained_parameters"


class LearnedOptimizerAdapter(L.Callback):
    """Feeds every :class:`~lightning_lopt.LearnedOptimizer` the loss of each step and the horizon of the fit.

    The loss is the mean over the accumulation window and over ranks, without the gradient scaler's factor; one that is
    passed to ``step(loss=...)`` in manual optimization is averaged over ranks too. With ``rule``, the optimizers that
    the module configures are replaced, their learning-rate schedulers dropped (a rule schedules itself), and roles of
    parameters follow from the types of the module's layers, where a group does not set its ``role``.

    A rule that answers for other parameters than it trains, as averages of iterates do, has them in the model during
    validation, after the fit, and in the ``state_dict`` of checkpoints; for resuming, checkpoints hold the trained ones
    besides. Checkpoints of weights alone (``save_weights_only``) and of shards (directories) have the trained ones.

    Args:
        rule: ``None`` to feed only; a rule, or what ``LearnedOptimizer`` takes for one, to replace the optimizers.
        total_steps: horizon, where the Trainer's own estimate does not hold (manual optimization with several steps
            a batch, a changing accumulation factor) or does not exist.
        lr: see :class:`~lightning_lopt.LearnedOptimizer`; used with ``rule`` only.
        weight_decay: likewise.

    Raises:
        ValueError: if ``total_steps`` is no whole number of at least 1; in ``setup`` for a strategy that flattens
            parameters; at the start of training if there is no learned optimizer or no horizon.
    """

    def __init__(
        self,
        rule: str | Path | UpdateRule | None = None,
        *,
        total_steps: int | None = None,
        lr: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        self.rule = rule
        self.total_steps = checked_horizon(total_steps)
        self.lr = lr
        self.weight_decay = weight_decay
        self._loss: Tensor | None = None
        self._count = 0
        self._trained: dict[str, Tensor] = {}  # from a checkpoint, until the fit goes on with them
        self._steps_before = 0  # of the Trainer, before the first step of the optimizers
        self._replaced: dict[str, Any] | None = None  # what the module itself had for configure_optimizers

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy):
            raise ValueError(
                "strategy='fsdp' flattens parameters, so their shapes are lost to the rule; use "
                "ModelParallelStrategy (FSDP2) or 'ddp'."
            )
        if stage == "fit" and self.rule is not None:
            original = pl_module.configure_optimizers
            name = "configure_optimizers"
            self._replaced = {name: original} if name in pl_module.__dict__ else {}

            def configure_optimizers() -> Any:
                return self._replace(original(), pl_module)

            pl_module.configure_optimizers = configure_optimizers  # type: ignore[method-assign]

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for optimizer in _learned(trainer):
            optimizer.signals.reduce = None
        if self._replaced is not None:
            del pl_module.__dict__["configure_optimizers"]
            pl_module.__dict__.update(self._replaced)
            self._replaced = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def _replace(self, configured: Any, module: L.LightningModule) -> Any:
        labels = labels_of(module)
        learned = []
        for optimizer in optimizers_in(configured):
            groups = [{"params": group["params"], "role": group.get("role")} for group in optimizer.param_groups]
            learned.append(self._build(named_groups(groups, labels=labels)))
            learned[-1].labels = labels
        if not learned:
            learned = [self._build(module)]
        return learned[0] if len(learned) == 1 else learned

    def _build(self, params: Any) -> LearnedOptimizer:
        assert self.rule is not None
        return LearnedOptimizer(
            params, self.rule, total_steps=self.total_steps, lr=self.lr, weight_decay=self.weight_decay
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learned = _learned(trainer)
        if not learned:
            raise ValueError(
                "LearnedOptimizerAdapter() found no LearnedOptimizer; return one from configure_optimizers, or give "
                "the adapter a rule, as in LearnedOptimizerAdapter('base')."
            )
        if all(int(optimizer.param_groups[0]["step"]) == 0 for optimizer in learned):
            self._steps_before = trainer.global_step  # not 0 in a second fit, which has fresh optimizers
        for optimizer in learned:
            # clone: some strategies reduce in place, and this is the user's tensor
            optimizer.signals.reduce = lambda loss: trainer.strategy.reduce(loss.clone(), reduce_op="mean")
            if self.total_steps is None and optimizer.total_steps_given:
                continue
            horizon = self.total_steps or _estimated_steps(trainer) - self._steps_before
            if 1 <= horizon < math.inf:
                optimizer.total_steps = int(horizon)
            elif optimizer.rule.reads_horizon:
                raise ValueError(
                    f"the Trainer's estimate of its steps, {trainer.estimated_stepping_batches}, is open, or does not "
                    "hold with a GradientAccumulationScheduler; pass LearnedOptimizerAdapter(total_steps=...) or set "
                    "max_steps."
                )
        self._loss, self._count = None, 0
        evaluation_weights.take_over(self._trained, pl_module)
        self._trained = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        evaluation_weights.to_evaluation(pl_module, _learned(trainer))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            evaluation_weights.to_evaluation(pl_module, _learned(trainer))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            evaluation_weights.to_training(pl_module, _learned(trainer))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        trained = evaluation_weights.put_into(checkpoint["state_dict"], pl_module, _learned(trainer))
        if trained:
            checkpoint[TRAINED] = trained

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._trained = checkpoint.get(TRAINED, {})

    def state_dict(self) -> dict[str, Any]:
        return {"steps_before": self._steps_before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps_before = state_dict["steps_before"]

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        value = loss.detach().float()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            value = value / scaler.scale(torch.ones((), device=value.device))
        if pl_module.automatic_optimization:
            value = value * trainer.accumulate_grad_batches
        self._loss = value if self._loss is None else self._loss + value
        self._count += 1

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._loss is None:
            return
        mean = trainer.strategy.reduce(self._loss / self._count, reduce_op="mean")
        self._loss, self._count = None, 0
        if isinstance(optimizer, LearnedOptimizer):
            optimizer.signals.loss = mean


def _learned(trainer: L.Trainer) -> list[LearnedOptimizer]:
    return [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, LearnedOptimizer)]


def _estimated_steps(trainer: L.Trainer) -> float:
    """The Trainer's own estimate of its steps, -1 or infinite where it has none or it does not hold."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler) and callback.going_to_accumulate_grad_batches():
            return math.inf if trainer.max_epochs != -1 else trainer.max_steps
    return trainer.estimated_stepping_batches


def optimizers_in(configured: Any) -> list[torch.optim.Optimizer]:
    """The optimizers in anything that ``configure_optimizers`` may return."""
    if isinstance(configured, torch.optim.Optimizer):
        return [configured]
    if isinstance(configured, dict):
        return optimizers_in(configured.get("optimizer"))
    if isinstance(configured, list | tuple):
        return [optimizer for entry in configured for optimizer in optimizers_in(entry)]
    return []
