"""Reads validation batches of a fit without changing loaders, samplers or random states of the fit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from lightning_lopt.seeding import generator
from lightning_lopt.tasks.lightning_batches import PLAIN
from lightning_lopt.tasks.lightning_classes import overrides
from lightning_lopt.tasks.side_effects import generators_restored, random_states_restored
from lightning_lopt.tasks.users_code import named

HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
BatchLeaves = list[Any]


class ValidationBatches:
    """Up to ``limit`` batches of the first validation dataloader, as trees of tensors on the device of the fit.

    If the loader is a plain ``DataLoader`` of a map-style dataset, examples are read from the dataset by number,
    without the loader, its sampler and its workers. In all other cases (a stream, a subclass of the loader or the
    sampler, hooks around the transfer to the device) the batches of the validation of the fit, including its sanity
    check, are recorded instead.

    Args:
        limit: largest number of batches, >= 1.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.recorded: list[BatchLeaves] = []  # batches of the validation of the fit
        self._structure: Any = None  # tree structure of the batches in ``recorded``
        self._read: list[Any] | None = None

    def record(self, batch: Any) -> None:
        """Record a batch of the validation of the fit that holds tensors and plain values, up to ``limit`` batches."""
        if len(self.recorded) >= self.limit or self._read:
            return
        leaves, structure = pytree.tree_flatten(batch)
        if all(isinstance(leaf, (Tensor, *PLAIN)) for leaf in leaves) and self._structure in (None, structure):
            self._structure = structure
            self.recorded.append([leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves])

    def like(self, structure: Any, trainer: Any, module: Any) -> list[Any]:
        """Batches that have the structure of training batches; the list may be empty.

        Args:
            structure: tree structure of a training batch, from ``torch.utils._pytree``.
            trainer: Trainer of the fit.
            module: the module that is trained.
        """
        if self._read is None:
            self._read = _read_from_dataset(trainer, module, self.limit)
            if self._read:
                self.recorded = []
        if self._read:
            return self._read if pytree.tree_structure(self._read[0]) == structure else []
        if (
            not self.recorded
            or self._structure not in (None, structure)
            or len(self.recorded[0]) != structure.num_leaves
        ):
            return []
        device = module.device
        trees = [pytree.tree_unflatten(leaves, structure) for leaves in self.recorded]
        return pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), trees)  # type: ignore[no-any-return]


def _read_from_dataset(trainer: Any, module: Any, limit: int) -> list[Any]:
    """The first batches of the first validation dataloader; empty if its dataset cannot be read without the loader."""
    loader = next((entry for entry in pytree.tree_leaves(trainer.val_dataloaders) if entry is not None), None)
    owners = [module, getattr(trainer, "datamodule", None)]
    if loader is None or any(overrides(owner, name) for owner in owners if owner is not None for name in HOOKS):
        return []
    convert, move = trainer.precision_plugin.convert_input, trainer.strategy.batch_to_device
    try:
        with random_states_restored(), generators_restored(loader):
            return [move(convert(batch)) for batch in islice(_dataset_batches(loader), limit)]
    except Exception as error:
        rank_zero_warn(f"OnlineMetaTraining uses no validation batches, since reading them failed ({named(error)}).")
        return []


def _dataset_batches(loader: Any) -> Iterator[Any]:
    """Batches of a plain loader of a map-style dataset, in an order that depends only on the loader's arguments."""
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        return
    order = _order(loader.sampler, len(loader.dataset))  # type: ignore[arg-type]
    if order is None:
        return
    dataset: Any = _copy_of(loader.dataset)
    size = loader.batch_size
    if size is None:
        yield from (loader.collate_fn(dataset[index]) for index in order)
        return
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        if len(indices) == size or not loader.drop_last:
            yield loader.collate_fn([dataset[index] for index in indices])


def _copy_of(dataset: Dataset[Any]) -> Dataset[Any]:
    """A copy that shares the examples; attributes that a dataset or an inner dataset sets later are set on the copy."""
    copied = copy.copy(dataset)
    if not hasattr(copied, "__dict__"):  # a list has no attributes to replace
        return copied
    for name, value in list(vars(copied).items()):
        if isinstance(value, Dataset):
            vars(copied)[name] = _copy_of(value)
    return copied


def _order(sampler: Any, count: int) -> list[int] | None:
    """Indices of the examples in order; ``None`` for samplers whose order is not known."""
    if isinstance(sampler, DistributedSampler):
        wrapped_sampler = getattr(sampler.dataset, "_sampler", None)  # Lightning wraps the sampler of the loader
        if wrapped_sampler is not None and type(wrapped_sampler) not in (SequentialSampler, RandomSampler):
            return None
        return list(range(sampler.rank, count, sampler.num_replicas))
    if type(sampler) is SequentialSampler:
        return list(range(count))
    if type(sampler) is RandomSampler:
        return torch.randperm(count, generator=generator(0, "validation")).tolist()
    return None
