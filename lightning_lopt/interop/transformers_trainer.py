"""A mixin with which ``transformers.Trainer`` passes loss and horizon to a learned optimizer, without a schedule."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lightning_lopt.optim import LearnedOptimizer
from lightning_lopt.optim.sharding import free_copies
from lightning_lopt.rules.base import UpdateRule


class LearnedTrainerMixin:
    """Makes ``transformers.Trainer``, or a subclass of it, train with a learned optimizer.

    The optimizer receives two values that the Trainer does not pass to other optimizers. The first is the loss of each
    step, which is summed over the accumulated batches, as gradients are, and averaged over the processes. The second is
    ``max_steps``, the horizon. The schedule of the Trainer is not used, since it would multiply the schedule of the
    rule. ``resume_from_checkpoint`` works as with any optimizer, also with a different ``max_steps``. If the rule has
    separate evaluation weights, as :class:`~lightning_lopt.ScheduleFreeAdamRule` does, the model has them during
    evaluation and after ``train()``; checkpoints, and the model of ``load_best_model_at_end``, have the trained
    weights.

    ``learning_rate``, ``optim``, ``warmup_steps`` and ``lr_scheduler_type`` of the ``TrainingArguments`` have no
    effect; clipping (``max_grad_norm``) works. To set more than the rule, pass an optimizer as
    ``optimizers=(LearnedOptimizer(model, lr=0.5), None)``; a scheduler in this tuple is used unchanged.

    Attributes:
        rule: the argument ``rule`` of :class:`~lightning_lopt.LearnedOptimizer`.

    Example:
        With ``transformers``, write ``class Trainer(LearnedTrainerMixin, transformers.Trainer): pass``, and call
        ``Trainer(model, TrainingArguments("out"), train_dataset=data).train()``. In this example, ``StandIn`` replaces
        ``transformers.Trainer``:

        >>> from types import SimpleNamespace
        >>> class StandIn:
        ...     model, optimizer, args = nn.Linear(2, 2), None, SimpleNamespace(weight_decay=0.0)
        ...     def create_optimizer(self):
        ...         return self.optimizer
        >>> class Trainer(LearnedTrainerMixin, StandIn):
        ...     rule = "base"
        >>> optimizer = Trainer().create_optimizer()
        >>> type(optimizer).__name__, optimizer.rule_label
        ('LearnedOptimizer', 'base')
    """

    rule: str | Path | UpdateRule = "base"
    _window_loss: Tensor | None = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The optimizer that was passed, or a learned optimizer with :attr:`rule` for the trainable parameters."""
        trainer = cast(Any, self)
        if trainer.optimizer is None:
            model = args[0] if args else kwargs.get("model")
            trainer.optimizer = LearnedOptimizer(trainer.model if model is None else model, self.rule)
            if trainer.args.weight_decay:
                warnings.warn(
                    f"TrainingArguments(weight_decay={trainer.args.weight_decay}) is left out, since its unit is "
                    "AdamW's; pass optimizers=(LearnedOptimizer(model, weight_decay=...), None) to set it.",
                    stacklevel=2,
                )
        result: torch.optim.Optimizer = cast(Any, super()).create_optimizer(*args, **kwargs)
        return result

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The scheduler that was passed, or a scheduler that does not change learning rates."""
        trainer = cast(Any, self)
        optimizer = trainer.optimizer if optimizer is None else optimizer
        if trainer.lr_scheduler is None and _learned_in(optimizer) is not None:
            trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _unit_factor)
            trainer._created_lr_scheduler = True  # the next call of train() then makes a new scheduler
        return cast(Any, super()).create_scheduler(num_training_steps, optimizer)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """A forward and a backward pass; after the last pass of a step, the optimizer receives the loss of the step."""
        loss: Tensor = cast(Any, super()).training_step(*args, **kwargs)
        trainer = cast(Any, self)
        learned = _learned_in(trainer.optimizer)
        if learned is None:
            return loss
        batch_loss = loss.detach().float()  # it has the scale of the loss that was differentiated
        window_loss = batch_loss if self._window_loss is None else self._window_loss + batch_loss
        self._window_loss = window_loss
        if trainer.accelerator.sync_gradients:
            self._window_loss = None
            learned.set_loss(trainer.accelerator.reduce(window_loss.clone(), reduction="mean"))
            if not learned.total_steps_given and learned.total_steps != trainer.state.max_steps:
                learned.set_horizon(trainer.state.max_steps)
            epochs = trainer.state.num_train_epochs  # sys.maxsize for a data set without a length
            learned.plan_epochs(epochs if epochs < sys.maxsize else None)
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate with the weights of the optimizer's ``eval()``; during training, return to the trained weights, and
        pass ``eval_loss`` to a rule that reads it."""
        metrics = cast(Any, super()).evaluate(*args, **kwargs)
        trainer = cast(Any, self)
        learned = _learned_in(trainer.optimizer)
        if learned is not None and trainer.is_in_train:
            learned.train()
            if "eval_loss" in metrics and learned.validated(metrics["eval_loss"], trainer.model):
                free_copies(trainer.model)
        return metrics

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; afterwards the model has the evaluation weights, or the weights of ``load_best_model_at_end``."""
        self._window_loss = None
        output = cast(Any, super()).train(*args, **kwargs)
        trainer = cast(Any, self)
        learned = _learned_in(trainer.optimizer)
        if learned is not None and not trainer.args.load_best_model_at_end:
            learned.eval()
        return output


def _unit_factor(step: int) -> float:
    return 1.0


def _learned_in(optimizer: Any) -> LearnedOptimizer | None:
    """The learned optimizer inside the wrappers of accelerate; ``None`` for any other optimizer."""
    while optimizer is not None and not isinstance(optimizer, LearnedOptimizer):
        optimizer = optimizer.__dict__.get("optimizer")
    return optimizer
