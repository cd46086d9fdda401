"""The suites ``images`` and ``held_out``, on which the embedded rule was chosen and which its card reports."""

from __future__ import annotations

from lightning_lopt.evaluation.problem import Problem
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


def images(sources: list[LabelledImages]) -> list[Problem]:
    """A perceptron, a convolutional network, a deep perceptron that starts badly, and a long run, on given images."""
    return [problem for source in sources for problem in (*_short(source), *_deep_and_long(source))]


def held_out(sources: list[LabelledImages]) -> list[Problem]:
    """Architectures and horizons that the embedded rules were not meta-trained on; text is the standard library's."""
    seen = [(*attention_and_residual(source), *_deep_and_long(source)) for source in sources]
    first, *others = seen
    return [*first[:2], *language_models(), *first[2:], *(problem for some in others for problem in some)]


def _short(data: LabelledImages) -> list[Problem]:
    parts, label = halves(data), data.name
    return [
        Problem(f"{label}-mlp", ImageMLPTask(*parts, (64, 64), batch_size=64), 300, "image_mlp", label),
        Problem(f"{label}-cnn", ImageCNNTask(*parts, (16, 32), batch_size=32), 300, "image_cnn", label),
    ]


def _deep_and_long(data: LabelledImages) -> list[Problem]:
    parts, label = halves(data), data.name
    deep = ImageMLPTask(*parts, (32,) * 8, "tanh", init_scale=1.5, batch_size=32)
    long = ImageMLPTask(*parts, (32,), "gelu", batch_size=32)
    return [
        Problem(f"{label}-deep", deep, 500, "image_mlp", label),
        Problem(f"{label}-long", long, 3000, "image_mlp", label),
    ]


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
