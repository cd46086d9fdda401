"""Task families by name, and mixtures of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_lopt.tasks.base import TaskFamily
from lightning_lopt.tasks.data import DataLike, resolve
from lightning_lopt.tasks.image_cnn import ImageCNN
from lightning_lopt.tasks.image_mlp import ImageMLP
from lightning_lopt.tasks.quadratic import QuadraticFamily

FAMILIES: dict[str, Callable[[DataLike | None], TaskFamily]] = {
    "image_mlp": lambda data: ImageMLP(data),
    "image_cnn": lambda data: ImageCNN(data),
    "quadratic": lambda data: QuadraticFamily(),
}
"""How to build each family from the data of a mixture; a family without images leaves it aside."""

MIXTURES: dict[str, tuple[str, ...]] = {"image": ("image_mlp", "image_cnn")}
"""Names for several families at once."""


def make_families(
    families: str | TaskFamily | Sequence[str | TaskFamily], data: DataLike | None = None
) -> list[TaskFamily]:
    """Families from names: of a family, of a mixture, or several of these joined by ``+``.

    Args:
        families: for instance ``"image_mlp"``, ``"image+quadratic"``, or a list of names and families; a name that is
            there twice counts twice.
        data: images for the families that need them, as for :class:`~lightning_lopt.tasks.ImageMLP`, loaded once.

    Raises:
        ValueError: if a name is unknown, or there is none.

    >>> [family.name for family in make_families("quadratic+quadratic")]
    ['quadratic', 'quadratic']
    """
    entries = [families] if isinstance(families, (str, TaskFamily)) else list(families)
    flat: list[str | TaskFamily] = []
    for entry in entries:
        names = [entry] if isinstance(entry, TaskFamily) else [name.strip() for name in entry.split("+")]
        for name in names:
            flat.extend(MIXTURES.get(name, (name,)) if isinstance(name, str) else [name])
    if not flat:
        raise ValueError(f"no task family is named; give one or more of {_known()}, joined by '+'.")
    for name in flat:
        if isinstance(name, str) and name not in FAMILIES:
            raise ValueError(f"there is no task family {name!r}; use one or more of {_known()}, joined by '+'.")
    if data is not None:
        data = resolve(data)
    return [FAMILIES[entry](data) if isinstance(entry, str) else entry for entry in flat]


def _known() -> str:
    return ", ".join(map(repr, [*FAMILIES, *MIXTURES]))
