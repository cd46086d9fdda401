"""Augmentation: transforms of single tasks, and of each task of a family."""

from lightning_lopt.tasks.transforms.base import Augmented, Transform, TransformedTask
from lightning_lopt.tasks.transforms.change import ChangingDataTask
from lightning_lopt.tasks.transforms.delay import DelayedGradients, DelayedGradientTask
from lightning_lopt.tasks.transforms.gradients import (
    GradientNoise,
    HeavyTailedGradientTask,
    LowPrecision,
    LowPrecisionTask,
    NoisyGradientTask,
)
from lightning_lopt.tasks.transforms.parts import FrozenTask, FrozenTensors, SmallerBatch, SmallerBatchTask
from lightning_lopt.tasks.transforms.registry import AUGMENTATIONS, augment
from lightning_lopt.tasks.transforms.reparametrise import Reparametrise, ReparametrisedTask
from lightning_lopt.tasks.transforms.start import GivenStartTask

__all__ = [
    "AUGMENTATIONS",
    "Augmented",
    "ChangingDataTask",
    "DelayedGradientTask",
    "DelayedGradients",
    "FrozenTask",
    "FrozenTensors",
    "GivenStartTask",
    "GradientNoise",
    "HeavyTailedGradientTask",
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
