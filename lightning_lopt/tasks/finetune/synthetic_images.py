"""Synthetic images whose classes share their parts, so that features of some classes are useful for other classes."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.tasks.labelled_images import LabelledImages

PART = 5  # pixels along a side of a part
NAME = "parts"


def draw_images(
    generator: torch.Generator,
    classes: int = 20,
    examples: int = 4000,
    size: int = 12,
    parts: int = 12,
    per_class: int = 3,
    noise: float = 0.5,
) -> LabelledImages:
    """Grey images, in which each class has some of a common set of smooth parts, at positions of this class.

    In each image, every part is moved by up to one pixel and has a random contrast of either sign; one more random part
    is at a random position, and pixels have noise. The sign does not depend on the class; a network can learn this only
    from many images.

    Args:
        generator: random generator of all draws.
        classes: number of classes.
        examples: number of images, in the order of classes 0, 1, ..., 0, 1, ...
        size: pixels along a side, > 5.
        parts: number of different parts.
        per_class: number of parts of one class.
        noise: standard deviation of the noise of a pixel.

    Returns:
        standardised images of shape ``(examples, 1, size, size)``.

    Raises:
        ValueError: if ``size`` is too small for a part.
    """
    position_count = size - PART + 1
    if position_count < 2:
        raise ValueError(f"size must be at least {PART + 1} pixels, got {size!r}.")
    shapes = F.avg_pool2d(torch.randn(parts, 1, PART + 2, PART + 2, generator=generator), 3, 1).flatten(1)
    shapes = shapes / shapes.square().mean(1, keepdim=True).sqrt()
    shape_index = torch.stack([torch.randperm(parts, generator=generator)[:per_class] for _ in range(classes)])
    positions = torch.randint(position_count, (classes, per_class, 2), generator=generator)
    targets = torch.arange(examples) % classes
    shape_index = torch.cat([shape_index[targets], torch.randint(parts, (examples, 1), generator=generator)], 1)
    shifted_positions = positions[targets] + torch.randint(-1, 2, (examples, per_class, 2), generator=generator)
    random_positions = torch.randint(position_count, (examples, 1, 2), generator=generator)
    corners = torch.cat([shifted_positions.clamp(0, position_count - 1), random_positions], 1)
    sign = 2 * torch.randint(2, (examples, per_class + 1, 1), generator=generator) - 1
    contrast = sign * (0.6 + 0.8 * torch.rand(examples, per_class + 1, 1, generator=generator))
    pixels = (size * torch.arange(PART)[:, None] + torch.arange(PART)).flatten()
    indices = (size * corners[..., 0] + corners[..., 1])[..., None] + pixels
    images = noise * torch.randn(examples, size * size, generator=generator)
    images = images.scatter_add(1, indices.flatten(1), (contrast * shapes[shape_index]).flatten(1))
    return LabelledImages(images.reshape(-1, 1, size, size), targets, classes, NAME).standardised()


def of_classes(data: LabelledImages, classes: Tensor) -> LabelledImages:
    """The images of some classes, which are renumbered in the given order.

    Args:
        data: the images.
        classes: two or more different classes, int64, shape ``(K,)``.
    """
    new_number = torch.full((data.classes,), -1, dtype=torch.int64)
    new_number[classes] = torch.arange(len(classes))
    selected = data.take(torch.nonzero(new_number[data.targets] >= 0).squeeze(1))
    return replace(selected, targets=new_number[selected.targets], classes=len(classes))


def few_of_each(
    data: LabelledImages, shots: int, generator: torch.Generator, max_valid: int = 512
) -> tuple[LabelledImages, LabelledImages]:
    """A few images of each class to train on, and other images that are held out.

    Args:
        data: the images, at least two of each class.
        shots: training images of each class, >= 1; a class with fewer than twice as many gives half of its images.
        generator: random generator on the CPU.
        max_valid: upper bound on the number of held-out images.

    Returns:
        disjoint parts (train, valid).
    """
    order = torch.randperm(len(data), generator=generator)
    targets = data.targets[order]
    train_parts, other_parts = [], []
    for label in range(data.classes):
        members = order[targets == label]
        count = min(shots, len(members) // 2)
        train_parts.append(members[:count])
        other_parts.append(members[count:])
    held_out = torch.cat(other_parts)
    held_out = held_out[torch.randperm(len(held_out), generator=generator)[:max_valid]]
    return data.take(torch.cat(train_parts)), data.take(held_out)
