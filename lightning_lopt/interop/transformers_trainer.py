"""A mixin by which ``transformers.Trainer`` gives a learned optimizer its loss and horizon, without a schedule."""

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

    The optimizer gets two values that the Trainer does not pass to optimizers: the loss of each step, summed over the
    accumulated batches as their gradients are and averaged over the processes, and ``max_steps`` as the horizon. The
    Trainer's schedule is left out, since it would multiply the schedule of the rule. ``resume_from_checkpoint`` works
    as with any optimizer, also with another ``max_steps``. If the rule has separate evaluation weights, as
    :class:`~lightning_lopt.ScheduleFreeAdamRule` does, the model has them during evaluation and after ``train()``;
    checkpoints, and so the model of ``load_best_model_at_end``, contain the trained weights.

    ``learning_rate``, ``optim``, ``warmup_steps`` and ``lr_scheduler_type`` of the ``TrainingArguments`` have no
    effect; clipping (``max_grad_norm``) has. To set more than the rule, pass an optimizer as
    ``optimizers=(LearnedOptimizer(model, lr=0.5), None)``; a scheduler that is passed with it is used unchanged.

    Attributes:
        rule: the argument ``rule`` of :class:`~lightning_lopt.LearnedOptimizer`.

    Example:
        With ``transformers`` it is ``class Trainer(LearnedTrainerMixin, transformers.Trainer): pass``, and then
        ``Trainer(model, TrainingArguments("out"), train_dataset=data).train()``. Here a class stands in for the
        Trainer, to show what the mixin makes of it:

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
        """The optimizer that was passed, or one with :attr:`rule` for the trainable parameters of the model."""
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
        """The scheduler that was passed, or one that leaves every learning rate unchanged."""
        trainer = cast(Any, self)
        optimizer = trainer.optimizer if optimizer is None else optimizer
        if trainer.lr_scheduler is None and _learned_in(optimizer) is not None:
            trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _unchanged)
            trainer._created_lr_scheduler = True  # another call of train() makes a new scheduler then
        return cast(Any, super()).create_scheduler(num_training_steps, optimizer)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """A forward and a backward pass; after the last one of a step, the optimizer gets the loss of the step."""
        loss: Tensor = cast(Any, super()).training_step(*args, **kwargs)
        trainer = cast(Any, self)
        learned = _learned_in(trainer.optimizer)
        if learned is None:
            return loss
        batch_loss = loss.detach().float()  # it has the scale of the loss that was differentiated
        total = batch_loss if self._window_loss is None else self._window_loss + batch_loss
        self._window_loss = total
        if trainer.accelerator.sync_gradients:
            self._window_loss = None
            learned.set_loss(trainer.accelerator.reduce(total.clone(), reduction="mean"))
            if not learned.total_steps_given and learned.total_steps != trainer.state.max_steps:
                learned.set_horizon(trainer.state.max_steps)
            epochs = trainer.state.num_train_epochs  # it is sys.maxsize for a data set without a length
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
            if "eval_loss" in metrics and learned.validated(metrics["eval_loss"]):
                free_copies(trainer.model)
        return metrics

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; afterwards the model has the evaluation weights, or those of ``load_best_model_at_end``."""
        self._window_loss = None
        output = cast(Any, super()).train(*args, **kwargs)
        trainer = cast(Any, self)
        learned = _learned_in(trainer.optimizer)
        if learned is not None and not trainer.args.load_best_model_at_end:
            learned.eval()
        return output


def _unchanged(step: int) -> float:
    return 1.0


def _learned_in(optimizer: Any) -> LearnedOptimizer | None:
    """The learned optimizer inside wrappers of accelerate; ``None`` for another optimizer."""
    while optimizer is not None and not isinstance(optimizer, LearnedOptimizer):
        optimizer = optimizer.__dict__.get("optimizer")
    return optimizer
