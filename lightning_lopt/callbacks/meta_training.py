"""A rule that goes on learning while it trains: meta-training on the very model that somebody's Trainer fits."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils import _pytree as pytree

from lightning_lopt.callbacks.adapter import LearnedOptimizerAdapter
from lightning_lopt.evaluation.report.loggers import log_artifact
from lightning_lopt.io import Card, save_rule
from lightning_lopt.meta.pilot import Standing, pilot_losses
from lightning_lopt.meta.search import Pace, Search, Trial
from lightning_lopt.optim import LearnedOptimizer
from lightning_lopt.rules.base import State, UpdateRule
from lightning_lopt.tasks.base import Split
from lightning_lopt.tasks.lightning_batches import StackedBatches
from lightning_lopt.tasks.lightning_task import LightningTask
from lightning_lopt.tasks.seeded_random import isolated


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
    (:class:`~lightning_lopt.meta.search.Trial`; six comparisons, for which a fit has to be about 2,100 steps long).
    Until then the fit is what it would be without this callback, bit for bit. Coming batches of an epoch that repeats
    say nothing about validation, and a model that memorises its data wants less decay: give the fit a validation set.

    All rounds together cost at most ``max_share`` of the planned steps, where an inner step of one θ counts as a step
    of training and a measured batch as a third of one. Side by side they take less time than that; the share of the
    clock is logged as ``meta_training/time_share``. Rounds depend on the number of steps alone, so a seeded fit repeats
    bit for bit, and so does one that is resumed.

    At the end of the fit the rule is saved in ``folder`` (rank 0) and logged as an artifact where Weights & Biases is
    in use: the adapted one, or, with a warning, the one it began with if the evidence does not speak for the other.

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
        total_steps, lr, weight_decay: see :class:`~lightning_lopt.LearnedOptimizerAdapter`.

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
    ) -> None:
        super().__init__(rule, total_steps=total_steps, lr=lr, weight_decay=weight_decay)
        for name, value in (("every_n_steps", every_n_steps), ("inner_steps", inner_steps), ("held_out", held_out)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}.")
        if not 0 < max_share <= 1:
            raise ValueError(f"max_share must lie in (0, 1], got {max_share!r}.")
        self.folder = None if folder is None else Path(folder)
        self.max_share, self.every_n_steps = max_share, every_n_steps
        self.inner_steps, self.held_out = inner_steps, held_out
        given = {"entries": entries, "sigma": sigma}
        self.trial_arguments: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self.search_arguments = {**self.trial_arguments, "pairs": pairs, "seed": seed}
        self.search: Search | None = None
        self.spent = 0.0  # in training steps
        self.seconds = 0.0  # spent by the clock, in this process
        self._next: int | None = 0  # step at which recording begins
        self._window: list[list[Any]] = []  # leaves of the recorded batches
        self._structure: Any = None
        self._validation: list[Any] = []  # batches
        self._first_loss: float | None = None
        self._began = 0.0
        self._saved_search: dict[str, Any] | None = None
        self._saved_windows: list[list[list[Any]]] = []  # by rank
        self._trainer: L.Trainer | None = None
        self._optimizer: LearnedOptimizer | None = None
        self._module_names: dict[torch.Tensor, str] = {}

    # -- the fit's hooks

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._trainer = trainer
        self._optimizer = optimizer = _only_optimizer(trainer, pl_module)
        optimizer.rule = copy.deepcopy(optimizer.rule)  # ours to change
        self.search = (
            Trial(optimizer.rule, **self.trial_arguments)
            if optimizer.rule.calibrates_steps
            else Search(optimizer.rule, **self.search_arguments)
        )
        if self._saved_search is not None:
            self.search.load_state_dict(self._saved_search)
            self._saved_search = None
            if len(self._saved_windows) == trainer.world_size:  # otherwise recording begins anew
                self._window = [list(leaves) for leaves in self._saved_windows[trainer.global_rank]]
        self._module_names = {param: name for name, param in pl_module.named_parameters()}
        self._use(self.search.chosen)
        self._began = time.perf_counter()
        self._validation = self._validation_batches(trainer)
        if self.search.rounds == 0 and not self._window:
            self._plan(self._step)
            if self._next is None:
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
        leaves, self._structure = pytree.tree_flatten(batch)
        if self._validation and pytree.tree_structure(self._validation[0]) != self._structure:
            self._validation = []
        between_steps = (
            trainer.fit_loop.epoch_loop.batch_progress.current.completed % trainer.accumulate_grad_batches == 0
        )
        if between_steps and len(self._window) >= self._wanted(trainer):
            began = time.perf_counter()
            self._round(trainer, pl_module)
            self.seconds += time.perf_counter() - began
        elif between_steps or self._window:
            # clones, since a training_step may write into its batch
            self._window.append([leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves])

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.search is None or self._optimizer is None:
            return
        if self.search.rounds and not self.search.improving:
            rank_zero_warn(
                f"MetaTraining found nothing better on this model in {self.search.rounds} rounds (evidence "
                f"{self.search.evidence:+.3f}, where {self.search.needed:+.3f} or less was needed); the rule is handed "
                "back as it was."
            )
        if trainer.is_global_zero:
            self._export(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "search": self._saved_search if self.search is None else self.search.state_dict(),
            "spent": self.spent,
            "next": self._next,
            "windows": self._windows(),
            "first_loss": self._first_loss,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._saved_search = state_dict["search"]
        self.spent, self._next = state_dict["spent"], state_dict["next"]
        self._saved_windows = state_dict["windows"]
        self._first_loss = state_dict["first_loss"]

    def _windows(self) -> list[list[list[Any]]]:
        """What each rank has recorded; called on all ranks."""
        if self._trainer is None or self._trainer.world_size == 1:
            return [self._window]
        gathered: list[Any] = [None] * self._trainer.world_size
        torch.distributed.all_gather_object(gathered, self._window)
        return gathered

    # -- a round

    @property
    def _step(self) -> int:
        """Steps of the fit so far."""
        assert self._trainer is not None
        return self._trainer.global_step - self._steps_before

    @property
    def _cost(self) -> float:
        """Of a round, in training steps."""
        assert self.search is not None
        return self.search.particles * (self.inner_steps + self.held_out / 3)

    def _wanted(self, trainer: L.Trainer) -> int:
        """Batches of a round."""
        return self.inner_steps * trainer.accumulate_grad_batches + (0 if self._validation else self.held_out)

    def _validation_batches(self, trainer: L.Trainer) -> list[Any]:
        """Batches of the fit's first validation dataloader, on its device, enough for rounds to differ."""
        loaders = [loader for loader in pytree.tree_leaves(trainer.val_dataloaders) if loader is not None]
        convert, move = trainer.precision_plugin.convert_input, trainer.strategy.batch_to_device
        with isolated(0):
            return [move(convert(batch)) for loader in loaders[:1] for batch in islice(loader, 4 * self.held_out)]

    def _plan(self, after: int) -> None:
        assert self._optimizer is not None
        total = self._optimizer.total_steps
        if not isinstance(total, int):
            self._next = None
            return
        first = total // 10 if isinstance(self.search, Trial) else 0
        pace = Pace(total, self.max_share, self.inner_steps + self.held_out, self.every_n_steps, first)
        self._next = pace.next_start(after, self.spent, self._cost)

    def _round(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.search is not None
        assert self._optimizer is not None
        losses, failure = self._pilots(trainer, pl_module)
        here, cost = losses[self.search.here], self._cost
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
        self._log(trainer, here, ahead)

    def _pilots(self, trainer: L.Trainer, pl_module: L.LightningModule) -> tuple[torch.Tensor, str]:
        """Losses of the pilots, mean over ranks, and why there are none, if so on any rank."""
        assert self.search is not None
        batches = [pytree.tree_unflatten(leaves, self._structure) for leaves in self._window]
        self._window = []
        losses, failure = torch.zeros(self.search.particles), ""
        try:
            losses = self._own_pilots(trainer, pl_module, batches)
        except ValueError as error:  # a module or batches that cannot be a task: no reason to end somebody's fit
            failure = str(error)
        failed = torch.tensor(float(bool(failure)), device=pl_module.device)
        both = torch.cat([losses.to(failed.device).float(), failed[None]])
        both = trainer.strategy.reduce(both, reduce_op="mean").cpu()
        if both[-1] > 0 and not failure:
            failure = "another rank could not make its pilots."
        return both[:-1], failure

    def _own_pilots(self, trainer: L.Trainer, pl_module: L.LightningModule, batches: list[Any]) -> torch.Tensor:
        """Losses of the pilots on this rank's batches."""
        assert self.search is not None
        assert self._optimizer is not None
        kind = type(pl_module).__name__
        stacked = StackedBatches(batches, f"{kind}, coming batches")
        validation = StackedBatches(self._validation, f"{kind}, validation batches") if self._validation else None
        accumulated = trainer.accumulate_grad_batches
        steps = (len(stacked) - (0 if validation else self.held_out)) // accumulated
        if steps < 1:
            raise ValueError(f"{kind}: only {len(stacked)} of {len(batches)} coming batches have the same shapes.")
        task = LightningTask(pl_module, stacked, validation)
        first = self.search.rounds * len(batches)
        train = [task.nth(index, first + index) for index in range(steps * accumulated)]
        windows = [train[k * accumulated : (k + 1) * accumulated] for k in range(steps)]
        split: Split = "valid" if validation else "train"
        count = len(task.data[split])
        begin = self.search.rounds * self.held_out if validation else count - self.held_out
        places = range(begin, begin + min(self.held_out, count))
        held_out = [task.nth(index % count, None, split) for index in places]
        standing = self._standing(trainer, task)
        return pilot_losses(self._optimizer.rule, self.search.ask(), task, standing, windows, held_out)

    def _standing(self, trainer: L.Trainer, task: LightningTask) -> Standing:
        """Where the fit is, by the module's own names."""
        optimizer = self._optimizer
        assert optimizer is not None
        params, tensors, roles, lr, decay = {}, {}, {}, {}, {}
        for group in optimizer.param_groups:
            for param, role in zip(group["params"], group["roles"], strict=True):
                name = self._module_names[param]
                if name in task.roles:  # those that require a gradient now
                    params[name], tensors[name] = param.detach(), dict(optimizer.state[param])
                    roles[name] = group["role"] or role
                    lr[name], decay[name] = float(group["lr"]), float(group["weight_decay"])
        clip = None if trainer.gradient_clip_val is None else float(trainer.gradient_clip_val)
        by_value = trainer.gradient_clip_algorithm == "value"
        return Standing(
            params,
            State(tensors, dict(optimizer.param_groups[0]["shared"])),
            roles,
            self._step,
            optimizer.total_steps if isinstance(optimizer.total_steps, int) else None,
            lr,
            decay,
            clip_norm=None if by_value else clip,
            clip_value=clip if by_value else None,
        )

    def _use(self, theta: dict[str, torch.Tensor]) -> None:
        """Let the fit go on with these entries of θ."""
        assert self._optimizer is not None
        named = dict(self._optimizer.rule.named_parameters())
        with torch.no_grad():
            for name, value in theta.items():
                named[name].copy_(value)

    def _log(self, trainer: L.Trainer, loss: torch.Tensor, ahead: float) -> None:
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
        for logger in trainer.loggers:
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
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                log_artifact(logger, "adapted_rule", folder, kind="rule", metadata=record)


def _only_optimizer(trainer: L.Trainer, module: L.LightningModule) -> LearnedOptimizer:
    """The one optimizer of the fit, checked to be one that can be followed."""
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} uses manual optimization, so MetaTraining cannot tell what a step is; set "
            "automatic_optimization = True, or use LearnedOptimizerAdapter."
        )
    if isinstance(trainer.strategy, ModelParallelStrategy):
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
