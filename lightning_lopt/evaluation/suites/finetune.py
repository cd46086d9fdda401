"""The suite ``finetune``: pretrained networks on new tasks with few examples; each problem has 200 to 400 steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.evaluation.suites.sources import VOCABULARY, small_images
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import (
    CharRNNTask,
    CharTransformerTask,
    FineTuneTask,
    ImageAutoencoderTask,
    ImageCNNTask,
    ImageMLPTask,
    ImageViTTask,
    LabelledImages,
    Pretraining,
    TabularTask,
)
from lightning_lopt.tasks.finetune.synthetic_images import draw_images, few_of_each, of_classes
from lightning_lopt.tasks.finetune.teachers import related_table, teacher_table
from lightning_lopt.tasks.tabular import with_noise
from lightning_lopt.tasks.text import resolve_texts

MAX_PRETRAINING = 3000  # largest number of images for pretraining
PRETRAINING_CHARACTERS, NEW_CHARACTERS, VALID_CHARACTERS = 60_000, 4_000, 8_000


def problems(sources: list[LabelledImages]) -> list[Problem]:
    """Five problems on each set of images, two on synthetic images, three on text, one on synthetic tables.

    Networks are pretrained at the first use of a problem. A set of images needs at least four classes.
    """
    on_images = [problem for source in sources for problem in _on_images(small_images(source).standardised())]
    return [*on_images, *_on_synthetic_images(), *_on_text(), _on_tables()]


def _on_images(data: LabelledImages) -> list[Problem]:
    """New classes for three networks, the same classes with changed images, and a classifier from an autoencoder.

    Networks are pretrained on the first three fifths of the classes.
    """
    label, cut = data.name, 3 * data.classes // 5
    pretraining_data = of_classes(data, torch.arange(cut))
    indices = torch.randperm(len(pretraining_data), generator=generator(0, "some"))[:MAX_PRETRAINING]
    pretraining = pretraining_data.take(indices).split(0.1, generator(0, "old"))
    new_classes = of_classes(data, torch.arange(cut, data.classes))
    few = few_of_each(new_classes, 5, generator(0, "few"))

    layers: dict[str, Any] = {"activation": "gelu", "widths": (64, 48)}
    mlp = FineTuneTask(
        ImageMLPTask(*few, **layers, batch_size=8), Pretraining(ImageMLPTask(*pretraining, **layers), 400)
    )
    convs: dict[str, Any] = {"activation": "gelu", "channels": (8, 16), "readout": "flatten"}
    cnn = FineTuneTask(
        ImageCNNTask(*few, **convs, batch_size=8),
        Pretraining(ImageCNNTask(*pretraining, **convs), 300),
        frozen=("convs.0.weight", "convs.0.bias"),
    )
    vit = FineTuneTask(
        ImageViTTask(*few, width=24, batch_size=8), Pretraining(ImageViTTask(*pretraining, width=24), 400), rank=2
    )

    noise = 0.7 * torch.randn(pretraining_data.inputs.shape, generator=generator(0, "noise"))
    inverted = few_of_each(
        replace(pretraining_data, inputs=noise - 0.8 * pretraining_data.inputs), 6, generator(0, "inverted")
    )
    inverted_mlp = FineTuneTask(
        ImageMLPTask(*inverted, **layers, batch_size=16), Pretraining(mlp.pretraining.task, 400)
    )

    shuffled = data.take(torch.randperm(len(data), generator=generator(0, "whole")))
    held_out, unlabelled = (
        shuffled.take(torch.arange(len(shuffled) // 3)),
        shuffled.take(torch.arange(len(shuffled) // 3, len(shuffled))),
    )
    unlabelled = unlabelled.take(torch.arange(min(len(unlabelled), MAX_PRETRAINING)))
    autoencoder = ImageAutoencoderTask(unlabelled, held_out, (64, 32), 12, 0.5, activation="gelu")
    classifier = FineTuneTask(
        ImageMLPTask(*few_of_each(held_out, 4, generator(0, "labels")), (64, 32), "gelu", batch_size=16),
        Pretraining(autoencoder, 800),
        body={f"layers.{i}.{part}": f"encoder.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")},
    )
    return [
        Problem(f"{label}-new-classes-mlp", mlp, 200, "finetune_image", label),
        Problem(f"{label}-frozen-convolution", cnn, 200, "finetune_image", label),
        Problem(f"{label}-adapters-vit", vit, 300, "finetune_image", label),
        Problem(f"{label}-inverted-mlp", inverted_mlp, 200, "finetune_image", label),
        Problem(f"{label}-autoencoder-classifier", classifier, 300, "finetune_image", label),
    ]


def _on_synthetic_images() -> list[Problem]:
    """A convolutional network and a vision transformer; new classes share their parts with the pretraining classes."""
    images = draw_images(generator(0, "finetune"), 24, 5000, size=10, parts=6, noise=0.25)
    pretraining = of_classes(images, torch.arange(18)).split(0.1, generator(0, "old"))
    few = few_of_each(of_classes(images, torch.arange(18, 24)), 5, generator(0, "few"))
    convs: dict[str, Any] = {"activation": "silu", "channels": (10, 20), "readout": "flatten"}
    cnn = FineTuneTask(
        ImageCNNTask(*few, **convs, batch_size=10), Pretraining(ImageCNNTask(*pretraining, **convs), 400, 5e-3)
    )
    tokens: dict[str, Any] = {"grid": 5, "width": 16, "depth": 2}
    vit = FineTuneTask(
        ImageViTTask(*few, **tokens, batch_size=10), Pretraining(ImageViTTask(*pretraining, **tokens), 500, 1e-2)
    )
    return [
        Problem("parts-cnn", cnn, 200, "finetune_image", "synthetic"),
        Problem("parts-vit", vit, 200, "finetune_image", "synthetic"),
    ]


def _on_text() -> list[Problem]:
    """Language models pretrained on the last source of Python's library, and fine-tuned on a part of the first source.

    One model is fine-tuned on reversed text. No rule is meta-trained on the first source, and other suites contain this
    source, too. The text of pretraining is not used for measurements.
    """
    texts = resolve_texts(None)
    pretraining_text, source = texts[-1], texts[0]
    alphabet = pretraining_text.alphabet[:VOCABULARY]
    pretraining_tokens, tokens = pretraining_text.in_alphabet(alphabet), source.in_alphabet(alphabet)
    pretraining_train = pretraining_tokens[:PRETRAINING_CHARACTERS]
    pretraining = pretraining_train, pretraining_tokens[PRETRAINING_CHARACTERS:][:VALID_CHARACTERS]
    forward = tokens[:NEW_CHARACTERS], tokens[-VALID_CHARACTERS:]
    backward = forward[0].flip(0), forward[1].flip(0)
    blocks: dict[str, Any] = {"width": 24, "length": 24}
    cells: dict[str, Any] = {"width": 40, "length": 16}
    transformer = Pretraining(CharTransformerTask(*pretraining, VOCABULARY, **blocks, batch_size=12), 700, 5e-3)
    gru = Pretraining(CharRNNTask(*pretraining, VOCABULARY, **cells, batch_size=12), 700, 1e-2)
    name = source.name
    plain = FineTuneTask(CharTransformerTask(*forward, VOCABULARY, **blocks, batch_size=6), transformer)
    adapters = FineTuneTask(CharTransformerTask(*backward, VOCABULARY, **blocks, batch_size=6), transformer, rank=4)
    forward_gru = CharRNNTask(*forward, VOCABULARY, **cells, batch_size=6)
    recurrent = FineTuneTask(forward_gru, gru, frozen=("embedding.weight",))
    return [
        Problem(f"{name}-transformer-finetune", plain, 300, "finetune_text", name),
        Problem(f"{name}-backwards-adapters", adapters, 300, "finetune_text", name),
        Problem(f"{name}-gru-finetune", recurrent, 200, "finetune_text", name),
    ]


def _on_tables() -> Problem:
    """Classes from a random teacher; the student is pretrained on another teacher with the same hidden layers."""
    widths, draws = (24, 12), generator(0, "finetune", "tables")
    teacher, pretraining_table = teacher_table(draws, (16, *widths, 32), "gelu", 6000)
    train, valid = related_table(teacher, draws, 3, "gelu", 1000 + 60, classify=True).cut(1000)
    body = TabularTask(*pretraining_table.cut(500), widths, "squared", activation="gelu", batch_size=64)
    task = TabularTask(with_noise(train, 0.1, draws), valid, widths, "cross_entropy", activation="gelu", batch_size=16)
    return Problem("students", FineTuneTask(task, Pretraining(body, 1500, 1e-2)), 400, "finetune_student", "synthetic")
