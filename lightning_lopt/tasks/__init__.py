"""Inner problems: a model, its loss and its batches, as pure functions."""

from lightning_lopt.tasks.base import Batch, Split, Task, TaskFamily
from lightning_lopt.tasks.data import LabelledImages, from_idx, from_npz, load_digits_data, load_images
from lightning_lopt.tasks.fixed import FixedTask
from lightning_lopt.tasks.image import ClassificationTask, ImageFamily
from lightning_lopt.tasks.image_cnn import ImageCNN, ImageCNNTask
from lightning_lopt.tasks.image_mlp import ImageMLP, ImageMLPTask
from lightning_lopt.tasks.lightning_task import LightningTask
from lightning_lopt.tasks.mixtures import FAMILIES, MIXTURES, make_families
from lightning_lopt.tasks.quadratic import Quadratic, QuadraticFamily
from lightning_lopt.tasks.transforms import AUGMENTATIONS, Augmented, Transform, augment
from lightning_lopt.tasks.variety import Variety

__all__ = [
    "AUGMENTATIONS",
    "FAMILIES",
    "MIXTURES",
    "Augmented",
    "Batch",
    "ClassificationTask",
    "FixedTask",
    "ImageCNN",
    "ImageCNNTask",
    "ImageFamily",
    "ImageMLP",
    "ImageMLPTask",
    "LabelledImages",
    "LightningTask",
    "Quadratic",
    "QuadraticFamily",
    "Split",
    "Task",
    "TaskFamily",
    "Transform",
    "Variety",
    "augment",
    "from_idx",
    "from_npz",
    "load_digits_data",
    "load_images",
    "make_families",
]
