"""Task families by name, and mixtures of them.

The package exports the names in ``__all__``, so a new family needs no line in ``tasks/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_lopt.tasks.base import Layers, TaskFamily
from lightning_lopt.tasks.categorical import Categorical
from lightning_lopt.tasks.celo import Celo4
from lightning_lopt.tasks.char_rnn import CharRNN
from lightning_lopt.tasks.char_transformer import CharTransformer
from lightning_lopt.tasks.data import DataLike, resolve
from lightning_lopt.tasks.finetune import FineTuneImages, FineTuneStudents, FineTuneTexts
from lightning_lopt.tasks.image_autoencoder import ImageAutoencoder
from lightning_lopt.tasks.image_cnn import ImageCNN
from lightning_lopt.tasks.image_mixer import ImageMixer
from lightning_lopt.tasks.image_mlp import ImageMLP
from lightning_lopt.tasks.image_resnet import ImageResNet
from lightning_lopt.tasks.image_vae import ImageVAE
from lightning_lopt.tasks.image_vit import ImageViT
from lightning_lopt.tasks.least_squares import LeastSquares
from lightning_lopt.tasks.quadratic import QuadraticFamily
from lightning_lopt.tasks.tabular import TabularClassification, TabularRegression
from lightning_lopt.tasks.teacher import Teacher
from lightning_lopt.tasks.text import TextLike, resolve_texts

__all__ = [
    "FAMILIES",
    "MIXTURES",
    "Categorical",
    "Celo4",
    "CharRNN",
    "CharTransformer",
    "FineTuneImages",
    "FineTuneStudents",
    "FineTuneTexts",
    "ImageAutoencoder",
    "ImageCNN",
    "ImageMLP",
    "ImageMixer",
    "ImageResNet",
    "ImageVAE",
    "ImageViT",
    "LeastSquares",
    "QuadraticFamily",
    "TabularClassification",
    "TabularRegression",
    "Teacher",
    "make_families",
]

IMAGE_FAMILIES: dict[str, Callable[[DataLike | None], TaskFamily]] = {
    "image_mlp": ImageMLP,
    "image_cnn": ImageCNN,
    "image_resnet": ImageResNet,
    "image_vit": ImageViT,
    "image_mixer": ImageMixer,
    "image_autoencoder": ImageAutoencoder,
    "image_vae": ImageVAE,
    "celo4": Celo4,
    "finetune_image": FineTuneImages,
}
"""Families on images, built from the images of a mixture."""

TEXT_FAMILIES: dict[str, Callable[[TextLike | None], TaskFamily]] = {
    "char_rnn": CharRNN,
    "char_transformer": CharTransformer,
    "finetune_text": FineTuneTexts,
}
"""Families on text, built from the text of a mixture."""

OTHER_FAMILIES: dict[str, Callable[[], TaskFamily]] = {
    "tabular_classification": TabularClassification,
    "tabular_regression": TabularRegression,
    "categorical": Categorical,
    "teacher": Teacher,
    "least_squares": LeastSquares,
    "quadratic": QuadraticFamily,
    "finetune_student": FineTuneStudents,
}
"""Families that need no data of the user."""

FAMILIES: tuple[str, ...] = (*IMAGE_FAMILIES, *TEXT_FAMILIES, *OTHER_FAMILIES)
"""Names of all families."""

_FINETUNE = tuple(name for name in FAMILIES if name.startswith("finetune_"))

MIXTURES: dict[str, tuple[str, ...]] = {
    "image": ("image_mlp", "image_cnn"),
    "broad": tuple(name for name in FAMILIES if name not in ("celo4", *_FINETUNE)),
    "finetune": _FINETUNE,
}
"""Names for several families at once. ``"broad"`` contains all families except ``"celo4"``, whose tasks are tasks of
``"image_mlp"``, and except the families of ``"finetune"``, whose networks are pretrained at first use."""


def make_families(
    families: str | TaskFamily | Sequence[str | TaskFamily],
    data: DataLike | None = None,
    text: TextLike | None = None,
) -> list[TaskFamily]:
    """Families from names of families or mixtures; several names are joined by ``+``.

    Args:
        families: for instance ``"image_mlp"``, ``"image+quadratic"``, or a list of names and families; a name that
            occurs twice counts twice.
        data: images for the families that need them, as for :class:`~lightning_lopt.tasks.ImageMLP`, loaded once.
        text: text for the families that need it, as for :class:`~lightning_lopt.tasks.CharRNN`, loaded once.

    Raises:
        ValueError: if a name is unknown, or no name is given.

    >>> [family.name for family in make_families("quadratic+quadratic")]
    ['quadratic', 'quadratic']
    """
    entries = [families] if isinstance(families, (str, TaskFamily)) else list(families)
    flat_entries: list[str | TaskFamily] = []
    for entry in entries:
        names = [entry] if isinstance(entry, TaskFamily) else [name.strip() for name in entry.split("+")]
        for name in names:
            flat_entries.extend(MIXTURES.get(name, (name,)) if isinstance(name, str) else [name])
    if not flat_entries:
        raise ValueError(f"no task family is named; give one or more of {_known_names()}, joined by '+'.")
    for name in flat_entries:
        if isinstance(name, str) and name not in FAMILIES:
            raise ValueError(f"there is no task family {name!r}; use one or more of {_known_names()}, joined by '+'.")
    if data is not None:
        data = resolve(data)
    if text is not None:
        text = resolve_texts(text)
    task_families: list[TaskFamily] = []
    for entry in flat_entries:
        if isinstance(entry, TaskFamily):
            task_families.append(entry)
        elif entry in IMAGE_FAMILIES:
            task_families.append(IMAGE_FAMILIES[entry](data))
        elif entry in TEXT_FAMILIES:
            task_families.append(TEXT_FAMILIES[entry](text))
        else:
            task_families.append(OTHER_FAMILIES[entry]())
    return task_families


def families_with(layers: Layers) -> frozenset[str]:
    """Names of the families whose networks have layers of this kind.

    >>> sorted(families_with("convolutions"))
    ['image_cnn', 'image_resnet']
    """
    families = IMAGE_FAMILIES | TEXT_FAMILIES | OTHER_FAMILIES
    return frozenset(name for name, family in families.items() if layers in getattr(family, "layers", ()))


def _known_names() -> str:
    return ", ".join(map(repr, [*FAMILIES, *MIXTURES]))
