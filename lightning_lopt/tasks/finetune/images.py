"""Fine-tuning on images: new classes, changed images, and classifiers with the body of an autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from lightning_lopt.checks import check_name_options, check_size_options
from lightning_lopt.tasks._draw import chance, choice, integer, log_uniform, uniform
from lightning_lopt.tasks.base import Task
from lightning_lopt.tasks.data import DataLike, load_digits_data, resolve
from lightning_lopt.tasks.finetune.family import Body, FineTuneFamily
from lightning_lopt.tasks.finetune.pretraining import Pretraining
from lightning_lopt.tasks.finetune.synthetic_images import NAME, draw_images, few_of_each, of_classes
from lightning_lopt.tasks.image_autoencoder import ImageAutoencoderTask
from lightning_lopt.tasks.image_cnn import ImageCNNTask
from lightning_lopt.tasks.image_mlp import ImageMLPTask
from lightning_lopt.tasks.image_vit import ImageViTTask
from lightning_lopt.tasks.labelled_images import LabelledImages

NETWORKS: dict[str, Callable[..., Task]] = {
    "mlp": ImageMLPTask,
    "cnn": ImageCNNTask,
    "vit": ImageViTTask,
    "autoencoder": ImageMLPTask,
}
"""Names of classifiers; the body of ``"autoencoder"`` is the encoder of a denoising autoencoder."""

MAX_SIDE = 16
MAX_OLD = 5000  # images for pretraining


class FineTuneImages(FineTuneFamily[tuple[LabelledImages, LabelledImages]]):
    """Image classifiers with a pretrained body and a new head.

    A network is pretrained on about half of the classes. A new task has a few images of each of the *other* classes, or
    of the *same* classes with another contrast, with noise and, in some tasks, with the opposite sign.

    Args:
        data: one or several sources of images with at least four classes each; ``None`` means the handwritten digits
            and synthetic images, in equal parts.
        networks: some of :data:`NETWORKS` to draw from.
        shots: smallest and largest number of training images of a class, drawn log-uniformly.
        widths: widths of layers to draw from.
        max_valid: upper bound on the number of held-out images.
        options: see :class:`~lightning_lopt.tasks.finetune.family.FineTuneFamily`.

    Raises:
        ValueError: if a list is empty, an entry is unknown, or data have too few classes or cannot be loaded.
        ImportError: if ``data`` is ``None`` and scikit-learn is not installed.

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(200, 8, 8), torch.arange(200) % 10, "mine")
        >>> family = FineTuneImages(images, networks=("mlp",), widths=(8,), shots=(2, 4), bodies=1, steps=5)
        >>> task = family.sample(torch.Generator().manual_seed(0))  # bodies=8 and steps=400 by default
        >>> task.head  # drawn in each run; the body starts at pretrained values
        ('layers.2.weight', 'layers.2.bias')
    """

    name = "finetune_image"

    def __init__(
        self,
        data: DataLike | None = None,
        networks: Sequence[str] = tuple(NETWORKS),
        shots: tuple[int, int] = (2, 16),
        widths: Sequence[int] = (16, 24, 32),
        *,
        max_valid: int = 512,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.ranges |= {
            "networks": check_name_options(networks, "networks", tuple(NETWORKS)),
            "shots": check_size_options(shots, "shots"),
            "widths": check_size_options(widths, "widths"),
        }
        self.max_valid = max_valid
        self.sources: list[LabelledImages | None] = []  # None: synthetic images, drawn for each network
        for source in [load_digits_data(), None] if data is None else resolve(data):
            if source is not None and source.classes < 4:
                raise ValueError(f"{source.name}: {source.classes} classes; give images of at least four classes.")
            if source is not None and max(source.shape[1:]) > MAX_SIDE:
                source = source.resized(MAX_SIDE)
            self.sources.append(None if source is None else source.standardised())

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"data": [NAME if source is None else source.name for source in self.sources]}

    def _draw_body(self, generator: torch.Generator, number: int) -> Body[tuple[LabelledImages, LabelledImages]]:
        drawn_source = choice(self.sources, generator)
        source = draw_images(generator, parts=8, noise=0.3) if drawn_source is None else drawn_source
        network_name = self.pick("networks", generator)
        settings = self.draw_architecture(generator) | self._architecture(network_name, generator)
        order = torch.randperm(source.classes, generator=generator)
        half = (source.classes + 1) // 2
        old_classes, new_classes = of_classes(source, order[:half]), of_classes(source, order[half:])
        train, valid = old_classes.split(0.1, generator, self.max_valid)
        train = train.take(torch.arange(min(len(train), MAX_OLD)))
        names = None
        if network_name == "autoencoder":
            code = {"code": settings["widths"][-1] // 2, "corruption": 0.5}
            task: Task = ImageAutoencoderTask(train, valid, **settings, **code, name=f"{source.name}-old")
            layers = range(len(settings["widths"]))
            names = {f"layers.{i}.{part}": f"encoder.{i}.{part}" for i in layers for part in ("weight", "bias")}
        else:
            task = NETWORKS[network_name](train, valid, **settings, name=f"{source.name}-old")
        config = {
            "data": source.name,
            "network": network_name,
            "number": number,
            "old": order[:half].tolist(),
        } | settings
        pretraining = Pretraining(task, self.steps, seed=number)
        return Body(
            pretraining, settings, (old_classes, new_classes), f"{source.name}-{network_name}{number}", names, config
        )

    def _architecture(self, network_name: str, generator: torch.Generator) -> dict[str, Any]:
        widths = [self.pick("widths", generator) for _ in range(integer(1, 3, generator))]
        if network_name == "cnn":
            return {"channels": [max(width // 2, 4) for width in widths], "readout": "flatten"}
        if network_name == "vit":
            return {"grid": 3, "width": widths[0], "depth": len(widths)}
        return {"widths": [2 * width for width in widths]}

    def _draw_task(
        self, body: Body[tuple[LabelledImages, LabelledImages]], batch_size: int, generator: torch.Generator
    ) -> Task:
        old_classes, new_classes = body.source
        keeps_classes = chance(0.3, generator)
        data = old_classes if keeps_classes else new_classes
        shots = self.between("shots", generator)
        change: dict[str, Any] = {"classes": "old" if keeps_classes else "new", "shots": shots}
        if keeps_classes:
            change |= {
                "contrast": round(log_uniform(0.5, 2.0, generator) * choice((-1, 1), generator), 3),
                "shift": round(uniform(-0.5, 0.5, generator), 3),
                "noise": round(uniform(0.1, 0.7, generator), 3),
            }
            noise = change["noise"] * torch.randn(data.inputs.shape, generator=generator)
            data = replace(data, inputs=change["contrast"] * data.inputs + change["shift"] + noise)
        train, valid = few_of_each(data, shots, generator, self.max_valid)
        name = self.new_task_name(body, batch_size, generator)
        config = {"family": self.name, "batch_size": batch_size, "new": change} | body.config
        network = NETWORKS[body.config["network"]]
        return network(train, valid, **body.settings, batch_size=batch_size, name=name, config=config)
