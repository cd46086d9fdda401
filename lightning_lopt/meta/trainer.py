"""The outer loop as a LightningModule; Lightning provides devices, strategies, loggers, clipping and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor
from torch.distributed import gather_object, get_rank, get_world_size, is_available, is_initialized
from torch.nn.utils import get_total_norm

from lightning_lopt.allocator import MIB, keep_freed_memory
from lightning_lopt.checks import check_positive, check_sizes
from lightning_lopt.meta.checkpoint_io import AtomicCheckpointIO
from lightning_lopt.meta.engine import Compiled, Eager, Execution, Recorded
from lightning_lopt.meta.estimators.base import Estimator
from lightning_lopt.meta.groups import Group, groups_of_rank, states_by_number
from lightning_lopt.meta.horizons import Horizons
from lightning_lopt.meta.statistics import OuterStepStatistics, signal_to_noise, step_sizes
from lightning_lopt.meta.theta import theta_row
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.tasks.task_mixture import TaskMixture

FREED_MEMORY = 512 * MIB
"""Largest amount of freed memory that meta-training on a CPU keeps for later tensors of inner runs, in bytes."""


class MetaTrainer(L.LightningModule):
    """Meta-trains a rule: one training step is one outer step.

    Each outer step advances ``groups`` groups of inner runs by one truncation, averages their estimates of the
    meta-gradient, and passes the mean to AdamW. A group at its horizon starts again with another task and horizon.

    Groups are distributed over the processes of a Trainer. All random draws depend only on ``seed``, on the number of
    the group among all groups and on how often the group has started. Therefore the meta-gradient does not depend on
    the number of processes (up to rounding), and a resumed run continues bit for bit, also with another number of
    processes. In each outer step, processes exchange only the gradient of θ and a few numbers. Checkpoints are written
    by :class:`~lightning_lopt.meta.checkpoint_io.AtomicCheckpointIO` unless the Trainer has a custom ``CheckpointIO``.
    If a process dies, Lightning stops the other processes, and the run can be resumed from its last checkpoint.

    Each outer step logs ``meta_loss``; ``meta_loss_epoch`` is its mean over an epoch of
    ``Trainer(limit_train_batches=...)``, for ``EarlyStopping``. The first outer step, and each outer step at which the
    Trainer logs (``Trainer(log_every_n_steps=...)``), also logs:

    - ``meta_loss/...``, the meta-loss by family;
    - ``failures``, the number of truncations of inner runs with a loss that is not finite since the last report;
    - ``inner_steps_per_second`` since the last report;
    - ``gradient_norm`` before clipping, and ``gradient_snr``
      (:func:`~lightning_lopt.meta.statistics.signal_to_noise`);
    - ``step_size/...`` by role.

    Only these steps wait for a GPU (with a progress bar, all steps wait), so other outer steps are launched while
    earlier outer steps still run.

    From the first outer step on, :attr:`trained_on` holds families, data and horizons of the meta-training, as JSON
    values for ``save_rule(..., meta_training=...)``; reports use these values to mark problems that a rule was trained
    on.

    Fit a MetaTrainer with a :class:`~lightning_lopt.TaskDataModule`. The precision must be 32-true (``bf16-true`` would
    round θ).

    Args:
        rule: the rule to meta-train; parameters with ``requires_grad=False`` do not change.
        estimator: how the meta-gradient is estimated, with its number of particles.
        groups: number of groups of inner runs over all processes, a multiple of the number of processes; each group has
            its own task and horizon.
        horizons: a :class:`Horizons`, a constant, or (shortest, longest) in inner steps, drawn log-uniformly.
        lr: peak learning rate of the outer AdamW, > 0.
        warmup_steps: outer steps of linear warm-up; the rate then follows a cosine to 0 at
            ``Trainer(max_steps=...)``, or is constant if no ``max_steps`` is set.
        weight_decay: decay of the outer AdamW, on the weights of the networks only, never on constants.
        frozen: prefixes of names of θ that are not trained, for instance ``["constants"]``.
        seed: seed of all random draws.
        compile: compile the inner step once for each architecture among the tasks, see
            :class:`~lightning_lopt.meta.engine.Compiled`. Compiling takes half a minute or more for each architecture,
            and makes its steps a few times faster. On CUDA, small runs are recorded with and without ``compile``, see
            :class:`~lightning_lopt.meta.engine.Recorded`.

    Raises:
        ValueError: if a number is out of range, or no name of a parameter begins with a prefix in ``frozen``.

    Example:
        >>> import lightning.pytorch as L
        >>> from lightning_lopt import AdamRule, PES, TaskDataModule
        >>> meta_trainer = MetaTrainer(AdamRule(), PES(truncation=5, pairs=2), groups=1, horizons=20)
        >>> trainer = L.Trainer(max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer.fit(meta_trainer, TaskDataModule("quadratic"))
        >>> meta_trainer.trained_on
        {'families': ['quadratic'], 'data': [], 'horizons': [20, 20]}
    """

    def __init__(
        self,
        rule: UpdateRule,
        estimator: Estimator,
        *,
        groups: int = 4,
        horizons: Horizons | int | tuple[int, int] = (100, 1000),
        lr: float = 1e-3,
        warmup_steps: int = 50,
        weight_decay: float = 0.0,
        frozen: Sequence[str] = (),
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        for prefix in frozen:
            frozen_parameters = [parameter for name, parameter in rule.named_parameters() if name.startswith(prefix)]
            if not frozen_parameters:
                raise ValueError(
                    f"frozen contains {prefix!r}, but no name of a parameter of the rule begins with this prefix."
                )
            for parameter in frozen_parameters:
                parameter.requires_grad_(False)
        check_sizes(groups=groups)
        check_positive(lr=lr)
        if not any(parameter.requires_grad for parameter in rule.parameters()):
            raise ValueError(f"{type(rule).__name__} has no parameter that requires a gradient; nothing to meta-train.")
        self.rule = rule
        self.estimator = estimator
        self.execution: Execution = Recorded(Compiled() if compile else Eager())
        self.groups = groups
        self.horizons = Horizons.of(horizons)
        self.lr = lr
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.seed = seed
        self.outer_step = 0
        self.rank_groups: list[Group] = []
        self._powers: list[Tensor] = []
        self._unreported_sums: list[Tensor] = []  # inner steps and failures of outer steps since the last report
        self._epoch_sums = torch.zeros(2)  # sum and number of meta-losses of this epoch
        self._last_report = 0.0  # time of the last report, in seconds
        self._first_step = 0  # outer step at which this fit began
        self._loaded_states: dict[int, dict[str, Any]] | None = None
        self.trained_on: dict[str, Any] = {}

    def on_fit_start(self) -> None:
        """Called before a checkpoint is restored; checks the precision, and makes the groups of this process."""
        precision = str(self.trainer.precision)
        if precision in ("bf16-true", "16-true", "transformer-engine"):
            raise ValueError(f"precision={precision!r} would round the meta-parameters; use precision='32-true'.")
        if self.device.type == "cpu":
            keep_freed_memory(FREED_MEMORY)
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self._epoch_sums = torch.zeros(2, device=self.device)
        self._last_report, self._first_step = time.perf_counter(), self.trainer.global_step
        if not self.rank_groups:
            self.rank_groups = groups_of_rank(self.groups, self.seed, self.global_rank, self.trainer.world_size)

    def training_step(self, batch: TaskMixture, batch_idx: int) -> Tensor:
        """Called for each outer step; advances the groups by one truncation, and returns the meta-loss."""
        self._restore_runs(batch)
        self.rule.trained = True
        self.trained_on = batch.trained_on | {"horizons": [self.horizons.shortest, self.horizons.last]}
        with torch.no_grad():
            groups = [
                group.begin(self.rule, self.estimator, batch, self.horizons, self.outer_step)
                for group in self.rank_groups
            ]
            estimate = self.estimator.estimate(self.rule, groups, self.execution)
            for group, runs in zip(self.rank_groups, estimate.groups, strict=True):
                group.runs = runs
            steps = sum(after.step - before.step for after, before in zip(estimate.groups, groups, strict=True))
            families = [batch.family(group.run_seed) for group in self.rank_groups]
            step_statistics = OuterStepStatistics(
                [family.name for family in batch.families], families, estimate, steps * self.estimator.particles
            )
        self.outer_step += 1
        meta_loss = self._log_outer_step(step_statistics)
        surrogate = theta_row(self.rule) @ estimate.gradient
        # The derivative of the surrogate in θ is exactly the estimate; the returned value is the meta-loss.
        return meta_loss + (surrogate - surrogate.detach())

    def _log_outer_step(self, step_statistics: OuterStepStatistics) -> Tensor:
        """Log the metrics of this outer step, and return the meta-loss, 0-dim."""
        step_statistics.sums = self.trainer.strategy.reduce(step_statistics.sums, reduce_op="sum")
        self._powers.append(step_statistics.power)
        self._unreported_sums.append(step_statistics.sums[:2])
        bar = self.trainer.progress_bar_callback is not None  # a progress bar waits for the numbers that it shows
        self.log("meta_loss", step_statistics.meta_loss, prog_bar=bar, batch_size=1)
        if self._reports:
            steps, failures = torch.stack(self._unreported_sums).sum(0).tolist()  # this waits for the device
            present_time = time.perf_counter()
            self.log("inner_steps_per_second", steps / (present_time - self._last_report), prog_bar=bar, batch_size=1)
            self.log_dict({"failures": failures, **step_statistics.by_family(), **step_sizes(self.rule)}, batch_size=1)
            self._unreported_sums, self._last_report = [], present_time
        self._epoch_sums = self._epoch_sums + torch.stack(
            [step_statistics.meta_loss, torch.ones_like(step_statistics.meta_loss)]
        )
        return step_statistics.meta_loss

    def on_train_epoch_end(self) -> None:
        """Called at the end of each epoch; logs the mean meta-loss of the epoch."""
        self.log("meta_loss_epoch", self._epoch_sums[0] / self._epoch_sums[1], batch_size=1)
        self._epoch_sums = torch.zeros_like(self._epoch_sums)

    @property
    def _reports(self) -> bool:
        """Whether this outer step is the first one or one at which the Trainer logs."""
        steps = self.trainer.global_step
        return steps == self._first_step or (steps + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called before each outer step of AdamW, before clipping; logs norm and noise of the meta-gradient."""
        if self._reports:
            norm = float(get_total_norm([value.grad for _, value in self._trainable() if value.grad is not None]))
            terms = len(self._powers) * self.groups * self.estimator.terms
            metrics = {"gradient_norm": norm}
            if terms > 1:
                metrics["gradient_snr"] = signal_to_noise(norm, float(torch.stack(self._powers).mean()), terms)
            self.log_dict(metrics, batch_size=1)
        self._powers.clear()

    def configure_optimizers(self) -> Any:
        """Called before training; returns AdamW over the trainable θ, with warm-up and a cosine schedule."""
        groups = [
            {"params": weights, "weight_decay": decay}
            for decay, weights in (
                (self.weight_decay, [p for n, p in self._trainable() if "weight" in n and "constants" not in n]),
                (0.0, [p for n, p in self._trainable() if "weight" not in n or "constants" in n]),
            )
            if weights
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        total = self.trainer.max_steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, self.warmup_steps, total)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, value) for name, value in self.rule.named_parameters() if value.requires_grad]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called for each checkpoint, on all ranks; adds the inner runs of all groups."""
        checkpoint["meta_training"] = {
            "outer_step": self.outer_step,
            "seed": self.seed,
            "estimator": self.estimator.name,
            "groups": self._group_states(),
        }

    def _group_states(self) -> list[dict[str, Any]]:
        """States of the groups of all processes; empty on processes that do not write checkpoints."""
        if self._loaded_states is not None:  # a checkpoint was loaded, and no outer step has followed
            return list(self._loaded_states.values())
        rank_states = [group.state_dict() for group in self.rank_groups]
        if not (is_available() and is_initialized()):
            return rank_states
        ranks: list[Any] = [None] * get_world_size()
        gather_object(rank_states, ranks if get_rank() == 0 else None)
        return [state for states in ranks for state in states or ()]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called when a run resumes; checks seed and estimator, and keeps the inner runs for the first outer step."""
        if "meta_training" not in checkpoint:
            raise ValueError("this checkpoint was written by another module or an older MetaTrainer; start a new run.")
        saved = checkpoint["meta_training"]
        for setting, current_value in (("seed", self.seed), ("estimator", self.estimator.name)):
            if saved[setting] != current_value:
                raise ValueError(
                    f"this checkpoint was written with {setting}={saved[setting]!r}, but MetaTrainer has "
                    f"{current_value!r}; resume with the settings of the saved run."
                )
        self._loaded_states = states_by_number(saved["groups"], self.groups)
        self.outer_step = saved["outer_step"]

    def _restore_runs(self, mixture: TaskMixture) -> None:
        """Rebuild the inner runs of a checkpoint, after the tasks are known."""
        if self._loaded_states is None:
            return
        for group in self.rank_groups:
            group.load_state_dict(self._loaded_states[group.number], self.rule, self.estimator, mixture)
        self._loaded_states = None


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Linear warm-up to 1, then a cosine to 0 at ``total``; constant after the warm-up if ``total`` is -1.

    >>> [round(warmup_cosine(step, 2, 6), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    if total < 0 or total <= warmup:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (total - warmup))))
