"""Labelled images, the checked data of image tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.tasks._draw import split_indices

MAX_CLASSES = 10_000
"""Largest number of classes; larger labels are more likely identifiers, and a head for them would be huge."""

_MAX_CHANNELS = 4


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with one class each; the constructor checks them.

    Attributes:
        inputs: float32, shape ``(N, C, H, W)``, finite.
        targets: int64, shape ``(N,)``, in ``[0, classes)``.
        classes: number of classes, >= 2.
        name: short, for task names and messages.

    Raises:
        ValueError: if an attribute has another type, shape or value.

    Example:
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10, "mine")
        >>> train, valid = images.standardised().split(0.2, torch.Generator().manual_seed(0))
        >>> len(train), len(valid), images.shape, images.classes
        (48, 12, (1, 8, 8), 10)
    """

    inputs: Tensor
    targets: Tensor
    classes: int
    name: str

    def __post_init__(self) -> None:
        if self.inputs.dtype != torch.float32 or self.inputs.ndim != 4:
            raise ValueError(
                f"{self.name}: inputs must be float32 of shape (N, C, H, W), got {self.inputs.dtype} of shape "
                f"{tuple(self.inputs.shape)}; LabelledImages.from_arrays converts other layouts."
            )
        if self.targets.dtype != torch.int64 or self.targets.ndim != 1:
            raise ValueError(
                f"{self.name}: targets must be int64 of shape (N,), got {self.targets.dtype} of shape "
                f"{tuple(self.targets.shape)}; LabelledImages.from_arrays converts other integers."
            )
        if self.inputs.numel() == 0:
            raise ValueError(f"{self.name}: there are no images (shape {tuple(self.inputs.shape)}); give at least one.")
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"{self.name}: {len(self.inputs)} images but {len(self.targets)} labels; every image needs one label."
            )
        if not 2 <= self.classes <= MAX_CLASSES:
            raise ValueError(
                f"{self.name}: {self.classes} classes; labels must have between 2 and {MAX_CLASSES} classes."
            )
        low, high = int(self.targets.min()), int(self.targets.max())
        if low < 0 or high >= self.classes:
            raise ValueError(
                f"{self.name}: labels run from {low} to {high}, outside 0 to {self.classes - 1}; renumber them from 0."
            )
        if not bool(torch.isfinite(self.inputs).all()):
            raise ValueError(f"{self.name}: images hold NaN or infinite values; clean the file, then load it again.")

    @classmethod
    def from_arrays(cls, x: Any, y: Any, name: str = "arrays") -> LabelledImages:
        """Images from anything ``numpy.asarray`` reads (tensors too).

        Args:
            x: uint8 (then divided by 255) or floating point (not changed), of shape ``(N, H, W)``, ``(N, C, H, W)``,
                ``(N, H, W, C)`` or, for flat square images with one channel, ``(N, D)``. There are 1 to 4 channels. The
                shorter one of the second and the last axis holds the channels; with equal lengths, the second axis.
            y: integer labels from 0, of shape ``(N,)`` or ``(N, 1)``. The largest label gives the number of classes.
            name: for task names and messages.

        Raises:
            ValueError: if the arrays have other types, shapes or values.
        """
        images = _images(np.asarray(x), name)
        targets = _labels(np.asarray(y), name)
        return cls(images, targets, int(targets.max()) + 1, name)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        _, channels, height, width = self.inputs.shape
        return channels, height, width

    @property
    def features(self) -> int:
        """Numbers in one image."""
        return math.prod(self.shape)

    @property
    def flat(self) -> Tensor:
        """The images as rows, shape ``(N, C * H * W)``."""
        return self.inputs.flatten(1)

    def take(self, indices: Tensor) -> LabelledImages:
        """The images with these indices, shape ``(M,)``, in this order."""
        return replace(self, inputs=self.inputs[indices], targets=self.targets[indices])

    def standardised(self) -> LabelledImages:
        """The images with mean 0 and deviation 1 in each channel over the whole set; a constant channel becomes 0."""
        mean = self.inputs.mean((0, 2, 3), keepdim=True)
        centred = self.inputs - mean
        deviation = centred.square().mean((0, 2, 3), keepdim=True).sqrt()
        return replace(self, inputs=centred / torch.where(deviation > 1e-6, deviation, 1.0))

    def grey(self) -> LabelledImages:
        """The images with one channel, the mean of all channels."""
        return replace(self, inputs=self.inputs.mean(1, keepdim=True))

    def resized(self, size: int) -> LabelledImages:
        """The images at ``size`` × ``size`` pixels: area averages if they shrink, bilinear interpolation otherwise.

        Raises:
            ValueError: if ``size`` is not positive.
        """
        if size < 1:
            raise ValueError(f"{self.name}: cannot resize to {size} pixels; give a size of 1 or more.")
        if self.shape[1:] == (size, size):
            return self
        shrinks = size <= min(self.shape[1:])
        options: dict[str, Any] = {"mode": "area"} if shrinks else {"mode": "bilinear", "align_corners": False}
        return replace(self, inputs=F.interpolate(self.inputs, size=(size, size), **options))

    def split(
        self, valid_fraction: float, generator: torch.Generator, max_valid: int | None = None
    ) -> tuple[LabelledImages, LabelledImages]:
        """Disjoint random parts (train, valid), drawn from ``generator`` alone.

        Args:
            valid_fraction: share of the images that goes to validation, in (0, 1); at least one goes to each part.
            generator: random generator on the CPU.
            max_valid: upper bound on the number of validation images; the other images are for training.

        Raises:
            ValueError: if the fraction is outside (0, 1), ``max_valid`` below 1, or there is only one image.
        """
        train, valid = split_indices(len(self), valid_fraction, generator, max_valid, self.name)
        return self.take(train), self.take(valid)


def _images(x: np.ndarray[Any, Any], name: str) -> Tensor:
    """Images in any accepted layout, as float32 of shape ``(N, C, H, W)``."""
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"{name}: images are {x.dtype}; convert them to uint8 (0 to 255) or to floating point.")
    if x.size == 0:
        raise ValueError(f"{name}: there are no images (shape {x.shape}); give at least one.")
    if x.ndim == 2:
        side = math.isqrt(x.shape[1])
        if side * side != x.shape[1]:
            raise ValueError(
                f"{name}: rows of {x.shape[1]} numbers are not square images; reshape them to (N, C, H, W)."
            )
        x = x.reshape(-1, 1, side, side)
    elif x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] <= _MAX_CHANNELS and x.shape[3] < x.shape[1]:
        x = np.moveaxis(x, 3, 1)
    if x.ndim != 4 or x.shape[1] > _MAX_CHANNELS:
        raise ValueError(
            f"{name}: images have shape {x.shape}; use (N, H, W), (N, C, H, W), (N, H, W, C) or (N, D), "
            f"with 1 to {_MAX_CHANNELS} channels."
        )
    scale = 255.0 if x.dtype == np.uint8 else 1.0
    with np.errstate(over="ignore"):  # an overflow gives an infinite value, which the constructor refuses
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)) / scale


def _labels(y: np.ndarray[Any, Any], name: str) -> Tensor:
    """Labels as int64 of shape ``(N,)``, starting at 0."""
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"{name}: labels are {y.dtype}; use integers, numbered from 0.")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(f"{name}: labels have shape {y.shape}; use (N,), one integer for each image.")
    if y.size == 0:
        raise ValueError(f"{name}: there are no labels; give one integer for each image.")
    low, high = int(y.min()), int(y.max())
    if low != 0:
        raise ValueError(f"{name}: the smallest label is {low}; renumber the labels from 0.")
    if high >= MAX_CLASSES:
        raise ValueError(f"{name}: the largest label is {high}; labels must be below {MAX_CLASSES}.")
    return torch.from_numpy(y.astype(np.int64))
