"""The user's batches, read in one pass over their dataloaders and left as they were found."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, cast

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

Tree = Any
MAX_BYTES = 2**28  # of the batches of one split that are kept


class Reader:
    """Batches of one loader, through the hooks around the transfer to a device, taken as far as time allows.

    Args:
        loader: what a ``train_dataloader`` or ``val_dataloader`` may return, or a list of batches.
        hooks: the module or data module whose transfer hooks are called.
        mode: how several loaders are combined, see Lightning's ``CombinedLoader``.

    Attributes:
        batches: those read so far.
        seconds: what reading each of them took.
        length: how many there are, ``None`` where the loader does not know.
    """

    def __init__(self, loader: Any, hooks: Any, mode: Any = "max_size_cycle") -> None:
        self.batches: list[Tree] = []
        self.seconds: list[float] = []
        plain = isinstance(loader, list) and not any(isinstance(entry, DataLoader) for entry in loader)
        self.length = _length(loader)
        self._hooks = hooks
        self._loader = loader if plain else CombinedLoader(loader, mode)
        self._plain = plain
        self._iterator: Iterator[Any] | None = None

    def take(self, limit: int, until: float = float("inf")) -> None:
        """Read on, one batch at least, until there are ``limit``, the clock shows ``until``, memory is full or the
        loader ends.
        """
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


def readers(module: L.LightningModule, data: Any, valid: Any) -> tuple[Reader, Reader | None]:
    """Readers of training and validation batches, from a data module, from dataloaders, or from the module's own.

    Raises:
        ValueError: if there is no training data.
    """
    source: Any = module if data is None else data
    if isinstance(source, L.LightningDataModule):
        source = copy.copy(source)  # what setup() assigns stays with the copy
        if source.trainer is None:
            source.prepare_data()
            source.setup("fit")
    hooks: Any = module
    if isinstance(source, (L.LightningDataModule, L.LightningModule)):
        kind = L.LightningModule if source is module else L.LightningDataModule
        names = ("on_before_batch_transfer", "on_after_batch_transfer")
        if source is not module and any(is_overridden(name, source, kind) for name in names):
            hooks = source
        if not is_overridden("train_dataloader", source, kind):
            raise ValueError(
                f"{type(source).__name__} has no train_dataloader; write one, or give a data module or a dataloader."
            )
        if valid is None and is_overridden("val_dataloader", source, kind):
            valid = source.val_dataloader()
        data = source.train_dataloader()
    return Reader(data, hooks), None if valid is None else Reader(valid, hooks, "sequential")


@contextmanager
def generators_restored(*loaders: Reader | None) -> Iterator[None]:
    """Generators that the loaders and their samplers own are put back, so that their order is what it would be."""
    found = {id(g): g for loader in loaders if loader is not None for g in _generators(loader._loader)}
    states = [(g, g.get_state()) for g in found.values()]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _generators(loader: Any) -> Iterator[torch.Generator]:
    flat = loader.flattened if isinstance(loader, CombinedLoader) else [loader]
    for one in flat:
        owners = [one, getattr(one, "sampler", None), getattr(one, "batch_sampler", None)]
        owners += [getattr(owners[-1], "sampler", None), getattr(one, "dataset", None)]
        for owner in owners:
            for value in vars(owner).values() if hasattr(owner, "__dict__") else ():
                if isinstance(value, torch.Generator):
                    yield value


def _length(loader: Any) -> int | None:
    try:
        return len(loader) if not isinstance(loader, dict) else max(map(len, loader.values()))
    except (TypeError, ValueError, NotImplementedError):
        return None


def bytes_of(batch: Tree) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor))
