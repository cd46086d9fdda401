"""Augmentation: transforms of a task, and of a family task by task."""

from lightning_lopt.tasks.transforms.base import Augmented, Transform, TransformedTask
from lightning_lopt.tasks.transforms.delay import DelayedGradients, DelayedGradientTask
from lightning_lopt.tasks.transforms.gradients import GradientNoise, LowPrecision, LowPrecisionTask, NoisyGradientTask
from lightning_lopt.tasks.transforms.parts import FrozenTask, FrozenTensors, SmallerBatch, SmallerBatchTask
from lightning_lopt.tasks.transforms.registry import AUGMENTATIONS, augment
from lightning_lopt.tasks.transforms.reparametrise import Reparametrise, ReparametrisedTask

__all__ = [
    "AUGMENTATIONS",
    "Augmented",
    "DelayedGradientTask",
    "DelayedGradients",
    "FrozenTask",
    "FrozenTensors",
    "GradientNoise",
    "LowPrecision",
    "LowPrecisionTask",
    "NoisyGradientTask",
    "Reparametrise",
    "ReparametrisedTask",
    "SmallerBatch",
    "SmallerBatchTask",
    "Transform",
    "TransformedTask",
    "augment",
]
