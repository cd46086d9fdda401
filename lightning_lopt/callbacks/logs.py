"""The logs of the adapter, and its warning at the end of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_lopt.__about__ import __version__
from lightning_lopt.errors import RuleFileError
from lightning_lopt.io.identity import weights_sha256
from lightning_lopt.optim import LearnedOptimizer

PREFIX = "learned_optimizer"


class Logs:
    """Logs learned optimizers at the steps at which the Trainer logs, with the step numbers of the Trainer.

    Args:
        trainer: a Trainer with loggers.
        optimizers: the learned optimizers of the fit.
    """

    def __init__(self, trainer: L.Trainer, optimizers: Sequence[LearnedOptimizer]) -> None:
        self._trainer = trainer
        names = [PREFIX] if len(optimizers) == 1 else [f"{PREFIX}/{index}" for index in range(len(optimizers))]
        self._optimizers = dict(zip(names, optimizers, strict=True))
        self._requested: set[str] = set()

    @property
    def _are_due(self) -> bool:
        every: int = self._trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self._step + 1) % every == 0

    @property
    def _step(self) -> int:
        return self._trainer.fit_loop.epoch_loop._batches_that_stepped

    def request_diagnostics(self) -> None:
        """Called before a step: request the diagnostics of a step that is logged."""
        if self._are_due:
            # An optimizer that makes no step in this batch computes them at a later step.
            for name in self._optimizers.keys() - self._requested:
                self._optimizers[name].signals.wants_diagnostics = True
                self._requested.add(name)

    def write(self, scaler_skipped: dict[LearnedOptimizer, int]) -> None:
        """Called after a batch: write the logs, and wait for the device, if this step is logged."""
        if not self._are_due or self._trainer.fit_loop._should_accumulate():
            return
        metrics: dict[str, float] = {}
        for name in sorted(self._requested):
            optimizer = self._optimizers[name]
            if optimizer.signals.wants_diagnostics:  # the optimizer has made no step since the request
                continue
            self._requested.remove(name)
            if self._trainer.is_global_zero:
                diagnostics = {**optimizer.signals.diagnostics, **_counters(optimizer)}
                if optimizer in scaler_skipped:
                    diagnostics["scaler_skipped_steps"] = scaler_skipped[optimizer]
                metrics |= {f"{name}/{key}": float(value) for key, value in diagnostics.items()}
        for logger in self._trainer.loggers if metrics else ():
            logger.log_metrics(metrics, step=self._step)

    def write_hyperparameters(self) -> None:
        """Log name, revision and hash of the rules."""
        if self._trainer.is_global_zero:
            identities = {name: identity(optimizer) for name, optimizer in self._optimizers.items()}
            for logger in self._trainer.loggers:
                logger.log_hyperparams(identities)


def _counters(optimizer: LearnedOptimizer) -> dict[str, float | Tensor]:
    counters: dict[str, float | Tensor] = {"skipped_steps": optimizer.skipped_steps}
    if isinstance(optimizer.total_steps, int):
        counters["past_horizon"] = float(optimizer.steps_made > optimizer.total_steps)
    return counters


def identity(optimizer: LearnedOptimizer) -> dict[str, Any]:
    """Name, revision and hash of the rule of an optimizer.

    The revision is the part of the rule's name after ``@``. For a name without ``@``, it is the version of this
    package, which contains the embedded rules. The hash of the weights is the one in ``config.json``.
    """
    label, _, revision = optimizer.rule_label.partition("@")
    entries = {"rule": label, "architecture": optimizer.rule.rule_name, "revision": revision or __version__}
    try:
        return {**entries, "sha256": weights_sha256(optimizer.rule)}
    except RuleFileError:  # weights that cannot be saved
        return entries


def warn_at_the_end(optimizer: LearnedOptimizer, scaler_skipped: int) -> None:
    """Warn if steps were skipped, or if their number was not the planned number; this waits for the device."""
    steps_made, skipped, planned = optimizer.steps_made, optimizer.skipped_steps, optimizer.total_steps
    clauses = []
    if skipped:
        clauses.append(
            f"{skipped} of {steps_made + skipped} steps were skipped, since a loss, a gradient or an update was not "
            "finite"
        )
    if scaler_skipped:
        clauses.append(f"the gradient scaler skipped {scaler_skipped} steps")
    if optimizer.rule.reads_horizon and isinstance(planned, int) and steps_made != planned:
        clauses.append(
            f"the horizon was {planned} steps and {steps_made} were made, so the schedule "
            + ("did not reach its end" if steps_made < planned else "ended before the fit")
        )
    if clauses:
        rank_zero_warn(f"Rule {optimizer.rule_label!r}: {'; '.join(clauses)}.")
