"""Random variations of a data set, so that image families draw many problems from one small source."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.seeding import generator as derived_generator
from lightning_lopt.tasks._draw import chance, integer, log_uniform, uniform
from lightning_lopt.tasks.labelled_images import LabelledImages

MIN_EXAMPLES, MAX_EXAMPLES = 200, 5000


@dataclass(frozen=True)
class Variety:
    """Settings of one variation of a data set. The variation is a deterministic function of these settings.

    Attributes:
        seed: seed for the choice of classes, examples, pixels and labels.
        classes: number of classes to use.
        merged: whether pairs of classes are then merged, so that the images of a class differ more.
        examples: number of images to use, before the split.
        label_noise: share of *training* labels that are replaced by labels drawn uniformly from all classes.
        permuted: whether pixels are permuted, in the same way in all images.
        inverted: whether the sign of the images changes.
        contrast: factor on the images.
        shift: number added to the images, so that the inputs are not centred.
        spread: standard deviation of the logarithm of a factor for each pixel, for badly conditioned inputs.
        pixel_noise: standard deviation of noise added once to each image.

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10)
        >>> variety = Variety(seed=0, classes=4, inverted=True, contrast=0.5)
        >>> train, valid = variety.apply(images.standardised(), valid_fraction=0.2, max_valid=None)
        >>> train.classes, len(train), len(valid)
        (4, 19, 5)
    """

    seed: int
    classes: int
    merged: bool = False
    examples: int = MAX_EXAMPLES
    label_noise: float = 0.0
    permuted: bool = False
    inverted: bool = False
    contrast: float = 1.0
    shift: float = 0.0
    spread: float = 0.0
    pixel_noise: float = 0.0

    @classmethod
    def draw(cls, data: LabelledImages, generator: torch.Generator) -> Variety:
        """Draw settings for ``data``. Each change is absent from many tasks."""
        least_examples = min(MIN_EXAMPLES, len(data) // 2)
        classes = integer(2, data.classes + 1, generator) if chance(0.5, generator) else data.classes
        return cls(
            seed=integer(0, 2**31, generator),
            classes=classes,
            merged=classes >= 4 and chance(0.25, generator),
            examples=round(log_uniform(least_examples, min(MAX_EXAMPLES, len(data)), generator)),
            label_noise=_rounded(uniform(0.0, 0.3, generator) if chance(0.3, generator) else 0.0),
            permuted=chance(0.25, generator),
            inverted=chance(0.5, generator),
            contrast=_rounded(log_uniform(0.5, 2.0, generator)),
            shift=_rounded(uniform(-1.0, 1.0, generator) if chance(0.3, generator) else 0.0),
            spread=_rounded(uniform(0.2, 1.0, generator) if chance(0.3, generator) else 0.0),
            pixel_noise=_rounded(uniform(0.1, 1.0, generator) if chance(0.3, generator) else 0.0),
        )

    @property
    def tag(self) -> str:
        """Short name of this variation."""
        return f"{self.seed:08x}"

    @property
    def config(self) -> dict[str, Any]:
        """All settings, JSON values only."""
        return asdict(self)

    def apply(
        self, data: LabelledImages, valid_fraction: float, max_valid: int | None
    ) -> tuple[LabelledImages, LabelledImages]:
        """The varied data, split into (train, valid); labels of the validation part are never noisy.

        Args:
            data: standardised images with at least ``self.classes`` classes.
            valid_fraction: as in :meth:`LabelledImages.split`.
            max_valid: as in :meth:`LabelledImages.split`.
        """
        varied = self._change_inputs(self._select(data))
        train, valid = varied.split(valid_fraction, self._generator("split"), max_valid)
        is_replaced = torch.rand(len(train), generator=self._generator("hit")) < self.label_noise
        noise = torch.randint(train.classes, (len(train),), generator=self._generator("label"))
        return replace(train, targets=torch.where(is_replaced, noise, train.targets)), valid

    def _generator(self, purpose: str) -> torch.Generator:
        return derived_generator(self.seed, "variety", purpose)

    def _select(self, data: LabelledImages) -> LabelledImages:
        """Select some classes, renumber them in random order, and select some of their examples."""
        selected_classes = torch.randperm(data.classes, generator=self._generator("classes"))[: self.classes]
        new_number = torch.full((data.classes,), -1, dtype=torch.int64)
        new_number[selected_classes] = torch.arange(self.classes)
        example_indices = torch.nonzero(new_number[data.targets] >= 0).squeeze(1)
        order = torch.randperm(len(example_indices), generator=self._generator("examples"))[: self.examples]
        data = data.take(example_indices[order])
        targets, classes = new_number[data.targets], self.classes
        if self.merged:
            targets, classes = targets // 2, (classes + 1) // 2
        return replace(data, targets=targets, classes=classes)

    def _change_inputs(self, data: LabelledImages) -> LabelledImages:
        """Change the pixels of all images in the same way, and add noise to each image."""
        inputs: Tensor = data.inputs * (-self.contrast if self.inverted else self.contrast) + self.shift
        if self.permuted:
            height, width = inputs.shape[2:]
            order = torch.randperm(height * width, generator=self._generator("pixels"))
            inputs = inputs.flatten(2)[..., order].reshape(inputs.shape)
        if self.spread:
            inputs = inputs * torch.exp(self.spread * torch.randn(data.shape, generator=self._generator("spread")))
        if self.pixel_noise:
            noise = torch.randn(inputs.shape, generator=self._generator("noise"))
            inputs = inputs + self.pixel_noise * noise
        return replace(data, inputs=inputs)


def _rounded(value: float) -> float:
    return round(value, 3)
