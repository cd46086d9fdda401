"""A rule that goes on learning while it trains: meta-training on the very model that somebody's Trainer fits."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_lopt._lightning import is_lightning
from lightning_lopt.callbacks.adapter import LearnedOptimizerAdapter
from lightning_lopt.callbacks.fit_pilots import agreed, losses_of_round
from lightning_lopt.callbacks.validation_batches import ValidationBatches
from lightning_lopt.evaluation.report.loggers import log_artifact
from lightning_lopt.io import Card, save_rule
from lightning_lopt.meta.search import Pace, Search, SequentialTest
from lightning_lopt.optim import LearnedOptimizer
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.lightning_batches import PLAIN
from lightning_lopt.tasks.users_code import named

if TYPE_CHECKING:
    import lightning.pytorch as L


class MetaTraining(LearnedOptimizerAdapter):
    """Goes on meta-training the rule of a :class:`~lightning_lopt.LearnedOptimizer` on the model that it trains.

    From time to time it keeps the coming batches as the fit consumes them, and then, from the model's present
    parameters, makes a few inner steps on them with perturbed θ, with the present θ and with the θ of the start, all
    side by side (:func:`~lightning_lopt.meta.pilot.pilot_losses`). Their losses, by ``training_step`` on validation
    batches, or on coming batches that were kept apart where the fit has no validation batches of the same structure,
    move θ (:class:`~lightning_lopt.meta.search.Search`). The fit goes on with it as long as they speak for it against
    the start; otherwise with the rule as it was. Data, order of batches and random numbers of the fit are untouched.

    A rule that calibrates its steps, as ``base`` does, leaves little to find: in pilots its step sizes and momentum
    look best where they are far from best for the run. Weight decay does not, so that is what is tried: a third of it
    or three times as much, from a tenth of the run on, kept only on evidence that is wrong in one fit of twenty at most
    (:class:`~lightning_lopt.meta.search.SequentialTest`; six comparisons, so a fit has to be about 2,100 steps long).
    Until then the fit is what it would be without this callback, bit for bit. Coming batches of an epoch that repeats
    say nothing about validation, and a model that memorises its data wants less decay: give the fit a validation set.

    All rounds together cost at most ``max_share`` of the planned steps, where an inner step of one θ counts as a step
    of training and a measured batch as a third of one. Side by side they take less time than that; the share of the
    clock is logged as ``meta_training/time_share``. Rounds depend on the number of steps alone, so a seeded fit repeats
    bit for bit, and so does one that is resumed.

    At the end of the fit the rule is saved in ``folder`` (rank 0) and logged as an artifact where Weights & Biases is
    in use: the adapted one, or, with a warning, the one it began with if the evidence does not speak for the other.
    Nothing is written under ``fast_dev_run``. Each fit begins anew, unless it resumes from a checkpoint.

    Validation batches are had beside the fit's own validation or from it
    (:class:`~lightning_lopt.callbacks.validation_batches.ValidationBatches`); no loader, sampler or random state that
    the fit goes on with is moved. Whatever a module or its batches raise in a pilot ends the rounds with one warning,
    and the fit goes on without them.

    Under distributed strategies each rank makes its pilots on batches of its own, and all move θ by the mean of their
    losses. Gradient clipping and accumulation are those of the fit; precision is that of the parameters.

    Args:
        rule: as for the adapter: ``None`` where the module configures a ``LearnedOptimizer`` itself.
        folder: where the rule is saved at the end; ``None`` for ``adapted_rule`` in the Trainer's ``default_root_dir``.
        max_share: largest share of the fit's work that meta-training may add, in (0, 1].
        every_n_steps: fewest steps between two rounds, >= 1.
        inner_steps: steps K of a pilot, >= 1.
        held_out: batches on which pilots are measured, >= 1.
        entries: patterns of names of θ to learn; by default the step sizes, or the weight decay where the rule
            calibrates its steps.
        sigma: how far θ is perturbed, in its unit; by default 0.7 for step sizes and 1.1 for weight decay.
        pairs, seed: see :class:`~lightning_lopt.meta.search.Search`; without meaning where the rule calibrates its
            steps.
        total_steps, lr, weight_decay, log: see :class:`~lightning_lopt.LearnedOptimizerAdapter`.

    Raises:
        ValueError: if an argument is out of range; at the start of training for manual optimization, several
            optimizers, an optimizer that is not learned, sharded or half-precision parameters, or a rule without such
            entries.
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
        entries: Sequence[str] | None = None,
        pairs: int = 1,
        sigma: float | None = None,
        seed: int = 0,
        total_steps: int | None = None,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        log: bool = True,
    ) -> None:
        super().__init__(rule, total_steps=total_steps, lr=lr, weight_decay=weight_decay, log=log)
        for name, value in (("every_n_steps", every_n_steps), ("inner_steps", inner_steps), ("held_out", held_out)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}.")
        if not 0 < max_share <= 1:
            raise ValueError(f"max_share must lie in (0, 1], got {max_share!r}.")
        self.folder = None if folder is None else Path(folder)
        self.max_share, self.every_n_steps = max_share, every_n_steps
        self.inner_steps, self.held_out = inner_steps, held_out
        given = {"entries": entries, "sigma": sigma}
        self.sequential_arguments: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self.search_arguments = {**self.sequential_arguments, "pairs": pairs, "seed": seed}
        self._trainer: L.Trainer | None = None
        self._optimizer: LearnedOptimizer | None = None
        self._saved_search: dict[str, Any] | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Forget the fit before."""
        self.search: Search | None = None
        self.spent = 0.0  # in training steps
        self.seconds = 0.0  # spent by the clock, in this process
        self._next: int | None = 0  # step at which recording begins
        self._window: list[list[Any]] = []  # leaves of the recorded batches
        self._structure: Any = None
        self._trouble = ""  # why there can be no pilots on this rank
        self._measured_on_validation = False  # in the round to come, on all ranks
        self._validation = ValidationBatches(4 * self.held_out)  # enough for rounds to differ
        self._first_loss: float | None = None
        self._began = 0.0
        self._saved_search = None
        self._saved_windows: list[list[list[Any]]] = []  # by rank
        self._saved_validation: list[list[list[Any]]] = []  # likewise

    # -- the fit's hooks

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":  # a fit that resumes loads its state after this
            self._begin_anew()

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn == "fit" and dataloader_idx == 0 and self._next is not None:
            try:
                self._validation.see(batch)
            except Exception as error:  # a tensor that cannot be cloned
                self._trouble = named(error)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._trainer = trainer
        self._optimizer = optimizer = _only_optimizer(trainer, pl_module)
        optimizer.rule = copy.deepcopy(optimizer.rule)  # ours to change
        self.search = (
            SequentialTest(optimizer.rule, **self.sequential_arguments)
            if optimizer.rule.calibrates_steps
            else Search(optimizer.rule, **self.search_arguments)
        )
        if self._saved_search is not None:
            self.search.load_state_dict(self._saved_search)
            self._saved_search = None
            if len(self._saved_windows) == trainer.world_size:  # otherwise recording begins anew
                self._window = [list(leaves) for leaves in self._saved_windows[trainer.global_rank]]
                self._validation.seen = [list(leaves) for leaves in self._saved_validation[trainer.global_rank]]
        self._use(self.search.chosen)
        self._began = time.perf_counter()
        if self.search.rounds == 0 and not self._window and self._next is not None:
            self._plan(self._step)
            if self._over and not _keeps_nothing(trainer):
                rank_zero_warn(
                    f"MetaTraining has no round in this fit: one costs {self._cost:.0f} training steps, and "
                    f"max_share={self.max_share:g} of {optimizer.total_steps} steps allows fewer; raise max_share or "
                    "lower inner_steps."
                )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._window and (self._next is None or self._step < self._next):
            return
        between_steps = (
            trainer.fit_loop.epoch_loop.batch_progress.current.completed % trainer.accumulate_grad_batches == 0
        )
        if not between_steps and not self._window:
            return
        began = time.perf_counter()
        leaves = self._leaves(batch)
        if not self._window:
            self._measured_on_validation = self._all_ranks_have_validation(trainer, pl_module)
        if between_steps and len(self._window) >= self._wanted(trainer):
            self._round(trainer, pl_module)
        else:
            self._window.append(leaves)
        self.seconds += time.perf_counter() - began

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.search is None or self._optimizer is None:
            return
        if self.search.rounds and not self.search.improving and not _keeps_nothing(trainer):
            rank_zero_warn(
                f"MetaTraining found nothing better on this model in {self.search.rounds} rounds (evidence "
                f"{self.search.evidence:+.3f}, where {self.search.needed:+.3f} or less was needed); the rule is handed "
                "back as it was."
            )
        if trainer.is_global_zero and not _keeps_nothing(trainer):
            try:
                self._export(trainer)
            except Exception as error:  # a full disk, a logger that fails
                rank_zero_warn(f"MetaTraining could not hand over its rule ({named(error)}).")

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "search": self._saved_search if self.search is None else self.search.state_dict(),
            "spent": self.spent,
            "next": self._next,
            "windows": self._of_all_ranks(self._window),
            "validation": self._of_all_ranks(self._validation.seen),
            "on_validation": self._measured_on_validation,
            "first_loss": self._first_loss,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._saved_search = state_dict["search"]
        self.spent, self._next = state_dict["spent"], state_dict["next"]
        self._saved_windows = state_dict["windows"]
        self._saved_validation = state_dict.get("validation", [[] for _ in self._saved_windows])
        self._measured_on_validation = state_dict.get("on_validation", False)
        self._first_loss = state_dict["first_loss"]

    def _of_all_ranks(self, batches: list[list[Any]]) -> list[list[list[Any]]]:
        """What each rank has kept; called on all ranks."""
        if self._trainer is None or self._trainer.world_size == 1:
            return [batches]
        gathered: list[Any] = [None] * self._trainer.world_size
        torch.distributed.all_gather_object(gathered, batches)
        return gathered

    # -- a round

    @property
    def _step(self) -> int:
        """Steps of the fit so far."""
        assert self._trainer is not None
        return self._trainer.global_step - self._steps_before

    @property
    def _over(self) -> bool:
        """Whether there is no further round."""
        return self._next is None

    @property
    def _cost(self) -> float:
        """Of a round, in training steps."""
        assert self.search is not None
        return self.search.particles * (self.inner_steps + self.held_out / 3)

    def _wanted(self, trainer: L.Trainer) -> int:
        """Batches of a round, the same number on all ranks."""
        return self.inner_steps * trainer.accumulate_grad_batches + (
            0 if self._measured_on_validation else self.held_out
        )

    def _leaves(self, batch: Any) -> list[Any]:
        """What a batch consists of, cloned, since a training_step may write into its batch; empty if that fails."""
        try:
            leaves, self._structure = pytree.tree_flatten(batch)
            foreign = next((leaf for leaf in leaves if not isinstance(leaf, (Tensor, *PLAIN))), None)
            if foreign is not None:
                raise TypeError(f"a batch holds a {type(foreign).__name__}, which is no tensor or plain value")
            return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        except Exception as error:  # told in the round, which all ranks reach
            self._trouble = named(error)
            return []

    def _all_ranks_have_validation(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        """Whether the round to come is measured on validation batches; called on all ranks."""
        has = bool(self._structure) and bool(self._validation.like(self._structure, trainer, pl_module))
        return bool(trainer.strategy.reduce(torch.tensor(float(has), device=pl_module.device), reduce_op="mean") == 1)

    def _plan(self, after: int) -> None:
        assert self._optimizer is not None
        total = self._optimizer.total_steps
        if not isinstance(total, int):
            self._next = None
            return
        first = total // 10 if isinstance(self.search, SequentialTest) else 0
        pace = Pace(total, self.max_share, self.inner_steps + self.held_out, self.every_n_steps, first)
        self._next = pace.next_start(after, self.spent, self._cost)

    def _round(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.search is not None
        cost = self._cost
        losses, failure = agreed(
            trainer, pl_module, lambda: self._losses_of_pilots(trainer, pl_module), self.search.particles
        )
        self._window = []
        here = losses[self.search.here]
        if failure:
            rank_zero_warn(f"MetaTraining stops here, and the fit goes on: {failure}")
            self._next = None
            return
        if self._first_loss is None and here.isfinite():
            self._first_loss = float(here.abs())
        ahead = self.search.tell(losses, 0.01 * (self._first_loss or 1.0))
        self.spent += cost
        self._use(self.search.chosen)
        self._plan(self._step)
        try:
            self._log(trainer, here, ahead)
        except Exception as error:  # of somebody's logger
            rank_zero_warn(f"MetaTraining could not log its numbers ({named(error)}).")

    def _losses_of_pilots(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Tensor:
        """Of the pilots on this rank's batches."""
        assert self.search is not None
        assert self._optimizer is not None
        if self._trouble:
            raise ValueError(f"{self._trouble}.")
        return losses_of_round(
            trainer,
            pl_module,
            self._optimizer,
            self.search,
            step=self._step,
            coming=[pytree.tree_unflatten(leaves, self._structure) for leaves in self._window],
            validation=(
                self._validation.like(self._structure, trainer, pl_module) if self._measured_on_validation else []
            ),
            held_out=self.held_out,
        )

    def _use(self, theta: dict[str, Tensor]) -> None:
        """Let the fit go on with these entries of θ."""
        assert self._optimizer is not None
        named = dict(self._optimizer.rule.named_parameters())
        with torch.no_grad():
            for name, value in theta.items():
                named[name].copy_(value)

    def _log(self, trainer: L.Trainer, loss: Tensor, ahead: float) -> None:
        assert self.search is not None
        moved = [self.search.theta[name] - start for name, start in self.search.start.items()]
        metrics = {
            "meta_training/rounds": float(self.search.rounds),
            "meta_training/loss": float(loss),
            "meta_training/ahead": -ahead,
            "meta_training/evidence": self.search.evidence,
            "meta_training/moved": float(torch.cat([move.flatten() for move in moved]).mean()),
            "meta_training/time_share": self.time_share,
        }
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in trainer.loggers if self.logs else []:
            logger.log_metrics(metrics, step=trainer.global_step)

    @property
    def time_share(self) -> float:
        """Time spent in rounds, in units of the time the fit took without them so far, by the clock."""
        return self.seconds / max(time.perf_counter() - self._began - self.seconds, 1e-9)

    def _export(self, trainer: L.Trainer) -> None:
        assert self.search is not None
        assert self._optimizer is not None
        folder = self.folder or Path(trainer.default_root_dir) / "adapted_rule"
        record = {
            "adapted_to": type(trainer.lightning_module).__name__,
            "steps": self._step,
            "rounds": self.search.rounds,
            "evidence": self.search.evidence,
            "handed_back": not self.search.improving,
        }
        card = Card(
            f"{self._optimizer.rule.rule_name}, adapted to {record['adapted_to']}",
            f"{', '.join(self.search.start)}: meta-trained by MetaTraining on one model while that was trained, in "
            f"{self.search.rounds} rounds.",
            limitations="It is meant for models like that one, and for runs of about the same length.",
        )
        save_rule(self._optimizer.rule, folder, card=card, meta_training=record)
        rank_zero_info(f"MetaTraining: {self.search.rounds} rounds; the rule is in {folder}.")
        loggers: list[Any] = trainer.loggers
        for logger in loggers:
            if is_lightning(logger, "WandbLogger"):
                log_artifact(logger, "adapted_rule", folder, kind="rule", metadata=record)


def _keeps_nothing(trainer: Any) -> bool:
    """Whether the fit is a trial of which nothing is meant to be kept."""
    return bool(trainer.fast_dev_run)


def _only_optimizer(trainer: L.Trainer, module: L.LightningModule) -> LearnedOptimizer:
    """The one optimizer of the fit, checked to be one that can be followed."""
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} uses manual optimization, so MetaTraining cannot tell what a step is; set "
            "automatic_optimization = True, or use LearnedOptimizerAdapter."
        )
    if is_lightning(trainer.strategy, "ModelParallelStrategy"):
        raise ValueError("MetaTraining needs whole parameters on every rank; use 'ddp' or a single device.")
    if len(trainer.optimizers) != 1 or not isinstance(trainer.optimizers[0], LearnedOptimizer):
        names = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
        raise ValueError(
            f"MetaTraining works beside one LearnedOptimizer, got {names or 'none'}; return one from "
            "configure_optimizers, or give the callback a rule, as in MetaTraining('base')."
        )
    optimizer = trainer.optimizers[0]
    own = set(module.parameters())
    for param in (param for group in optimizer.param_groups for param in group["params"]):
        if param.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"MetaTraining needs float32 parameters, got {param.dtype}; use precision='bf16-mixed' or '32-true'."
            )
        if param not in own:
            raise ValueError("MetaTraining needs the optimizer's parameters to be the module's own; some are not.")
    return optimizer
