"""Online meta-training: during a fit, the rule is adapted to the model that the Trainer fits."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_lopt.callbacks.adapted_rule import save_and_log
from lightning_lopt.callbacks.adapter import LearnedOptimizerAdapter
from lightning_lopt.callbacks.batch_recorder import BatchRecorder
from lightning_lopt.callbacks.checks import only_learned_optimizer, refuse_search_arguments
from lightning_lopt.meta.fit_pilots import agreed, losses_of_round
from lightning_lopt.meta.rounds import Rounds
from lightning_lopt.meta.search import Search, default_search
from lightning_lopt.optim import LearnedOptimizer
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.users_code import named

if TYPE_CHECKING:
    import lightning.pytorch as L


class OnlineMetaTraining(LearnedOptimizerAdapter):
    """Continues the meta-training of the rule of a :class:`~lightning_lopt.LearnedOptimizer` on the model it trains.

    A *pilot* is a short run of inner steps from a copy of the present parameters. Each round records the next batches,
    and runs pilots on them with perturbed θ, with the present θ and with the θ of the start, all at once
    (:func:`~lightning_lopt.meta.pilot.pilot_losses`). ``training_step`` on validation batches gives the losses of
    pilots, which change θ (:class:`~lightning_lopt.meta.search.Search`); without validation batches of the same
    structure, some of the recorded batches replace them. The fit uses the changed θ while its losses are lower than
    those of the θ of the start, else the θ of the start. Batches, their order, and random numbers do not change.

    For a rule that calibrates its steps, as ``base`` does, only weight decay is searched: the step sizes and momenta
    that are best in pilots are far from those that are best for the run. A third of the decay and three times the decay
    are tried after a tenth of the run. A sequential test with an error rate of 5 % per fit decides whether to keep one
    (:class:`~lightning_lopt.meta.search.SequentialTest`; its six comparisons need a fit of about 2,100 steps). Until
    then, the fit equals the fit without this callback bit for bit. Give the fit a validation set: repeated training
    batches do not show whether a model memorises its data, and a model that does so needs less decay on them.

    All rounds together cost at most ``max_share`` of the planned steps. An inner step of one θ counts as a step of
    training, and a measured batch as a third of a step; the share of wall-clock time is smaller and is logged as
    ``meta_training/time_share``. Rounds depend only on the number of steps, so seeded and resumed fits repeat bit for
    bit. Each fit begins anew, unless it resumes from a checkpoint.

    At the end of the fit, rank 0 saves the rule in ``folder``, and logs it as an artifact to Weights & Biases, if that
    logger is used; without evidence for the changed θ, this is the rule of the start, and a warning says so. Nothing is
    written under ``fast_dev_run``. If a module or its batches raise an error in a pilot, one warning says so, there are
    no further rounds, and the fit continues.

    Under distributed strategies, each rank runs pilots on its own batches, and all ranks change θ by the mean of the
    losses. Pilots clip and accumulate gradients as the fit does, and have the precision of the parameters.

    Args:
        rule: as for the adapter: ``None`` if the module configures a ``LearnedOptimizer`` itself.
        folder: folder of the rule at the end; ``None`` for ``adapted_rule`` in the Trainer's ``default_root_dir``.
        max_share: largest share of the work of the fit that meta-training may add, in (0, 1].
        every_n_steps: least number of steps between two rounds, >= 1.
        inner_steps: number K of steps of a pilot, >= 1.
        held_out: number of batches on which pilots are measured, >= 1.
        search: makes the search from the rule, for instance ``functools.partial(SequentialTest, sigma=0.7)``; ``None``
            for :func:`~lightning_lopt.meta.search.default_search`, which chooses the search by the kind of the rule.
        total_steps, lr, weight_decay, log: see :class:`~lightning_lopt.LearnedOptimizerAdapter`.
        removed: refused; in version 0.2.0 these were arguments of the default search.

    Raises:
        TypeError: for an argument of a search, which belongs into ``search``.
        ValueError: if an argument is out of range; at the start of training for manual optimization, several
            optimizers, an optimizer that is not learned, sharded or half-precision parameters, or a rule without
            entries that the search fits.

    Example:
        >>> import tempfile
        >>> import lightning.pytorch as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_lopt import AdamRule
        >>> silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> with tempfile.TemporaryDirectory() as folder:  # the fit is short, so its rounds may take a larger share
        ...     callback = OnlineMetaTraining(AdamRule(), folder=folder, max_share=1.0, inner_steps=2, held_out=1)
        ...     L.Trainer(max_steps=60, callbacks=[callback], **silent).fit(BoringModel())
        >>> callback.search.rounds
        2
    """

    def __init__(
        self,
        rule: str | Path | UpdateRule | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        max_share: float = 0.1,
        every_n_steps: int = 20,
        inner_steps: int = 12,
        held_out: int = 8,
        search: Callable[[UpdateRule], Search] | None = None,
        total_steps: int | None = None,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        log: bool = True,
        **removed: Any,
    ) -> None:
        refuse_search_arguments(removed)
        super().__init__(rule, total_steps=total_steps, lr=lr, weight_decay=weight_decay, log=log)
        self.rounds = Rounds(inner_steps, held_out, max_share, every_n_steps)
        self.folder = None if folder is None else Path(folder)
        self._make_search = search or default_search
        self._trainer: L.Trainer | None = None
        self._optimizer: LearnedOptimizer | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Delete the state of the last fit."""
        self.rounds.reset()
        self._recorder = BatchRecorder(4 * self.rounds.held_out)  # enough batches to vary them between rounds
        self.seconds = 0.0  # seconds spent in rounds, in this process
        self._began = 0.0

    @property
    def search(self) -> Search | None:
        """The search, from the start of training on."""
        return self.rounds.search

    @property
    def spent(self) -> float:
        """Cost of the rounds so far, in training steps."""
        return self.rounds.spent

    @property
    def time_share(self) -> float:
        """Time spent in rounds, divided by the time of the fit so far without them."""
        return self.seconds / max(time.perf_counter() - self._began - self.seconds, 1e-9)

    @property
    def state_key(self) -> str:
        """The former name of the class, so that old checkpoints can be loaded."""
        return "MetaTraining" if type(self) is OnlineMetaTraining else super().state_key

    # -- the fit's hooks

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called before ``configure_optimizers``: sets up the adapter, and resets the state of the previous fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":  # a fit that resumes loads its state after this
            self._begin_anew()

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called before each validation batch: keeps a batch of the first dataloader for pilots."""
        if trainer.state.fn == "fit" and dataloader_idx == 0 and not self.rounds.is_over:
            self._recorder.record_validation(batch)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after a checkpoint was restored, before the first batch: begins the search and plans a round."""
        super().on_train_start(trainer, pl_module)
        self._trainer = trainer
        self._optimizer = optimizer = only_learned_optimizer(trainer, pl_module)
        optimizer.rule = copy.deepcopy(optimizer.rule)  # the search changes θ of the copy
        search = self._make_search(optimizer.rule)
        if self.rounds.begin(search):
            self._recorder.restore(trainer.global_rank, trainer.world_size)
        self._use(search.chosen)
        self._began = time.perf_counter()
        if search.rounds == 0 and not self._recorder.window and not self.rounds.is_over:
            has_round = self.rounds.plan(self._step, optimizer.total_steps)
            if not has_round and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                rank_zero_warn(
                    f"OnlineMetaTraining has no round in this fit: one costs {self.rounds.cost:.0f} training steps, "
                    f"and max_share={self.rounds.max_share:g} of {optimizer.total_steps} steps allows fewer; raise "
                    "max_share or lower inner_steps."
                )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called before each training batch: records it, or makes a round of pilots between two steps once enough
        batches are recorded.
        """
        recorder, next_start = self._recorder, self.rounds.next_start
        if not recorder.window and (next_start is None or self._step < next_start):
            return
        between_steps = (
            trainer.fit_loop.epoch_loop.batch_progress.current.completed % trainer.accumulate_grad_batches == 0
        )
        if not between_steps and not recorder.window:
            return
        began = time.perf_counter()
        leaves = recorder.copied(batch)
        if not recorder.window:
            recorder.choose_split(trainer, pl_module)
        if between_steps and len(recorder.window) >= self._batches_of_round(trainer):
            self._make_round(trainer, pl_module)
        else:
            recorder.window.append(leaves)
        self.seconds += time.perf_counter() - began

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called at the end of the fit: saves the chosen rule, and warns if it is the rule of the start."""
        search, optimizer = self.search, self._optimizer
        if search is None or optimizer is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = self.folder or Path(trainer.default_root_dir) / "adapted_rule"
        save_and_log(trainer, optimizer.rule, search, self._step, folder)

    def state_dict(self) -> dict[str, Any]:
        """Called for each checkpoint, on all ranks: the state of the adapter, the search, and the recorded batches."""
        return {**super().state_dict(), **self.rounds.state_dict(), **self._recorder.state_dict(self._trainer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called when a fit resumes, before training starts: restores the result of :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        self.rounds.load_state_dict(state_dict)
        self._recorder.load_state_dict(state_dict)

    # -- a round

    @property
    def _step(self) -> int:
        """Steps of the fit so far."""
        assert self._trainer is not None
        return self._trainer.global_step - self._steps_before

    def _batches_of_round(self, trainer: L.Trainer) -> int:
        """Number of batches to record for a round, which is the same on all ranks."""
        measured_on = 0 if self._recorder.on_validation else self.rounds.held_out
        return self.rounds.inner_steps * trainer.accumulate_grad_batches + measured_on

    def _make_round(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._optimizer is not None
        search = self.rounds.current_search
        losses, failure = agreed(
            trainer, pl_module, lambda: self._losses_of_pilots(trainer, pl_module), search.particles
        )
        self._recorder.window = []
        if failure:
            rank_zero_warn(f"OnlineMetaTraining stops here, and the fit goes on: {failure}")
            self.rounds.stop()
            return
        present_loss = losses[search.theta_index]
        ahead = self.rounds.tell(losses)
        self._use(search.chosen)
        self.rounds.plan(self._step, self._optimizer.total_steps)
        try:
            self._log(trainer, present_loss, ahead)
        except Exception as error:  # a logger may fail in any way
            rank_zero_warn(f"OnlineMetaTraining could not log its numbers ({named(error)}).")

    def _losses_of_pilots(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Tensor:
        """Losses of the pilots on the batches of this rank."""
        assert self._optimizer is not None
        if self._recorder.trouble:
            raise ValueError(f"{self._recorder.trouble}.")
        return losses_of_round(
            trainer,
            pl_module,
            self._optimizer,
            self.rounds.current_search,
            step=self._step,
            coming=self._recorder.recorded(),
            validation=self._recorder.validation_batches(trainer, pl_module),
            held_out=self.rounds.held_out,
        )

    def _use(self, theta: dict[str, Tensor]) -> None:
        """Set these entries of θ in the rule of the fit."""
        assert self._optimizer is not None
        parameters = dict(self._optimizer.rule.named_parameters())
        with torch.no_grad():
            for name, value in theta.items():
                parameters[name].copy_(value)

    def _log(self, trainer: L.Trainer, loss: Tensor, ahead: float) -> None:
        numbers = self.rounds.metrics(loss, ahead) | {"time_share": self.time_share}
        metrics = {f"meta_training/{name}": value for name, value in numbers.items()}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in trainer.loggers if self.logs else []:
            logger.log_metrics(metrics, step=trainer.global_step)


MetaTraining = OnlineMetaTraining
"""The former name of the class."""
