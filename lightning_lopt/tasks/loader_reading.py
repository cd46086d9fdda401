"""The user's batches, read in one pass over their dataloaders and left as they were found."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any, cast

from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from lightning_lopt._lightning import is_lightning
from lightning_lopt.tasks.lightning_classes import overrides
from lightning_lopt.tasks.users_code import users_code

Tree = Any
MAX_BYTES = 2**28  # of the batches of one split that are kept


class Reader:
    """Batches of one loader, through the hooks around the transfer to a device, taken as far as time allows.

    Args:
        loader: what a ``train_dataloader`` or ``val_dataloader`` may return, or a list of batches.
        hooks: the module or data module whose transfer hooks are called.
        mode: how several loaders are combined, see Lightning's ``CombinedLoader``.
        what: how errors name the batches.

    Attributes:
        batches: those read so far.
        seconds: what reading each of them took.
        length: how many there are, ``None`` where the loader does not know.
    """

    def __init__(self, loader: Any, hooks: Any, mode: Any = "max_size_cycle", what: str = "training") -> None:
        self.batches: list[Tree] = []
        self.seconds: list[float] = []
        plain = isinstance(loader, list) and not any(isinstance(entry, DataLoader) for entry in loader)
        self.length = _length(loader)
        self._hooks = hooks
        self._what = f"reading the {what} batches"
        self._loader = loader if plain else CombinedLoader(loader, mode)
        self._plain = plain
        self._iterator: Iterator[Any] | None = None

    def take(self, limit: int, until: float = float("inf")) -> None:
        """Read on, one batch at least, until there are ``limit``, the clock shows ``until``, memory is full or the
        loader ends.

        Raises:
            ValueError: in one sentence, for whatever the loader or a hook raises.
        """
        with users_code(self._what):
            self._take(limit, until)

    def _take(self, limit: int, until: float) -> None:
        if self._iterator is None:
            self._iterator = iter(cast(Iterable[Any], self._loader))
        began = time.perf_counter()
        while len(self.batches) < limit and (began < until or not self.batches):
            entry = next(self._iterator, None)
            if entry is None:
                break
            batch = entry if self._plain else entry[0]
            batch = self._hooks.on_before_batch_transfer(batch, 0)
            self.batches.append(self._hooks.on_after_batch_transfer(batch, 0))
            now = time.perf_counter()
            self.seconds.append(now - began)
            began = now
            if len(self.batches) * bytes_of(batch) > MAX_BYTES:
                break

    @property
    def seconds_per_batch(self) -> float:
        """The median: the first batch waits for workers, or for the order to be drawn."""
        return median(self.seconds)


def readers(module: Any, data: Any, valid: Any) -> tuple[Reader, Reader | None]:
    """Readers of training and validation batches, from a data module, from dataloaders, or from the module's own.

    Args:
        module: with a Trainer, if its hooks or its data module ask for one.
        data: ``None`` for the module's own loaders.
        valid: validation batches, where ``data`` is no data module.

    Raises:
        ValueError: if there is no training data, or in one sentence for whatever the data module raises.
    """
    source: Any = module if data is None else data
    kind, hooks = type(source).__name__, module
    if is_lightning(source, "LightningDataModule"):
        source = _set_up(source, getattr(module, "_trainer", None))
        if any(overrides(source, name) for name in ("on_before_batch_transfer", "on_after_batch_transfer")):
            hooks = source
    if is_lightning(source, "LightningDataModule", "LightningModule"):
        if not overrides(source, "train_dataloader"):
            raise ValueError(f"{kind} has no train_dataloader; write one, or give a data module or a dataloader.")
        if valid is None and overrides(source, "val_dataloader"):
            with users_code(f"{kind}.val_dataloader"):
                valid = source.val_dataloader()
        with users_code(f"{kind}.train_dataloader"):
            data = source.train_dataloader()
    if isinstance(valid, list | tuple) and not len(valid):
        valid = None
    return Reader(data, hooks), None if valid is None else Reader(valid, hooks, "sequential", "validation")


def _set_up(data: Any, trainer: Any) -> Any:
    """A copy of a data module, with what ``setup`` assigns if no Trainer has it already."""
    data, kind = copy.copy(data), type(data).__name__
    if data.trainer is None:
        data.trainer = trainer
        if trainer is not None:
            trainer.datamodule = data
        with users_code(f"{kind}.prepare_data"):
            data.prepare_data()
        with users_code(f"{kind}.setup"):
            data.setup("fit")
    return data


def _length(loader: Any) -> int | None:
    try:
        return len(loader) if not isinstance(loader, dict) else max(map(len, loader.values()))
    except (TypeError, ValueError, NotImplementedError):
        return None


def bytes_of(batch: Tree) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor))
