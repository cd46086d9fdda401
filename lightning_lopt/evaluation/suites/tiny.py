"""The suite ``tiny``: three problems for a first test; one rule takes much less than a minute."""

from __future__ import annotations

from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.evaluation.suites.sources import VOCABULARY, excerpt, halves, small_images
from lightning_lopt.tasks import CharTransformerTask, ImageCNNTask, ImageMLPTask, LabelledImages


def problems(sources: list[LabelledImages]) -> list[Problem]:
    """A perceptron and a convolutional network on images, and a transformer on characters."""
    on_images = []
    for source in sources:
        parts, label = halves(small_images(source)), source.name
        mlp, cnn = ImageMLPTask(*parts, (32,), batch_size=32), ImageCNNTask(*parts, (8, 16), batch_size=16)
        on_images += [
            Problem(f"{label}-mlp-tiny", mlp, 200, "image_mlp", label),
            Problem(f"{label}-cnn-tiny", cnn, 100, "image_cnn", label),
        ]
    name, train, valid = excerpt()
    transformer = CharTransformerTask(train, valid, VOCABULARY, width=16, depth=1, length=16, batch_size=4)
    return [*on_images, Problem(f"{name}-transformer-tiny", transformer, 150, "char_transformer", name)]
