"""Images as tokens: square patches, and the common part of families on patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.checks import check_size_options
from lightning_lopt.tasks.data import DataLike
from lightning_lopt.tasks.image import ImageFamily
from lightning_lopt.tasks.labelled_images import LabelledImages


class Patches:
    """Splits images into ``grid`` × ``grid`` square patches, padded with zeros if the sides are not divisible.

    Args:
        shape: channels, height and width of the images.
        grid: number of patches along the longer side, at most the number of pixels.

    Attributes:
        size: pixels along a side of one patch.
        tokens: number of patches T.
        features: numbers in one patch.
    """

    def __init__(self, shape: tuple[int, int, int], grid: int) -> None:
        channels, height, width = shape
        self.size = -(-max(height, width) // grid)
        self.rows, self.columns = -(-height // self.size), -(-width // self.size)
        self.padding = (0, self.columns * self.size - width, 0, self.rows * self.size - height)
        self.tokens = self.rows * self.columns
        self.features = channels * self.size**2

    def __call__(self, images: Tensor) -> Tensor:
        """The patches, row by row, shape ``(B, T, C * size * size)``, of images of shape ``(B, C, H, W)``."""
        if any(self.padding):
            images = F.pad(images, self.padding)
        batch, channels = images.shape[:2]
        cut = images.reshape(batch, channels, self.rows, self.size, self.columns, self.size)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, self.tokens, self.features)


class PatchFamily(ImageFamily):
    """The common part of families of networks on patches, which draws grid, width and depth.

    Args:
        data: sources of images; see :class:`~lightning_lopt.tasks.image.ImageFamily`, also for ``options``.
        grids: patches along a side to draw from.
        widths: numbers of features of a token to draw from.
        depths: numbers of blocks to draw from.

    Raises:
        ValueError: if a list is empty, an entry is unknown, or data cannot be loaded.
    """

    def __init__(
        self,
        data: DataLike | None = None,
        grids: Sequence[int] = (2, 4),
        widths: Sequence[int] = (16, 24, 32),
        depths: Sequence[int] = (1, 2),
        **options: Any,
    ) -> None:
        super().__init__(data, **{"max_size": 16, "batch_sizes": (8, 16, 32), **options})
        self.ranges |= {
            "grids": check_size_options(grids, "grids"),
            "widths": check_size_options(widths, "widths"),
            "depths": check_size_options(depths, "depths"),
        }

    def _draw(self, train: LabelledImages, generator: torch.Generator) -> tuple[dict[str, Any], str]:
        settings = {key: self.pick(f"{key}s", generator) for key in ("grid", "width", "depth")}
        return settings, "g{grid}-w{width}-d{depth}".format(**settings)
