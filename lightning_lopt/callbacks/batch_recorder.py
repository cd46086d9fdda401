"""Batches of a fit, kept for pilots: coming batches of training as they pass, and batches of validation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_lopt.callbacks.validation_batches import Leaves, ValidationBatches
from lightning_lopt.tasks.lightning_batches import PLAIN
from lightning_lopt.tasks.users_code import named


class BatchRecorder:
    """Keeps copies of batches on this rank. A batch is kept as the leaves of its tree (``torch.utils._pytree``).

    Args:
        validation_limit: largest number of validation batches, >= 1.

    Attributes:
        window: coming batches that were recorded for the next round.
        trouble: why there can be no pilots on this rank; empty as long as there can be.
        on_validation: whether the next round is measured on validation batches, the same on all ranks.
        validation: the validation batches.
    """

    def __init__(self, validation_limit: int) -> None:
        self.window: list[Leaves] = []
        self.trouble = ""
        self.on_validation = False
        self.validation = ValidationBatches(validation_limit)
        self._structure: Any = None
        self._saved_windows: list[list[Leaves]] = []  # by rank
        self._saved_validation: list[list[Leaves]] = []  # likewise

    def copied(self, batch: Any) -> Leaves:
        """Leaves of a batch, cloned, since a training_step may write into its batch; empty if that fails."""
        try:
            leaves, self._structure = pytree.tree_flatten(batch)
            foreign = next((leaf for leaf in leaves if not isinstance(leaf, (Tensor, *PLAIN))), None)
            if foreign is not None:
                raise TypeError(f"a batch holds a {type(foreign).__name__}, which is no tensor or plain value")
            return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        except Exception as error:  # told in the round, which all ranks reach
            self.trouble = named(error)
            return []

    def see_validation(self, batch: Any) -> None:
        """Keep a batch of the fit's own validation."""
        try:
            self.validation.see(batch)
        except Exception as error:  # a tensor that cannot be cloned
            self.trouble = named(error)

    def choose_split(self, trainer: Any, module: Any) -> None:
        """Decide what the next round is measured on; called on all ranks, after a batch was :meth:`copied`."""
        has = bool(self._structure) and bool(self.validation.like(self._structure, trainer, module))
        share = trainer.strategy.reduce(torch.tensor(float(has), device=module.device), reduce_op="mean")
        self.on_validation = bool(share == 1)

    def recorded(self) -> list[Any]:
        """The batches of the window."""
        return [pytree.tree_unflatten(leaves, self._structure) for leaves in self.window]

    def validation_batches(self, trainer: Any, module: Any) -> list[Any]:
        """Batches to measure the next round on; none where it is measured on coming batches."""
        return self.validation.like(self._structure, trainer, module) if self.on_validation else []

    def state_dict(self, trainer: Any | None) -> dict[str, Any]:
        """What all ranks have kept; called on all ranks."""
        return {
            "windows": _of_all_ranks(trainer, self.window),
            "validation": _of_all_ranks(trainer, self.validation.seen),
            "on_validation": self.on_validation,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; :meth:`restore` then finds the batches of this rank."""
        self._saved_windows = state["windows"]
        self._saved_validation = state.get("validation", [[] for _ in self._saved_windows])
        self.on_validation = state.get("on_validation", False)

    def restore(self, rank: int, world_size: int) -> None:
        """Go on with the saved batches of this rank; with another number of ranks recording begins anew."""
        if len(self._saved_windows) == world_size:
            self.window = [list(leaves) for leaves in self._saved_windows[rank]]
            self.validation.seen = [list(leaves) for leaves in self._saved_validation[rank]]


def _of_all_ranks(trainer: Any | None, batches: list[Leaves]) -> list[list[Leaves]]:
    if trainer is None or trainer.world_size == 1:
        return [batches]
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, batches)
    return gathered
