"""Reading of the user's batches, in one pass over the dataloaders and through the transfer hooks.

:func:`first_batches` reads a fixed number of batches with fixed random states. A :class:`Reader` reads batches on
request until a time limit, with the random states of its caller.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from lightning_lopt._lightning import is_lightning
from lightning_lopt.tasks.base import Split
from lightning_lopt.tasks.lightning_classes import overrides
from lightning_lopt.tasks.seeded_random import isolated
from lightning_lopt.tasks.users_code import users_code

if TYPE_CHECKING:
    import lightning.pytorch as L

Tree = Any
Mode = Literal["max_size_cycle", "sequential"]
MAX_BYTES = 2**28  # largest size of the batches of one split in memory
LOADERS: dict[Split, tuple[str, Mode]] = {
    "train": ("train_dataloader", "max_size_cycle"),
    "valid": ("val_dataloader", "sequential"),
}
"""The hook that returns the loaders of a split, and how Lightning combines several loaders (``CombinedLoader``)."""


def combined_batches(loaders: Any, split: Split) -> Iterator[Tree]:
    """The batches of one pass over a loader, or over several loaders as Lightning combines them.

    Args:
        loaders: any result of ``train_dataloader`` or ``val_dataloader``.
        split: split of the loaders.
    """
    for batch, *_ in CombinedLoader(loaders, LOADERS[split][1]):
        yield batch


def first_batches(
    data: Iterable[Tree] | L.LightningDataModule, split: Split, module: Any, limit: int
) -> list[Tree] | None:
    """The first ``limit`` batches of one pass, through the hooks before and after the transfer to a device.

    Args:
        data: batches (a dataloader, a list), or a data module.
        split: split of the loader; for ``"train"``, a data module without a Trainer is prepared and set up.
        module: the module whose hooks are called, unless a data module overrides them.
        limit: largest number of batches.

    Returns:
        the batches, or ``None`` if a data module has no such loader.
    """
    hooks: Any = module
    source: Any = data
    is_data_module = is_lightning(data, "LightningDataModule")
    name = LOADERS[split][0]
    if is_data_module:
        if not overrides(source, name):
            return None
        if source.trainer is None and split == "train":
            source.prepare_data()
            source.setup("fit")
        hooks = _hooks_of(source, module)
    with isolated(0):
        unread = combined_batches(getattr(source, name)(), split) if is_data_module else source
        batches = list(islice(unread, limit))
    with isolated(1):
        return [_through(hooks, batch) for batch in batches]


class Reader:
    """Batches of one loader, through the hooks around the transfer to a device, read until a time limit.

    Args:
        loader: any result of ``train_dataloader`` or ``val_dataloader``, or a list of batches.
        hooks: the module or data module whose transfer hooks are called.
        split: split of the loader.

    Attributes:
        batches: the batches read so far.
        seconds: reading time of each batch, in seconds.
        length: number of batches of the loader; ``None`` if it is unknown.
    """

    def __init__(self, loader: Any, hooks: Any, split: Split = "train") -> None:
        self.batches: list[Tree] = []
        self.seconds: list[float] = []
        self.length = _length(loader)
        self._hooks = hooks
        self._description = f"reading the {'training' if split == 'train' else 'validation'} batches"
        is_list_of_batches = isinstance(loader, list) and not any(isinstance(entry, DataLoader) for entry in loader)
        self._unread = iter(loader) if is_list_of_batches else combined_batches(loader, split)

    def take(self, limit: int, until: float = float("inf")) -> None:
        """Read batches until there are ``limit`` batches, the clock shows ``until``, memory is full
        (``MAX_BYTES``) or the loader ends. The first batch is read in any case.

        Raises:
            ValueError: with one sentence, if the loader or a hook raises an error.
        """
        with users_code(self._description):
            self._take(limit, until)

    def _take(self, limit: int, until: float) -> None:
        start_time = time.perf_counter()
        while len(self.batches) < limit and (start_time < until or not self.batches):
            try:
                batch = next(self._unread)
            except StopIteration:
                break
            batch = _through(self._hooks, batch)
            self.batches.append(batch)
            present_time = time.perf_counter()
            self.seconds.append(present_time - start_time)
            start_time = present_time
            if len(self.batches) * bytes_of(batch) > MAX_BYTES:
                break

    @property
    def seconds_per_batch(self) -> float:
        """Median reading time; the first batch takes longer, since it waits for workers or for the random order."""
        return median(self.seconds)


def readers(module: Any, data: Any, valid: Any) -> tuple[Reader, Reader | None]:
    """Readers of training and validation batches, from a data module, from dataloaders, or from the module's loaders.

    Args:
        module: the module, with a Trainer if its hooks or its data module use one.
        data: ``None`` for the module's loaders.
        valid: validation batches, if ``data`` is not a data module.

    Raises:
        ValueError: with one sentence, if there are no training data or the data module raises an error.
    """
    source: Any = module if data is None else data
    class_name, hooks = type(source).__name__, module
    if is_lightning(source, "LightningDataModule"):
        source = _set_up(source, getattr(module, "_trainer", None))
        hooks = _hooks_of(source, module)
    if is_lightning(source, "LightningDataModule", "LightningModule"):
        if not overrides(source, "train_dataloader"):
            raise ValueError(f"{class_name} has no train_dataloader; write one, or give a data module or a dataloader.")
        if valid is None and overrides(source, "val_dataloader"):
            with users_code(f"{class_name}.val_dataloader"):
                valid = source.val_dataloader()
        with users_code(f"{class_name}.train_dataloader"):
            data = source.train_dataloader()
    if isinstance(valid, list | tuple) and not len(valid):
        valid = None
    return Reader(data, hooks), None if valid is None else Reader(valid, hooks, "valid")


def _hooks_of(data: Any, module: Any) -> Any:
    """The object whose transfer hooks Lightning calls: the data module if it overrides a hook, else the module."""
    data_overrides = any(overrides(data, name) for name in ("on_before_batch_transfer", "on_after_batch_transfer"))
    return data if data_overrides else module


def _through(hooks: Any, batch: Tree) -> Tree:
    """A batch after the hooks around the transfer to a device."""
    return hooks.on_after_batch_transfer(hooks.on_before_batch_transfer(batch, 0), 0)


def _set_up(data: Any, trainer: Any) -> Any:
    """A copy of a data module, after ``prepare_data`` and ``setup`` if it has no Trainer yet."""
    data, class_name = copy.copy(data), type(data).__name__
    if data.trainer is None:
        data.trainer = trainer
        if trainer is not None:
            trainer.datamodule = data
        with users_code(f"{class_name}.prepare_data"):
            data.prepare_data()
        with users_code(f"{class_name}.setup"):
            data.setup("fit")
    return data


def _length(loader: Any) -> int | None:
    try:
        return len(loader) if not isinstance(loader, dict) else max(map(len, loader.values()))
    except (TypeError, ValueError, NotImplementedError):
        return None


def bytes_of(batch: Tree) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor))
