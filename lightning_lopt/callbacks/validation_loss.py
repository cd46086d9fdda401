"""The validation loss of a module, for rules that read it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_lopt.optim import LearnedOptimizer
from lightning_lopt.optim.sharding import free_copies

HELD_OUT = re.compile(r"(^|[^a-z])(val|valid|validation|eval|dev)([^a-z]|$)", re.IGNORECASE)
"""The pattern of a word in the name of a metric of held-out data."""
WORD = re.compile(r"[A-Za-z]+|[0-9]+")


class ValidationLoss:
    """Passes the validation loss to the optimizers whose rule reads it, after each validation of a fit.

    Args:
        trainer: the Trainer.
        optimizers: all learned optimizers of the fit.
        monitor: name of the logged metric, lower is better; ``"auto"`` selects the metric by
            :func:`validation_loss_of`; ``None`` passes no loss.
    """

    def __init__(self, trainer: L.Trainer, optimizers: Sequence[LearnedOptimizer], monitor: str | None) -> None:
        self._trainer, self._monitor = trainer, monitor
        self._readers = [optimizer for optimizer in optimizers if optimizer.rule.reads_validation]
        self._is_announced = self._has_logged_rollback = False

    def after_validation(self) -> None:
        """Read the metric, and pass the mean of its finite values over the ranks that have the metric."""
        if not self._readers or self._monitor is None or self._trainer.sanity_checking:
            return
        metrics = self._trainer.callback_metrics
        name = validation_loss_of(self._trainer) if self._monitor == "auto" else self._monitor
        value = None if name is None else metrics.get(name)
        if not self._is_announced:
            self._announce(name, value)
        strategy = self._trainer.strategy
        # A metric may be logged on only one rank, but all ranks have to take part in the sum.
        is_finite = value is not None and bool(value.isfinite())
        pair = [float(value), 1.0] if is_finite and value is not None else [0.0, 0.0]
        total, count = strategy.reduce(torch.tensor(pair, device=strategy.root_device), reduce_op="sum")
        if count > 0:
            module = self._trainer.lightning_module
            were_restored = [optimizer.validated(total / count, module) for optimizer in self._readers]
            if any(were_restored):
                self._follow_rollback()

    def _follow_rollback(self) -> None:
        """Free gathered copies of the previous weights, and log the first rollback of a fit."""
        free_copies(self._trainer.lightning_module)
        if not self._has_logged_rollback:
            self._has_logged_rollback = True
            rank_zero_info(
                "LearnedOptimizerAdapter: the validation loss has risen, so training continues from the weights of its "
                "lowest value, with shorter steps, now and after each further rise. If that does not lower the loss, "
                "it is ignored until its next lowest value; monitor=None switches this off."
            )

    def _announce(self, name: str | None, value: Tensor | None) -> None:
        """Log once which metric the rules read."""
        self._is_announced = True
        if value is not None:
            rank_zero_info(f"LearnedOptimizerAdapter: the steps follow {name!r}, the loss of each validation.")
        elif self._monitor != "auto":
            rank_zero_warn(
                f"LearnedOptimizerAdapter(monitor={name!r}): no such metric was logged in validation, so the steps do "
                f"not follow it; there are {', '.join(sorted(self._trainer.callback_metrics)) or 'none'}."
            )
        elif held_out := sorted(filter(HELD_OUT.search, self._trainer.callback_metrics)):
            rank_zero_info(
                f"LearnedOptimizerAdapter: the steps follow no validation loss, since it is not clear which of "
                f"{', '.join(held_out)} is one; name it by LearnedOptimizerAdapter(monitor=...)."
            )


def validation_loss_of(trainer: L.Trainer) -> str | None:
    """The name of the logged validation loss, or ``None``.

    A name belongs to held-out data if it contains one of the words ``val``, ``valid``, ``validation``, ``eval`` and
    ``dev``. The function returns the first of these metrics that is logged:

    - a metric of held-out data that :class:`~lightning.pytorch.callbacks.EarlyStopping` or
      :class:`~lightning.pytorch.callbacks.ModelCheckpoint` monitors with ``mode="min"``;
    - ``val_loss``;
    - the metric of held-out data with ``loss`` in its name whose name has the fewest words, if there is only one such
      metric: ``valid_loss`` of ``valid_loss`` and ``valid_loss_0``, but none of ``val_mask_loss`` and ``val_box_loss``.
    """
    logged = trainer.callback_metrics
    held_out = [name for name in logged if HELD_OUT.search(name)]
    for callback in (*trainer.early_stopping_callbacks, *trainer.checkpoint_callbacks):
        if isinstance(callback, EarlyStopping | ModelCheckpoint):
            name = callback.monitor if callback.mode == "min" else None
            if name in held_out:
                return name
    lengths = {name: len(WORD.findall(name)) for name in held_out if "loss" in name.lower()}
    if "val_loss" in lengths:
        return "val_loss"
    shortest = [name for name, length in lengths.items() if length == min(lengths.values())]
    return shortest[0] if len(shortest) == 1 else None
