"""Multilayer perceptrons on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.checks import check_size_options
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.accelerations import computes
from lightning_lopt.tasks.data import DataLike
from lightning_lopt.tasks.examples import ClassificationTask
from lightning_lopt.tasks.image import ImageFamily
from lightning_lopt.tasks.labelled_images import LabelledImages
from lightning_lopt.tasks.layers import ACTIVATIONS, mlp
from lightning_lopt.tasks.layout import Layout


@computes(lambda task: (task.layers, task.activation, task.batch_size, tuple(task.roles.items())))
class ImageMLPTask(ClassificationTask):
    """A perceptron with parameters ``layers.0.weight`` (out, in), ``layers.0.bias`` (out,) and so on.

    Args:
        train: images to train on.
        valid: held-out images.
        widths: width of each hidden layer; an empty sequence makes logistic regression.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights, not on biases.
        options: ``batch_size``, ``name``, ``config``.

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10)
        >>> train, valid = images.split(0.2, torch.Generator().manual_seed(0))
        >>> task = ImageMLPTask(train, valid, widths=(16,), batch_size=16)
        >>> params, batch = task.init(torch.Generator()), task.batch(torch.Generator())
        >>> tuple(batch["inputs"].shape), task.loss(params, batch).ndim, sorted(task.metrics(params, batch))
        ((16, 1, 8, 8), 0, ['accuracy'])
    """

    def __init__(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        widths: Sequence[int],
        activation: str = "relu",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        layout = Layout(scheme, init_scale)
        layout.mlp((train.features, *widths, train.classes))
        super().__init__(train, valid, layout, **options)
        self.layers = len(widths) + 1
        self.activation = ACTIVATIONS[activation]

    def logits(self, params: Params, inputs: Tensor) -> Tensor:
        return mlp(params, "layers", inputs.flatten(1), self.layers, self.activation)


class ImageMLP(ImageFamily):
    """Perceptrons of different depth, width and activation on (varied) images.

    Args:
        data: sources of images; see :class:`~lightning_lopt.tasks.image.ImageFamily`, also for ``options``.
        depths: numbers of hidden layers to draw from.
        widths: widths to draw from, separately for each hidden layer.

    Raises:
        ValueError: if a list is empty, an entry is unknown, or data cannot be loaded.

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10, "mine")
        >>> family = ImageMLP(images, depths=(2,), widths=(8, 16), variety=False)
        >>> task = family.sample(torch.Generator().manual_seed(0))
        >>> task.name, task.config["widths"]
        ('image_mlp/mine/64-16-16-10/silu/b128', [16, 16])
    """

    name = "image_mlp"
    task_class = ImageMLPTask

    def __init__(
        self,
        data: DataLike | None = None,
        depths: Sequence[int] = (1, 2, 3),
        widths: Sequence[int] = (16, 32, 64, 128),
        **options: Any,
    ) -> None:
        super().__init__(
            data,
            **{"schemes": ("uniform",), "init_scales": (0.5, 2.0), "batch_sizes": (16, 32, 64, 128, 512), **options},
        )
        self.ranges |= {"depths": check_size_options(depths, "depths"), "widths": check_size_options(widths, "widths")}

    def _draw(self, train: LabelledImages, generator: torch.Generator) -> tuple[dict[str, Any], str]:
        widths = [self.pick("widths", generator) for _ in range(self.pick("depths", generator))]
        return {"widths": widths}, "-".join(map(str, (train.features, *widths, train.classes)))
