"""Inner problems: a model, its loss and its batches, as pure functions."""

from lightning_lopt.tasks.base import Batch, Split, Task, TaskFamily
from lightning_lopt.tasks.categorical import Categorical, CategoricalTask
from lightning_lopt.tasks.celo import Celo4
from lightning_lopt.tasks.char_lm import CharFamily, CharTask
from lightning_lopt.tasks.char_rnn import CharRNN, CharRNNTask
from lightning_lopt.tasks.char_transformer import CharTransformer, CharTransformerTask
from lightning_lopt.tasks.data import LabelledImages, from_idx, from_npz, load_digits_data, load_images
from lightning_lopt.tasks.examples import ClassificationTask, ExamplesTask, RandomExamplesTask
from lightning_lopt.tasks.finetune import FineTuneImages, FineTuneStudents, FineTuneTask, FineTuneTexts, Pretraining
from lightning_lopt.tasks.fixed import FixedTask
from lightning_lopt.tasks.flow_matching import FlowMatchingTask
from lightning_lopt.tasks.image import ImageFamily
from lightning_lopt.tasks.image_autoencoder import ImageAutoencoder, ImageAutoencoderTask
from lightning_lopt.tasks.image_cnn import ImageCNN, ImageCNNTask
from lightning_lopt.tasks.image_mixer import ImageMixer, ImageMixerTask
from lightning_lopt.tasks.image_mlp import ImageMLP, ImageMLPTask
from lightning_lopt.tasks.image_resnet import ImageResNet, ImageResNetTask
from lightning_lopt.tasks.image_unet import ImageUNetTask
from lightning_lopt.tasks.image_vae import ImageVAE, ImageVAETask
from lightning_lopt.tasks.image_vit import ImageViT, ImageViTTask
from lightning_lopt.tasks.layout import Layout
from lightning_lopt.tasks.least_squares import LeastSquares, LeastSquaresTask
from lightning_lopt.tasks.lightning_task import LightningTask
from lightning_lopt.tasks.mixed_table import MixedTableTask
from lightning_lopt.tasks.mixtures import FAMILIES, MIXTURES, make_families
from lightning_lopt.tasks.model_family import ModelFamily
from lightning_lopt.tasks.policy_gradient import PolicyGradientTask
from lightning_lopt.tasks.quadratic import Quadratic, QuadraticFamily
from lightning_lopt.tasks.tables import Table, load_table
from lightning_lopt.tasks.tabular import TabularClassification, TabularRegression, TabularTask
from lightning_lopt.tasks.task_mixture import TaskMixture
from lightning_lopt.tasks.teacher import Teacher, TeacherTask
from lightning_lopt.tasks.text import Text, load_text
from lightning_lopt.tasks.text_classifier import TextClassifierTask
from lightning_lopt.tasks.transforms import AUGMENTATIONS, Augmented, Transform, augment
from lightning_lopt.tasks.variety import Variety

__all__ = [
    "AUGMENTATIONS",
    "FAMILIES",
    "MIXTURES",
    "Augmented",
    "Batch",
    "Categorical",
    "CategoricalTask",
    "Celo4",
    "CharFamily",
    "CharRNN",
    "CharRNNTask",
    "CharTask",
    "CharTransformer",
    "CharTransformerTask",
    "ClassificationTask",
    "ExamplesTask",
    "FineTuneImages",
    "FineTuneStudents",
    "FineTuneTask",
    "FineTuneTexts",
    "FixedTask",
    "FlowMatchingTask",
    "ImageAutoencoder",
    "ImageAutoencoderTask",
    "ImageCNN",
    "ImageCNNTask",
    "ImageFamily",
    "ImageMLP",
    "ImageMLPTask",
    "ImageMixer",
    "ImageMixerTask",
    "ImageResNet",
    "ImageResNetTask",
    "ImageUNetTask",
    "ImageVAE",
    "ImageVAETask",
    "ImageViT",
    "ImageViTTask",
    "LabelledImages",
    "Layout",
    "LeastSquares",
    "LeastSquaresTask",
    "LightningTask",
    "MixedTableTask",
    "ModelFamily",
    "PolicyGradientTask",
    "Pretraining",
    "Quadratic",
    "QuadraticFamily",
    "RandomExamplesTask",
    "Split",
    "Table",
    "TabularClassification",
    "TabularRegression",
    "TabularTask",
    "Task",
    "TaskFamily",
    "TaskMixture",
    "Teacher",
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
    "make_families",
]
