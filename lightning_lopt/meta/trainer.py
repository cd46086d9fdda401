"""The outer loop as a LightningModule: devices, strategies, loggers, clipping and checkpoints are Lightning's."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.distributed import all_gather_object, get_world_size, is_available, is_initialized

from lightning_lopt.meta.data import TaskMixture
from lightning_lopt.meta.estimators import EvolutionStrategies
from lightning_lopt.meta.inner import InnerRuns
from lightning_lopt.rules.base import State, UpdateRule
from lightning_lopt.seeding import derive_seed, generator


class MetaTrainer(L.LightningModule):
    """Meta-trains a rule: one training step is one outer step.

    Each outer step advances ``groups`` groups of inner runs by one truncation, averages their estimates of the
    meta-gradient, and hands them to AdamW. A group whose horizon is over starts anew with another task and horizon.
    Everything drawn follows from ``(seed, outer step, rank)``, so a resumed run continues bit for bit.

    Fit it with a :class:`~lightning_lopt.TaskDataModule`; precision must be 32-true (``bf16-true`` would round θ).

    Args:
        rule: what to meta-train; parameters with ``requires_grad=False`` stay as they are.
        estimator: how the meta-gradient is estimated, with its number of particles.
        groups: groups of inner runs, each with a task and a horizon of its own, >= 1 per process.
        horizons: shortest and longest inner run in steps, drawn log-uniformly.
        lr: peak learning rate of the outer AdamW, > 0.
        warmup_steps: outer steps of linear warm-up; after it a cosine to 0 at ``Trainer(max_steps=...)``, or a
            constant where no ``max_steps`` is set.
        weight_decay: of the outer AdamW, on the weights of the networks only, never on constants.
        seed: of everything that is drawn.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        rule: UpdateRule,
        estimator: EvolutionStrategies,
        *,
        groups: int = 4,
        horizons: tuple[int, int] = (100, 1000),
        lr: float = 1e-3,
        warmup_steps: int = 50,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if groups < 1:
            raise ValueError(f"groups must be at least 1, got {groups!r}.")
        if not 1 <= horizons[0] <= horizons[1]:
            raise ValueError(f"horizons must be (shortest, longest) with 1 <= shortest <= longest, got {horizons!r}.")
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"lr must be a positive number, got {lr!r}.")
        if not any(parameter.requires_grad for parameter in rule.parameters()):
            raise ValueError(f"{type(rule).__name__} has no parameter that requires a gradient; nothing to meta-train.")
        self.rule = rule
        self.estimator = estimator
        self.groups = groups
        self.horizons = horizons
        self.lr = lr
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.seed = seed
        self.outer_step = 0
        self.restarts = [0] * groups
        self.runs: list[InnerRuns | None] = [None] * groups
        self._restored: dict[str, Any] | None = None

    def on_fit_start(self) -> None:
        precision = str(self.trainer.precision)
        if precision in ("bf16-true", "16-true", "transformer-engine"):
            raise ValueError(f"precision={precision!r} would round the meta-parameters; use precision='32-true'.")

    def training_step(self, batch: TaskMixture, batch_idx: int) -> Tensor:
        began = time.perf_counter()
        self._restore_runs(batch)
        gradients: dict[str, Tensor] = {}
        losses, inner_steps, failures = [], 0, 0
        with torch.no_grad():
            for group in range(self.groups):
                runs = self._runs_of(group, batch)
                draws = generator(self.seed, "outer", self.outer_step, self.global_rank, group)
                estimate = self.estimator.estimate(self.rule, runs, draws)
                inner_steps += (estimate.runs.step - runs.step) * 2 * self.estimator.pairs
                failures += estimate.failures
                losses.append(estimate.meta_loss)
                self.runs[group] = estimate.runs
                for name, gradient in estimate.gradient.items():
                    gradients[name] = gradients.get(name, 0.0) + gradient / self.groups
        self.outer_step += 1
        meta_loss = torch.stack(losses).mean()
        self.log("meta_loss", meta_loss, prog_bar=True, sync_dist=True)
        self.log("failures", float(failures), sync_dist=True, reduce_fx="sum")
        speed = inner_steps / (time.perf_counter() - began)
        self.log("inner_steps_per_second", speed, prog_bar=True, sync_dist=True, reduce_fx="sum")
        theta = dict(self.rule.named_parameters())
        surrogate = torch.stack([(theta[name] * gradient).sum() for name, gradient in gradients.items()]).sum()
        # d surrogate / d θ is the estimate exactly; the value shown is the meta-loss.
        return meta_loss.detach() + (surrogate - surrogate.detach())

    def configure_optimizers(self) -> Any:
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

    def _runs_of(self, group: int, mixture: TaskMixture) -> InnerRuns:
        runs = self.runs[group]
        if runs is None or runs.finished:
            self.restarts[group] += 1
            runs = self._start(group, mixture)
        return runs

    def _run_seed(self, group: int) -> int:
        return derive_seed(self.seed, "runs", self.global_rank, group, self.restarts[group])

    def _start(self, group: int, mixture: TaskMixture) -> InnerRuns:
        seed = self._run_seed(group)
        draws = generator(seed, "horizon")
        low, high = (math.log(bound) for bound in self.horizons)
        share, phase = torch.rand(2, generator=draws).tolist()
        horizon = math.exp(low + share * (high - low))
        if self.restarts[group] == 1:  # the first runs have horizons of all lengths, so that groups get out of phase
            horizon *= phase
        return self.estimator.start(self.rule, mixture.sample(seed), horizon=max(1, round(horizon)), seed=seed)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = {
            "outer_step": self.outer_step,
            "restarts": list(self.restarts),
            "runs": [None if runs is None else _pack(runs) for runs in self.runs],
        }
        ranks: list[Any] = [own]
        if is_available() and is_initialized():
            ranks = [None] * get_world_size()
            all_gather_object(ranks, own)
        checkpoint["inner_runs"] = ranks

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ranks = checkpoint["inner_runs"]
        if len(ranks) != self.trainer.world_size:
            raise ValueError(
                f"this checkpoint holds the inner runs of {len(ranks)} processes, the Trainer has "
                f"{self.trainer.world_size}; resume with as many processes as it was written with."
            )
        self._restored = ranks[self.global_rank]
        if len(self._restored["runs"]) != self.groups:
            raise ValueError(
                f"this checkpoint holds {len(self._restored['runs'])} groups of inner runs, MetaTrainer has "
                f"groups={self.groups}; resume with the settings it was written with."
            )
        self.outer_step = self._restored["outer_step"]

    def _restore_runs(self, mixture: TaskMixture) -> None:
        """Rebuild the inner runs of a checkpoint, now that the tasks are at hand."""
        if self._restored is None:
            return
        self.restarts = list(self._restored["restarts"])
        for group, packed in enumerate(self._restored["runs"]):
            if packed is not None:
                self.runs[group] = _unpack(packed, mixture, self._run_seed(group))
        self._restored = None


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


def _pack(runs: InnerRuns) -> dict[str, Any]:
    return {
        "task": runs.task.name,
        "params": runs.params,
        "tensors": runs.state.tensors,
        "shared": runs.state.shared,
        "noise_sum": runs.noise_sum,
        "step": runs.step,
        "horizon": runs.horizon,
    }


def _unpack(packed: dict[str, Any], mixture: TaskMixture, seed: int) -> InnerRuns:
    task = mixture.sample(seed)
    if task.name != packed["task"]:
        raise ValueError(
            f"this checkpoint was training on task {packed['task']!r}, but these task families give {task.name!r} at "
            "the same seed; resume with the families, data and seed it was written with."
        )
    state = State(packed["tensors"], packed["shared"])
    return InnerRuns(task, packed["params"], state, packed["step"], packed["horizon"], packed["noise_sum"])
