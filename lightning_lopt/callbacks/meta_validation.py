"""Meta-validation: the rule is measured on held-out problems during meta-training, and the best rule is saved."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn

from lightning_lopt.evaluation.baselines import Baselines
from lightning_lopt.evaluation.comparison import compare, score
from lightning_lopt.evaluation.report import log_media
from lightning_lopt.evaluation.results import ProblemResult, Results, RuleRecord
from lightning_lopt.evaluation.suites import Problem, long_runs, make_suite
from lightning_lopt.io import RuleFileError, save_rule
from lightning_lopt.meta.trainer import MetaTrainer
from lightning_lopt.rules.base import UpdateRule

START, CURRENT, AVERAGE = "start", "theta", "average"
ADAMW = "adamw"


class MetaValidation(L.Callback):
    """Measures the rule of a :class:`~lightning_lopt.MetaTrainer` on problems that meta-training never sees.

    Every ``every_n_steps`` outer steps, and at the end, the rule with the present θ (and with the average of θ, if the
    Trainer has a ``WeightAveraging``) trains each problem. It is compared with the rule at the start of meta-training,
    on the same models and mini-batches, and with tuned AdamW. Loggers get ``meta_validation/score``, the mean log-ratio
    of the final losses to those of the rule at the start (below 0 if meta-training helps),
    ``meta_validation/vs_adamw``, and the ratio of each problem; loggers for pictures also get the tables and pictures
    of a report. ``folder`` holds the rule with the lowest score so far, initially the rule at the start.

    If ``patience`` measurements in a row are no better than an earlier measurement while the meta-loss falls, a warning
    says so (*meta-overfitting*), and ``meta_validation/overfitting`` is logged as 1.

    Args:
        problems: held-out problems, or the name of a suite (see :func:`~lightning_lopt.evaluation.suites.make_suite`).
        folder: folder of the best rule, which :func:`~lightning_lopt.save_rule` writes.
        every_n_steps: number of outer steps between two measurements, >= 1.
        baselines: tuned AdamW for the problems, with the number of seeds and the device of all measurements; or the
            JSON file that stores tuned AdamW, or ``None`` to store nothing (both with 3 seeds, on the device of the
            module). The package contains tuned AdamW for suites on their default data.
        patience: number of measurements in a row without a new best that count as overfitting, >= 1.
        horizon_factors: multiples of the longest horizon of meta-training, for instance ``(3, 10)``. At each of these
            horizons, two very small problems (see :func:`~lightning_lopt.evaluation.suites.long_runs`) are added, which
            measure the rule on longer runs than those of meta-training.

    Raises:
        ValueError: if a number is out of range, or in ``setup`` if the module is no ``MetaTrainer``.

    Example:
        >>> import tempfile
        >>> import lightning.pytorch as L
        >>> from lightning_lopt import AdamRule, MetaTrainer, PES, TaskDataModule
        >>> from lightning_lopt.tasks import Quadratic
        >>> bowl = Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), horizon=10)
        >>> baselines = Baselines(seeds=1, shipped=False)
        >>> silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     validation = MetaValidation([bowl], folder, every_n_steps=2, baselines=baselines)
        ...     trainer = L.Trainer(max_steps=2, callbacks=[validation], **silent)
        ...     trainer.fit(MetaTrainer(AdamRule(), PES(truncation=5), horizons=10), TaskDataModule("quadratic"))
        >>> trainer.callback_metrics["meta_validation/score"].item() < 0  # better than the rule at the start
        True
    """

    def __init__(
        self,
        problems: str | Sequence[Problem],
        folder: str | os.PathLike[str],
        *,
        every_n_steps: int = 250,
        baselines: Baselines | str | None = None,
        patience: int = 3,
        horizon_factors: Sequence[float] = (),
    ) -> None:
        if every_n_steps < 1 or patience < 1:
            raise ValueError(f"every_n_steps and patience must be at least 1, got {every_n_steps} and {patience}.")
        if any(not factor > 0 for factor in horizon_factors):
            raise ValueError(f"horizon_factors must be positive numbers, got {horizon_factors!r}.")
        if not problems:
            raise ValueError("MetaValidation needs at least one problem, got none.")
        self.problems = make_suite(problems) if isinstance(problems, str) else list(problems)
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.baselines = baselines if isinstance(baselines, Baselines) else Baselines(baselines)
        self._baselines_on_module_device = not isinstance(baselines, Baselines)
        self.patience = patience
        self.horizon_factors = tuple(horizon_factors)
        self._start_saved = False
        self.history: list[dict[str, float]] = []
        self._start: UpdateRule | None = None
        # The meta-losses since the last measurement stay tensors, since reading a tensor may wait for a GPU.
        self._meta_losses: list[float | torch.Tensor] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called before a checkpoint is restored: copies the rule at the start, and adds the long problems."""
        if not isinstance(pl_module, MetaTrainer):
            raise ValueError(f"MetaValidation works beside a MetaTrainer, got a {type(pl_module).__name__}.")
        if self._start is None:  # no checkpoint is restored yet, so a resumed run compares with the same start
            self._start = copy.deepcopy(pl_module.rule)
            longest = pl_module.horizons.last
            for factor in self.horizon_factors:
                self.problems += long_runs(round(factor * longest))
            names = [problem.name for problem in self.problems]
            if len(set(names)) != len(names):
                raise ValueError(f"problems of MetaValidation need names that differ, got {', '.join(names)}.")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after each outer step: records the meta-loss, and measures the rule if a measurement is due."""
        if "meta_loss" in trainer.callback_metrics:
            self._meta_losses.append(trainer.callback_metrics["meta_loss"].clone())
        is_last_step = trainer.global_step == trainer.max_steps
        is_due = trainer.global_step > 0 and (trainer.global_step % self.every_n_steps == 0 or is_last_step)
        if is_due and not (self.history and self.history[-1]["step"] == trainer.global_step):
            self._measure(trainer, pl_module)

    @property
    def best(self) -> dict[str, float] | None:
        """The measurement whose rule is in ``folder``; ``None`` if none was better than the start."""
        better = [entry for entry in self.history if entry["score"] < 0]
        return min(better, key=lambda entry: entry["score"], default=None)

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MetaTrainer)
        assert self._start is not None
        step = trainer.global_step
        if self._baselines_on_module_device:
            self.baselines.device = pl_module.device
        if trainer.is_global_zero:
            rules = {START: self._start, CURRENT: pl_module.rule}
            average = _average_of(trainer)
            if average is not None:
                rules[AVERAGE] = average
            results_by_problem = list(compare(rules, self.problems, baselines=self.baselines, against=(ADAMW,)))
            scores = {name: score(results_by_problem, name, START) for name in rules if name != START}
            chosen = min(scores, key=scores.__getitem__)
            trained_on = pl_module.trained_on | {"chosen_on": [problem.name for problem in self.problems]}
            self._keep_best(rules, chosen, scores[chosen], step, trained_on)
            self._log(trainer, results_by_problem, scores, chosen)
            records = {name: RuleRecord.of(rule, trained_on) for name, rule in rules.items()}
            results = Results(records, (ADAMW,), tuple(results_by_problem))
            for logger in trainer.loggers:
                log_media(logger, results, "meta_validation", step=step, artifacts={"rule": self.folder})
        trainer.strategy.barrier("meta_validation")

    def _keep_best(
        self, rules: dict[str, UpdateRule], chosen: str, value: float, step: int, trained_on: dict[str, Any]
    ) -> None:
        best = self.best
        if not self.history and not self._start_saved:
            save_rule(rules[START], self.folder, meta_training={"outer_step": 0, "meta_validation": 0.0} | trained_on)
            self._start_saved = True
        if value < (best["score"] if best is not None else 0.0):
            record = {"outer_step": step, "meta_validation": value} | trained_on
            try:
                save_rule(rules[chosen], self.folder, meta_training=record)
            except RuleFileError as error:  # if the disk is full, the earlier rule stays, and meta-training continues
                rank_zero_warn(f"MetaValidation found a better rule at outer step {step} and lost it: {error}")
                return
        losses = list(map(float, self._meta_losses)) or [float("nan")]
        self.history.append({"step": step, "score": value, "meta_loss": sum(losses) / len(losses)})
        self._meta_losses = []

    @property
    def overfitting(self) -> bool:
        """Whether the last ``patience`` measurements are no better than an earlier one, while the meta-loss falls."""
        recent, earlier = self.history[-self.patience :], self.history[: -self.patience]
        if not earlier:
            return False
        best = min(earlier, key=lambda entry: entry["score"])
        is_no_better = all(entry["score"] >= best["score"] for entry in recent)
        return is_no_better and recent[-1]["meta_loss"] < best["meta_loss"]

    def _log(self, trainer: L.Trainer, results: Sequence[ProblemResult], scores: dict[str, float], chosen: str) -> None:
        metrics = {
            "meta_validation/score": scores[chosen],
            "meta_validation/vs_adamw": score(results, chosen, ADAMW),
            "meta_validation/overfitting": float(self.overfitting),
        }
        metrics |= {f"meta_validation/score_{name}": value for name, value in scores.items()}
        metrics |= {
            f"meta_validation/{problem.name}/{split}": problem.log_ratio(chosen, START, split)
            for problem in results
            for split in ("train", "valid")
        }
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        if self.overfitting:
            rank_zero_warn(
                f"meta-overfitting: for {self.patience} measurements the meta-loss kept falling while the results on "
                f"held-out problems did not improve (score {scores[chosen]:+.3f}); {self.folder} holds the best rule "
                "so far."
            )

    def state_dict(self) -> dict[str, Any]:
        """Called for each checkpoint: the scores so far, and the meta-losses since the last measurement."""
        return {"history": self.history, "meta_losses": list(map(float, self._meta_losses))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called when meta-training resumes: restores the result of :meth:`state_dict`."""
        self.history = list(state_dict["history"])
        self._meta_losses = list(state_dict["meta_losses"])


def _average_of(trainer: L.Trainer) -> UpdateRule | None:
    """The averaged rule of a ``WeightAveraging`` callback; ``None`` without such a callback."""
    for callback in getattr(trainer, "callbacks", ()):
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            module = callback._average_model.module
            return module.rule if isinstance(module, MetaTrainer) else None
    return None
