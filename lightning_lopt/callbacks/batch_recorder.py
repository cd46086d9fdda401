"""Copies batches of a fit for pilots: training batches in the order of the fit, and validation batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_lopt.callbacks.validation_batches import BatchLeaves, ValidationBatches
from lightning_lopt.tasks.lightning_batches import PLAIN
from lightning_lopt.tasks.users_code import named


class BatchRecorder:
    """Records batches on this rank; a batch is stored as copies of the leaves of its tree (``torch.utils._pytree``).

    Args:
        validation_limit: largest number of validation batches, >= 1.

    Attributes:
        window: training batches that were recorded for the next round.
        trouble: the error that prevents pilots on this rank; empty without an error.
        on_validation: whether the next round measures on validation batches; the same on all ranks.
        validation: the validation batches.
    """

    def __init__(self, validation_limit: int) -> None:
        self.window: list[BatchLeaves] = []
        self.trouble = ""
        self.on_validation = False
        self.validation = ValidationBatches(validation_limit)
        self._structure: Any = None
        self._saved_windows: list[list[BatchLeaves]] = []  # windows of a checkpoint, by rank
        self._saved_validation: list[list[BatchLeaves]] = []  # validation batches of a checkpoint, by rank

    def copied(self, batch: Any) -> BatchLeaves:
        """Copies of the leaves of a batch, since a training_step may write into its batch; empty if that fails."""
        try:
            leaves, self._structure = pytree.tree_flatten(batch)
            foreign = next((leaf for leaf in leaves if not isinstance(leaf, (Tensor, *PLAIN))), None)
            if foreign is not None:
                raise TypeError(f"a batch holds a {type(foreign).__name__}, which is no tensor or plain value")
            return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        except Exception as error:  # the next round, which all ranks reach, reports it
            self.trouble = named(error)
            return []

    def record_validation(self, batch: Any) -> None:
        """Record a batch of the validation of the fit."""
        try:
            self.validation.record(batch)
        except Exception as error:  # some tensors cannot be cloned
            self.trouble = named(error)

    def choose_split(self, trainer: Any, module: Any) -> None:
        """Choose the batches on which the next round measures; called on all ranks, after :meth:`copied`."""
        has_validation = bool(self._structure) and bool(self.validation.like(self._structure, trainer, module))
        share = trainer.strategy.reduce(torch.tensor(float(has_validation), device=module.device), reduce_op="mean")
        self.on_validation = bool(share == 1)

    def recorded(self) -> list[Any]:
        """The batches of the window."""
        return [pytree.tree_unflatten(leaves, self._structure) for leaves in self.window]

    def validation_batches(self, trainer: Any, module: Any) -> list[Any]:
        """Validation batches for the next round; an empty list if the round measures on training batches."""
        return self.validation.like(self._structure, trainer, module) if self.on_validation else []

    def state_dict(self, trainer: Any | None) -> dict[str, Any]:
        """The recorded batches of all ranks; called on all ranks."""
        return {
            "windows": _batches_of_all_ranks(trainer, self.window),
            "validation": _batches_of_all_ranks(trainer, self.validation.recorded),
            "on_validation": self.on_validation,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Store the result of :meth:`state_dict`, from which :meth:`restore` then selects the batches of this rank."""
        self._saved_windows = state["windows"]
        self._saved_validation = state.get("validation", [[] for _ in self._saved_windows])
        self.on_validation = state.get("on_validation", False)

    def restore(self, rank: int, world_size: int) -> None:
        """Continue with the saved batches of this rank; if the number of ranks has changed, recording begins anew."""
        if len(self._saved_windows) == world_size:
            self.window = [list(leaves) for leaves in self._saved_windows[rank]]
            self.validation.recorded = [list(leaves) for leaves in self._saved_validation[rank]]


def _batches_of_all_ranks(trainer: Any | None, batches: list[BatchLeaves]) -> list[list[BatchLeaves]]:
    if trainer is None or trainer.world_size == 1:
        return [batches]
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, batches)
    return gathered
