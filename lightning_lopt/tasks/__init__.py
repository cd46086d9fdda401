"""Inner problems: a model, its loss and its batches, as pure functions."""

from lightning_lopt.tasks import mixtures
from lightning_lopt.tasks.base import Batch, Split, Task, TaskFamily
from lightning_lopt.tasks.categorical import CategoricalTask
from lightning_lopt.tasks.char_lm import CharFamily, CharTask
from lightning_lopt.tasks.char_rnn import CharRNNTask
from lightning_lopt.tasks.char_transformer import CharTransformerTask
from lightning_lopt.tasks.data import LabelledImages, from_idx, from_npz, load_digits_data, load_images
from lightning_lopt.tasks.examples import ClassificationTask, ExamplesTask, RandomExamplesTask
from lightning_lopt.tasks.finetune import FineTuneTask, Pretraining
from lightning_lopt.tasks.fixed import FixedTask
from lightning_lopt.tasks.flow_matching import FlowMatchingTask
from lightning_lopt.tasks.image import ImageFamily
from lightning_lopt.tasks.image_autoencoder import ImageAutoencoderTask
from lightning_lopt.tasks.image_cnn import ImageCNNTask
from lightning_lopt.tasks.image_mixer import ImageMixerTask
from lightning_lopt.tasks.image_mlp import ImageMLPTask
from lightning_lopt.tasks.image_resnet import ImageResNetTask
from lightning_lopt.tasks.image_unet import ImageUNetTask
from lightning_lopt.tasks.image_vae import ImageVAETask
from lightning_lopt.tasks.image_vit import ImageViTTask
from lightning_lopt.tasks.layout import Layout
from lightning_lopt.tasks.least_squares import LeastSquaresTask
from lightning_lopt.tasks.lightning_task import LightningTask
from lightning_lopt.tasks.mixed_table import MixedTableTask
from lightning_lopt.tasks.mixtures import *  # noqa: F403
from lightning_lopt.tasks.model_family import ModelFamily
from lightning_lopt.tasks.policy_gradient import PolicyGradientTask
from lightning_lopt.tasks.quadratic import Quadratic
from lightning_lopt.tasks.tables import Table, load_table
from lightning_lopt.tasks.tabular import TabularTask
from lightning_lopt.tasks.task_mixture import TaskMixture
from lightning_lopt.tasks.teacher import TeacherTask
from lightning_lopt.tasks.text import Text, load_text
from lightning_lopt.tasks.text_classifier import TextClassifierTask
from lightning_lopt.tasks.transforms import AUGMENTATIONS, Augmented, Transform, augment
from lightning_lopt.tasks.variety import Variety

__all__ = [
    "AUGMENTATIONS",
    "Augmented",
    "Batch",
    "CategoricalTask",
    "CharFamily",
    "CharRNNTask",
    "CharTask",
    "CharTransformerTask",
    "ClassificationTask",
    "ExamplesTask",
    "FineTuneTask",
    "FixedTask",
    "FlowMatchingTask",
    "ImageAutoencoderTask",
    "ImageCNNTask",
    "ImageFamily",
    "ImageMLPTask",
    "ImageMixerTask",
    "ImageResNetTask",
    "ImageUNetTask",
    "ImageVAETask",
    "ImageViTTask",
    "LabelledImages",
    "Layout",
    "LeastSquaresTask",
    "LightningTask",
    "MixedTableTask",
    "ModelFamily",
    "PolicyGradientTask",
    "Pretraining",
    "Quadratic",
    "RandomExamplesTask",
    "Split",
    "Table",
    "TabularTask",
    "Task",
    "TaskFamily",
    "TaskMixture",
    "TeacherTask",
    "Text",
    "TextClassifierTask",
    "Transform",
    "Variety",
    "augment",
    "from_idx",
    "from_npz",
    "load_digits_data",
    "load_images",
    "load_table",
    "load_text",
]
__all__ += mixtures.__all__
