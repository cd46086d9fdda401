"""The common part of families of tasks on images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from lightning_lopt.seeding import generator as derived_generator
from lightning_lopt.tasks._draw import choice
from lightning_lopt.tasks.data import DataLike, resolve
from lightning_lopt.tasks.examples import ExamplesTask
from lightning_lopt.tasks.labelled_images import LabelledImages
from lightning_lopt.tasks.model_family import ModelFamily
from lightning_lopt.tasks.variety import Variety


class ImageFamily(ModelFamily):
    """Networks on images, each task with its own variation of the data.

    Args:
        data: one or several sources, as labelled images, names or paths; ``None`` means the handwritten digits.
        variety: draw a :class:`Variety` of the data and a factor on the initial weights for each task, so that one
            small data set gives many problems. Otherwise every task has the unchanged data.
        size: resize all images to ``size`` × ``size`` first; ``None`` for no change.
        max_size: shrink images with a side above this size to ``max_size`` × ``max_size``; ``None`` for no change.
        grey: average over colour channels.
        standardise: mean 0 and deviation 1 for each channel; otherwise pixels are not changed.
        valid_fraction: share of a task's images held out as its ``"valid"`` split.
        max_valid: upper bound on the number of held-out images, since many inner runs are measured on them at once.
        options: ``activations``, ``batch_sizes``, ``schemes``, ``init_scales`` of :class:`ModelFamily`.

    Raises:
        ValueError: if a list is empty, an entry is unknown, or data cannot be loaded.
        ImportError: if ``data`` is ``None`` and scikit-learn is not installed.

    Example:
        >>> from lightning_lopt.tasks import ImageMLPTask, LabelledImages
        >>> class LinearModels(ImageFamily):  # a subclass draws the architecture
        ...     name, task_class = "linear", ImageMLPTask
        ...     def _draw(self, train, generator):
        ...         return {"widths": ()}, "linear"
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10, "mine")
        >>> LinearModels(images).sample(torch.Generator().manual_seed(0)).name
        'linear/mine~1fa1ded3/linear/silu/b64'
    """

    task_class: ClassVar[Callable[..., ExamplesTask]]

    def __init__(
        self,
        data: DataLike | None = None,
        *,
        variety: bool = True,
        size: int | None = None,
        max_size: int | None = None,
        grey: bool = False,
        standardise: bool = True,
        valid_fraction: float = 0.2,
        max_valid: int | None = 512,
        **options: Any,
    ) -> None:
        super().__init__(**(options if variety else {**options, "init_scales": (1.0, 1.0)}))
        self.variety = variety
        self.preparation = {"size": size, "max_size": max_size, "grey": grey, "standardise": standardise}
        self.valid_fraction = valid_fraction
        self.max_valid = max_valid
        self.sources: list[LabelledImages] = []
        for source in resolve(data):
            source = source.grey() if grey else source
            too_large = max_size is not None and max(source.shape[1:]) > max_size
            target_size = max_size if size is None and too_large else size
            source = source if target_size is None else source.resized(target_size)
            self.sources.append(source.standardised() if standardise else source)
        for source in self.sources:
            counts = torch.bincount(source.targets, minlength=source.classes)
            if variety and int(counts.min()) < 2:
                raise ValueError(
                    f"{source.name}: class {int(counts.argmin())} has {int(counts.min())} images; variety=True keeps "
                    "only some classes, so each needs at least 2 images. Give more images, or pass variety=False."
                )
        self._plain_splits = [
            source.split(valid_fraction, derived_generator(0, "split", source.name), max_valid)
            for source in self.sources
        ]

    @property
    def config(self) -> dict[str, Any]:
        entries = {"data": [source.name for source in self.sources], "variety": self.variety}
        return super().config | entries | self.preparation

    def sample(self, generator: torch.Generator) -> ExamplesTask:
        index = choice(range(len(self.sources)), generator)
        source = self.sources[index]
        settings = self.draw_common(generator)
        config: dict[str, Any] = {"family": self.name, "data": source.name}
        label = source.name
        train, valid = self._plain_splits[index]
        if self.variety:
            variety = Variety.draw(source, generator)
            config["variety"] = variety.config
            train, valid = variety.apply(source, self.valid_fraction, self.max_valid)
            label += f"~{variety.tag}"
        architecture, shape = self._draw(train, generator)
        settings |= architecture
        name = self.task_name(label, shape, settings)
        return type(self).task_class(train, valid, **settings, name=name, config=config | settings)

    @abstractmethod
    def _draw(self, train: LabelledImages, generator: torch.Generator) -> tuple[dict[str, Any], str]:
        """Draw an architecture for these images: keyword arguments of ``task_class``, and a short name."""
