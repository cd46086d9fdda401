"""The suite ``gpu``: models of 10 to 30 million parameters on 32×32 images and on text, for a GPU."""

from __future__ import annotations

import torch

from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.evaluation.suites.sources import VOCABULARY, excerpt, halves
from lightning_lopt.tasks import CharTransformerTask, ImageResNetTask, ImageViTTask, LabelledImages

SIDE = 32
EXAMPLES = 10_000  # largest number of images; a whole split is measured at once


def problems(sources: list[LabelledImages]) -> list[Problem]:
    """ViT-S and ResNet-18 on images resized to 32×32, and a character transformer; each run makes its parameters."""
    on_images = []
    for source in sources:
        parts, label = halves(source.take(torch.arange(min(EXAMPLES, len(source)))).resized(SIDE)), source.name
        vit = ImageViTTask(*parts, grid=8, width=384, depth=12, heads=6, expansion=4, batch_size=128)
        resnet = ImageResNetTask(*parts, (64, 128, 256, 512), blocks=2, batch_size=128)
        on_images += [
            Problem(f"{label}-vit-s", vit, 1000, "image_vit", label),
            Problem(f"{label}-resnet-18", resnet, 1000, "image_resnet", label),
        ]
    name, train, valid = excerpt()
    transformer = CharTransformerTask(
        train, valid, VOCABULARY, width=384, depth=6, heads=6, expansion=4, length=256, batch_size=32
    )
    return [*on_images, Problem(f"{name}-transformer-10m", transformer, 1000, "char_transformer", name)]
