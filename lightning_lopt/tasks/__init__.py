"""Inner problems: a model, its loss and its batches, as pure functions."""

from lightning_lopt.tasks.base import Batch, Split, Task, TaskFamily
from lightning_lopt.tasks.data import LabelledImages, from_idx, from_npz, load_digits_data, load_images
from lightning_lopt.tasks.examples import ClassificationTask
from lightning_lopt.tasks.image import ImageFamily
from lightning_lopt.tasks.image_cnn import ImageCNN, ImageCNNTask
from lightning_lopt.tasks.image_mlp import ImageMLP, ImageMLPTask
from lightning_lopt.tasks.mixtures import FAMILIES, MIXTURES, make_families
from lightning_lopt.tasks.quadratic import Quadratic, QuadraticFamily
from lightning_lopt.tasks.variety import Variety

__all__ = [
    "FAMILIES",
    "MIXTURES",
    "Batch",
    "ClassificationTask",
    "ImageCNN",
    "ImageCNNTask",
    "ImageFamily",
    "ImageMLP",
    "ImageMLPTask",
    "LabelledImages",
    "Quadratic",
    "QuadraticFamily",
    "Split",
    "Task",
    "TaskFamily",
    "Variety",
    "from_idx",
    "from_npz",
    "load_digits_data",
    "load_images",
    "make_families",
]
