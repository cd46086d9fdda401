"""The suites ``images`` and ``held_out``; the embedded rule was chosen by their results, which its card reports."""

from __future__ import annotations

from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.evaluation.suites.sources import VOCABULARY, excerpt, halves
from lightning_lopt.tasks import (
    CharRNNTask,
    CharTransformerTask,
    ImageCNNTask,
    ImageMLPTask,
    ImageResNetTask,
    ImageViTTask,
    LabelledImages,
)


def problems(sources: list[LabelledImages]) -> list[Problem]:
    """A perceptron, a convolutional network, a deep perceptron with a bad start, and a long run, for each image set."""
    return [problem for source in sources for problem in (*shallow(source), deep(source), _long(source))]


def held_out(sources: list[LabelledImages]) -> list[Problem]:
    """Architectures and horizons without meta-training of the embedded rules; the text is Python's standard library."""
    return [
        *(problem for source in sources for problem in attention_and_residual(source)),
        *language_models(),
        *(problem for source in sources for problem in (deep(source), _long(source))),
    ]


def shallow(data: LabelledImages) -> list[Problem]:
    """A perceptron and a convolutional network."""
    parts, label = halves(data), data.name
    return [
        Problem(f"{label}-mlp", ImageMLPTask(*parts, (64, 64), batch_size=64), 300, "image_mlp", label),
        Problem(f"{label}-cnn", ImageCNNTask(*parts, (16, 32), batch_size=32), 300, "image_cnn", label),
    ]


def deep(data: LabelledImages) -> Problem:
    """Eight hidden layers with saturating activations and too large initial weights."""
    task = ImageMLPTask(*halves(data), (32,) * 8, "tanh", init_scale=1.5, batch_size=32)
    return Problem(f"{data.name}-deep", task, 500, "image_mlp", data.name)


def _long(data: LabelledImages) -> Problem:
    task = ImageMLPTask(*halves(data), (32,), "gelu", batch_size=32)
    return Problem(f"{data.name}-long", task, 3000, "image_mlp", data.name)


def attention_and_residual(data: LabelledImages) -> list[Problem]:
    """A vision transformer and a residual network with batch normalisation."""
    parts, label = halves(data), data.name
    return [
        Problem(f"{label}-vit", ImageViTTask(*parts, batch_size=64), 300, "image_vit", label),
        Problem(f"{label}-resnet", ImageResNetTask(*parts, (8, 16), batch_size=32), 300, "image_resnet", label),
    ]


def language_models() -> list[Problem]:
    """A recurrent network and a transformer on characters."""
    name, train, valid = excerpt()
    gru = CharRNNTask(train, valid, VOCABULARY, width=48, batch_size=8)
    transformer = CharTransformerTask(train, valid, VOCABULARY, batch_size=8)
    return [
        Problem(f"{name}-gru", gru, 500, "char_rnn", name),
        Problem(f"{name}-transformer", transformer, 500, "char_transformer", name),
    ]
