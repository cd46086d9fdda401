"""The data of the outer loop: a mixture of task families, as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import lightning.pytorch as L
from torch.utils.data import DataLoader, IterableDataset

from lightning_lopt.tasks.base import TaskFamily
from lightning_lopt.tasks.data import DataLike
from lightning_lopt.tasks.mixtures import make_families
from lightning_lopt.tasks.task_mixture import TaskMixture
from lightning_lopt.tasks.text import TextLike
from lightning_lopt.tasks.transforms import Transform, augment

__all__ = ["TaskDataModule", "TaskMixture"]


class _EndlessMixture(IterableDataset[TaskMixture]):
    """An endless dataset with the same mixture for each outer step; the outer step draws tasks from it."""

    def __init__(self, mixture: TaskMixture) -> None:
        self.mixture = mixture

    def __iter__(self) -> Iterator[TaskMixture]:
        while True:
            yield self.mixture


class TaskDataModule(L.LightningDataModule):
    """Task families by name for :class:`~lightning_lopt.MetaTrainer`.

    Args:
        families: names joined by ``+``, or families; see :func:`~lightning_lopt.tasks.make_families`.
        data: sources of images (``"digits"``, an ``.npz`` file, a folder of IDX files, labelled images).
        text: sources of text (paths of text files); ``None`` means sources of Python's standard library.
        augmentation: a name in :data:`~lightning_lopt.tasks.AUGMENTATIONS`, transforms, or ``None`` for none.

    Raises:
        ValueError: if a name is unknown or data cannot be loaded.

    Example:
        >>> data_module = TaskDataModule("quadratic+least_squares", augmentation="broad")
        >>> mixture = next(iter(data_module.train_dataloader()))
        >>> [family.name for family in mixture.families]
        ['quadratic', 'least_squares']
    """

    def __init__(
        self,
        families: str | TaskFamily | Sequence[str | TaskFamily] = "image_mlp",
        data: DataLike | None = None,
        text: TextLike | None = None,
        augmentation: str | Sequence[Transform] | None = None,
    ) -> None:
        super().__init__()
        self.mixture = TaskMixture(augment(make_families(families, data, text), augmentation))

    def train_dataloader(self) -> DataLoader[TaskMixture]:
        """Called before training; the loader yields the mixture of tasks for each outer step, without an end."""
        return DataLoader(_EndlessMixture(self.mixture), batch_size=None)
