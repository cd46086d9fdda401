"""Every family at a small size, with what generic tests need to know about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lightning_lopt.seeding import generator
from lightning_lopt.tasks import (
    Categorical,
    Celo4,
    CharRNN,
    CharTransformer,
    FineTuneImages,
    FineTuneStudents,
    FineTuneTexts,
    ImageAutoencoder,
    ImageCNN,
    ImageMixer,
    ImageMLP,
    ImageResNet,
    ImageVAE,
    ImageViT,
    LabelledImages,
    LeastSquares,
    QuadraticFamily,
    TabularClassification,
    TabularRegression,
    TaskFamily,
    Teacher,
    Text,
)


def words(count: int = 1200, seed: int = 0) -> Text:
    """A text of random words, whose next character can be told to some degree."""
    vocabulary = ("import", "return", "lambda", "yield", "while", "class", "Self", "x1", "(y)", "==\n")
    drawn = torch.randint(len(vocabulary), (count,), generator=generator(seed, "words"))
    return Text.from_string(" ".join(vocabulary[index] for index in drawn), f"words{seed}")


@dataclass(frozen=True)
class Entry:
    """One family.

    Attributes:
        build: the family, given small images.
        at_init: the loss of a fresh model is at most this times the task's ``loss_scale``, and at least half of it.
        examples: key of a batch whose rows are single examples, for families with a fixed set of them.
        lr: learning rate of Adam that lowers the loss within 60 steps.
        still: ending of names of tensors whose gradient may be zero at first.
    """

    build: Callable[[LabelledImages], TaskFamily]
    at_init: float = 2.0
    examples: str | None = "inputs"
    lr: float = 0.02
    still: str | None = None


SMALL = {"batch_sizes": (8, 16)}
TEXT = {"lengths": (6, 10), "batch_sizes": (3, 6), "excerpts": (2000, 4000), "vocabularies": (12, 40)}

CATALOGUE: dict[str, Entry] = {
    "image_mlp": Entry(lambda images: ImageMLP(images, widths=(8, 16), **SMALL), 3.0),
    "image_mlp_plain": Entry(lambda images: ImageMLP(images, widths=(8, 16), variety=False, **SMALL)),
    "image_cnn": Entry(lambda images: ImageCNN(images, channels=(4, 8), **SMALL), 3.0),
    "image_cnn_plain": Entry(lambda images: ImageCNN(images, channels=(4, 8), variety=False, **SMALL)),
    "image_resnet": Entry(lambda images: ImageResNet(images, widths=(4,), **SMALL)),
    "image_vit": Entry(lambda images: ImageViT(images, widths=(8, 16), **SMALL), 2.5),
    "image_mixer": Entry(lambda images: ImageMixer(images, widths=(8, 16), **SMALL), 2.5),
    "image_autoencoder": Entry(lambda images: ImageAutoencoder(images, widths=(8, 16), codes=(4,), **SMALL)),
    "image_vae": Entry(lambda images: ImageVAE(images, widths=(8, 16), codes=(2, 4), **SMALL), 4.0),
    "celo4": Entry(Celo4),
    "char_rnn": Entry(lambda images: CharRNN(words(), embeddings=(4,), widths=(8, 12), **TEXT), examples=None),
    "char_transformer": Entry(lambda images: CharTransformer(words(), widths=(8, 12), **TEXT), examples=None),
    "tabular_classification": Entry(lambda images: TabularClassification(widths=(8, 16), **SMALL)),
    "tabular_regression": Entry(lambda images: TabularRegression(widths=(8, 16), **SMALL), 4.0),
    "categorical": Entry(lambda images: Categorical(widths=(8, 16), **SMALL), examples=None),
    "teacher": Entry(lambda images: Teacher(widths=(4, 8), examples=(500, 1000), **SMALL), 4.0),
    "least_squares": Entry(lambda images: LeastSquares(dims=(4, 8), **SMALL), 4.0),
    "finetune_image": Entry(
        lambda images: FineTuneImages(images, widths=(8, 12), steps=30, bodies=4), 4.0, still=".lora_a"
    ),
    "finetune_text": Entry(
        lambda images: FineTuneTexts(
            words(2400), widths=(8, 12), lengths=(6, 10), vocabularies=(12, 40), characters=(1000, 2000), steps=30
        ),
        examples=None,
        still=".lora_a",
    ),
    "finetune_student": Entry(
        lambda images: FineTuneStudents(widths=(8, 12), dims=(4, 6), steps=30), 4.0, still=".lora_a"
    ),
    "quadratic": Entry(lambda images: QuadraticFamily(), examples=None),
}
