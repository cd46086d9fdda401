"""Augmentations by name."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_lopt.tasks.base import TaskFamily
from lightning_lopt.tasks.transforms.base import Augmented, Transform
from lightning_lopt.tasks.transforms.delay import DelayedGradients
from lightning_lopt.tasks.transforms.gradients import GradientNoise, LowPrecision
from lightning_lopt.tasks.transforms.parts import FrozenTensors, SmallerBatch
from lightning_lopt.tasks.transforms.reparametrise import Reparametrise

AUGMENTATIONS: dict[str, tuple[Transform, ...]] = {
    "celo": (Reparametrise(),),
    "broad": (
        SmallerBatch(probability=0.2),
        FrozenTensors(probability=0.1),
        Reparametrise(probability=0.4),
        Reparametrise(probability=0.2, low=0.1, high=10.0, per_tensor=True),
        DelayedGradients(probability=0.1),
        GradientNoise(probability=0.2),
        LowPrecision(probability=0.2),
    ),
}
"""``"celo"`` draws one scale for all tensors of each task, log-uniform in [1e-3, 1e3], as in the training of Celo and
Celo2. ``"broad"`` applies each transform to some of the tasks; about one task in five does not change."""


def augment(families: Sequence[TaskFamily], augmentation: str | Sequence[Transform] | None) -> list[TaskFamily]:
    """The families with their tasks transformed.

    Args:
        families: the families, see :func:`~lightning_lopt.tasks.make_families`.
        augmentation: a name in :data:`AUGMENTATIONS`, transforms in the order of application, or ``None`` for none.

    Raises:
        ValueError: if the name is unknown.

    Example:
        >>> from lightning_lopt.tasks import make_families
        >>> (family,) = augment(make_families("quadratic"), "celo")
        >>> family.config["transforms"]
        [{'name': 'reparametrise', 'probability': 1.0, 'low': 0.001, 'high': 1000.0, 'per_tensor': False}]
    """
    if augmentation is None:
        return list(families)
    if isinstance(augmentation, str):
        if augmentation not in AUGMENTATIONS:
            names = ", ".join(map(repr, AUGMENTATIONS))
            raise ValueError(f"there is no augmentation {augmentation!r}; use one of {names}, or a list of transforms.")
        augmentation = AUGMENTATIONS[augmentation]
    return [Augmented(family, augmentation) for family in families]
