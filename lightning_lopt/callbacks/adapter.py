"""The callback that connects a rule to a Trainer: it passes loss and horizon, and can replace the optimizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_lopt.callbacks.checks import ErrorWithoutBrackets, check_callbacks, check_strategy
from lightning_lopt.callbacks.horizon import TrainerHorizon
from lightning_lopt.callbacks.logs import Logs, warn_at_the_end
from lightning_lopt.callbacks.losses import MeanLoss, SummedLosses, unscaled
from lightning_lopt.callbacks.planning import AutomaticPlan, ManualPlan, Plan
from lightning_lopt.callbacks.swap import AfterSetup, swap_optimizers
from lightning_lopt.callbacks.validation_loss import ValidationLoss
from lightning_lopt.callbacks.watch import ScalerWatch, StepWatch, warn_if_pretrained
from lightning_lopt.optim import LearnedOptimizer, LossGuard, evaluation_weights, labels_of
from lightning_lopt.optim.inputs import checked_horizon
from lightning_lopt.rules.base import UpdateRule

TRAINED = "lightning_lopt_trained_parameters"


class LearnedOptimizerAdapter(L.Callback, metaclass=ErrorWithoutBrackets):
    """Passes the loss of each step and the horizon of the fit to every :class:`~lightning_lopt.LearnedOptimizer`.

    **Loss.** In automatic optimization, the loss of a step is the mean over the accumulation window. In manual
    optimization, it is the sum of the losses of all backward passes since the last step, as gradients add up; with
    several optimizers, each gets the losses that changed its gradients. The loss is the mean over ranks, without the
    factor of a gradient scaler; a loss for ``step(loss=...)`` in manual optimization is also averaged over ranks.

    **Horizon.** In automatic optimization, the horizon is the number of steps that the Trainer will make, also with a
    ``GradientAccumulationScheduler``. In manual optimization, it is estimated from how often an optimizer steps, and
    corrected at later steps. A fit that resumes with other batches, devices or epochs gets a new horizon without a jump
    of the schedule, and a message says so. If the number of steps differs from the plan, as after early stopping, a
    warning names both numbers.

    **Validation loss.** If the logged validation loss rises, ``base`` shortens its steps and restores its best weights.

    **Swap.** With ``rule``, the optimizers that the module configures are replaced, in this Trainer only; the module
    does not change. Groups keep their keys and the ratios of their rates; a group with ``lr=0`` beside others stays
    frozen. The ``lr`` of a group keeps the unit of the module: the steps of the rule are multiplied by ``lr`` divided
    by the largest configured ``lr`` (``lr_unit`` of the group), so a warm-up by hand, or a callback that sets rates,
    works as before. Schedulers have no effect, since a rule has its own schedule; they stay with the replaced
    optimizers, and the module may step them and log their rate. A warning names these schedulers, and weight decay that
    differs by group. Roles of parameters follow from the types of layers, unless a group sets its ``role``.

    **Logs.** Every ``log_every_n_steps``, loggers get relative step sizes by role (RMS of updates over RMS of
    parameters), the diagnostics of the rule, skipped steps, and whether the run is past its horizon. Name, revision and
    hash of the rule are logged as hyperparameters. ``LearningRateMonitor`` shows the constant 1.0 for a
    ``LearnedOptimizer`` from the module, since ``lr`` multiplies the steps of a rule. After a swap it shows the
    configured rate, and the rate of schedulers without effect.

    **Evaluation weights.** If the evaluation weights of a rule differ from the trained weights (averages of iterates,
    for instance), the module has them during validation, after the fit, and in the ``state_dict`` of checkpoints; for
    resuming, checkpoints also hold the trained weights. Checkpoints that hold only weights (``save_weights_only``), and
    checkpoints of shards (directories), have the trained weights.

    Args:
        rule: ``None`` to replace no optimizer; a rule, or another value for the argument ``rule`` of
            ``LearnedOptimizer``, to replace the optimizers.
        total_steps: horizon of each optimizer, for a Trainer without an end (only ``max_time``), or to replace the
            number of steps of the Trainer.
        monitor: name of the logged validation loss. With ``"auto"``, it is the one that ``EarlyStopping`` or
            ``ModelCheckpoint`` monitors with ``mode="min"``, or a logged validation loss; ``None`` passes no loss.
        lr, weight_decay: arguments of :class:`~lightning_lopt.LearnedOptimizer`, used only with ``rule``; they apply to
            the groups with the largest configured rate, or decay.
        guard, compile, state_dtype: arguments of ``LearnedOptimizer``, used only with ``rule``.
        log: whether to log.

    Raises:
        TypeError: from the Trainer, if it receives the class instead of an instance.
        ValueError: if ``total_steps`` is no whole number of at least 1; in ``setup`` for a strategy that flattens
            parameters, or beside another adapter; at the start of training if there is no learned optimizer or no
            horizon.

    Example:
        >>> trainer = L.Trainer(callbacks=[LearnedOptimizerAdapter("base")], max_epochs=10, logger=False)
    """

    def __init__(
        self,
        rule: str | Path | UpdateRule | None = None,
        *,
        total_steps: int | None = None,
        monitor: str | None = "auto",
        lr: float = 1.0,
        weight_decay: float = 0.0,
        guard: bool | LossGuard = False,
        compile: bool | None = None,
        state_dtype: torch.dtype | None = None,
        log: bool = True,
    ) -> None:
        self.rule, self.monitor = rule, monitor
        self.total_steps = checked_horizon(total_steps)
        self.lr, self.weight_decay = lr, weight_decay
        self.guard, self.compile, self.state_dtype = guard, compile, state_dtype
        self.logs = log  # Lightning sets callback.log
        self._after_setup: AfterSetup | None = None
        self._resumes = False
        self._trained: dict[str, Tensor] = {}  # trained parameters of a checkpoint, until training starts
        self._steps_before = 0  # steps of the Trainer before the first step of the optimizers
        self._losses: MeanLoss | SummedLosses = MeanLoss()
        self._saved_horizons: dict[str, Any] = {}
        self._horizons: Plan | None = None
        self._logs: Logs | None = None
        self._validation: ValidationLoss | None = None
        self._scaler, self._steps = ScalerWatch(), StepWatch([])

    # -- set-up

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called before ``configure_optimizers``: checks the strategy, and prepares the swap of optimizers."""
        check_strategy(trainer)
        if stage != "fit":
            return
        check_callbacks(trainer, LearnedOptimizerAdapter)
        self._resumes = False
        self._undo_setup()
        self._after_setup = AfterSetup(trainer, self._on_optimizers_set_up)

    def _on_optimizers_set_up(self, trainer: L.Trainer) -> None:
        if self.rule is not None:
            swap_optimizers(trainer, self._build)
        for optimizer in _learned(trainer):
            if optimizer.total_steps is None and not self._resumes:
                optimizer.total_steps = TrainerHorizon(trainer)

    def _build(self, params: Any) -> LearnedOptimizer:
        assert self.rule is not None
        return LearnedOptimizer(
            params,
            self.rule,
            lr=self.lr,
            weight_decay=self.weight_decay,
            guard=self.guard,
            compile=self.compile,
            state_dtype=self.state_dtype,
        )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called once the optimizers exist: gives them the names and roles of the parameters of the module."""
        labels = labels_of(pl_module)
        for optimizer in _learned(trainer):
            optimizer.relabel(labels)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after a checkpoint was restored, before the first batch: plans the horizons, and begins to collect
        losses, to watch steps and to log.
        """
        learned = _learned(trainer)
        if not learned:
            raise ValueError(
                "LearnedOptimizerAdapter() found no LearnedOptimizer; return one from configure_optimizers, or give "
                "the adapter a rule, as in LearnedOptimizerAdapter('base')."
            )
        is_new_run = all(optimizer.calls == 0 for optimizer in learned)
        if is_new_run:
            self._steps_before = trainer.global_step  # not 0 in a second fit, which has fresh optimizers
        for optimizer in learned:
            # clone: some strategies reduce in place, and the loss is a tensor of the user
            optimizer.signals.reduce = lambda loss: trainer.strategy.reduce(loss.clone(), reduce_op="mean")
        automatic = pl_module.automatic_optimization
        self._losses = MeanLoss() if automatic else SummedLosses(trainer.optimizers)
        plan = (AutomaticPlan if automatic else ManualPlan)(trainer, learned, self.total_steps)
        plan.begin(self._saved_horizons)
        if is_new_run:
            warn_if_pretrained(pl_module, learned)
        self._horizons, self._validation = plan, ValidationLoss(trainer, learned, self.monitor)
        self._scaler, self._steps = ScalerWatch(), StepWatch(learned)
        self._logs = Logs(trainer, learned) if self.logs and trainer.loggers else None
        if self._logs is not None:
            self._logs.write_hyperparameters()
        evaluation_weights.take_over(self._trained, pl_module)
        self._trained = {}

    # -- a step

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Called before each backward pass: stores its loss, and requests diagnostics for the logs."""
        value = unscaled(loss, getattr(trainer.precision_plugin, "scaler", None))
        value = value * trainer.accumulate_grad_batches if pl_module.automatic_optimization else value
        self._losses.before_backward(value)
        if self._horizons is not None:
            self._horizons.batch_begins()
        if self._logs is not None:
            self._logs.request_diagnostics()

    def on_before_zero_grad(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Called before gradients are set to zero: drops the losses of these gradients."""
        self._losses.on_zero_grad()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after each backward pass: adds its loss to the optimizers whose gradients it changed."""
        self._losses.after_backward()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Called before each step: plans the horizon again, and passes the mean loss over ranks to the optimizer."""
        if self._horizons is not None:
            self._horizons.before_step(optimizer)
        loss = self._losses.take(optimizer)
        if isinstance(optimizer, LearnedOptimizer) and loss is not None:
            optimizer.signals.loss = trainer.strategy.reduce(loss.clone(), reduce_op="mean")
            if getattr(trainer.precision_plugin, "scaler", None) is not None:
                self._scaler.before_step(optimizer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after each batch: warns if another optimizer trains the parameters, and writes to the loggers."""
        self._steps.look()
        if self._logs is not None:
            self._logs.write(self._scaler.skipped)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after the batches of an epoch: records the number of steps of this epoch."""
        if self._horizons is not None:
            self._horizons.epoch_ends()

    # -- evaluation weights and checkpoints

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called before validation: puts the evaluation weights of the rule, if it has any, into the module."""
        if trainer.state.fn == TrainerFn.FITTING:
            evaluation_weights.to_evaluation(pl_module, _learned(trainer))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after validation: puts the trained parameters back, and passes the validation loss to the rules."""
        if trainer.state.fn == TrainerFn.FITTING:
            evaluation_weights.to_training(pl_module, _learned(trainer))
            if self._validation is not None:
                self._validation.after_validation()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called for each checkpoint: puts the evaluation weights into its ``state_dict``, and the trained parameters
        into a separate entry.
        """
        trained = evaluation_weights.put_into(checkpoint["state_dict"], pl_module, _learned(trainer))
        if trained:
            checkpoint[TRAINED] = trained

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called when a fit resumes: keeps the trained parameters until training starts. Horizons come from the
        optimizer states, which are loaded next.
        """
        self._trained = checkpoint.get(TRAINED, {})
        self._resumes = True
        for optimizer in _learned(trainer):
            if isinstance(optimizer.total_steps, TrainerHorizon):  # the horizon of the checkpoint replaces it
                optimizer.total_steps = None

    def state_dict(self) -> dict[str, Any]:
        """Called for each checkpoint: the Trainer's steps before those of the optimizers, and the planned horizons."""
        horizons = self._saved_horizons if self._horizons is None else self._horizons.state_dict()
        return {"steps_before": self._steps_before, "horizons": horizons}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called when a fit resumes, before training starts: restores the result of :meth:`state_dict`."""
        self._steps_before = state_dict["steps_before"]
        self._saved_horizons = state_dict.get("horizons", {})

    # -- the end

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after the last batch: puts evaluation weights into the module, warns of skipped or missing steps."""
        self._steps.look_at_the_end(trainer.fit_loop.epoch_loop.batch_progress.total.ready)
        evaluation_weights.to_evaluation(pl_module, _learned(trainer))
        for optimizer in _learned(trainer):
            warn_at_the_end(optimizer, self._scaler.skipped.get(optimizer, 0))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called at the end of a fit: removes all that :meth:`setup` and :meth:`on_train_start` have attached."""
        for optimizer in _learned(trainer):
            optimizer.signals.reduce = None
        self._undo_setup()
        if self._horizons is not None:
            self._saved_horizons = self._horizons.state_dict()
        self._horizons = self._logs = self._validation = None
        self._losses, self._scaler, self._steps = MeanLoss(), ScalerWatch(), StepWatch([])

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Called when a fit fails: calls :meth:`teardown`, since Lightning does not call it then."""
        self.teardown(trainer, pl_module, "fit")

    def _undo_setup(self) -> None:
        if self._after_setup is not None:
            self._after_setup.remove()
            self._after_setup = None


def _learned(trainer: L.Trainer) -> list[LearnedOptimizer]:
    return [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, LearnedOptimizer)]
