"""Multilayer perceptrons on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.rules.base import Params, Role
from lightning_lopt.tasks._draw import check_sizes, choice
from lightning_lopt.tasks.data import DataLike
from lightning_lopt.tasks.image import ACTIVATIONS, ClassificationTask, ImageFamily, uniform_init
from lightning_lopt.tasks.labelled_images import LabelledImages


class ImageMLPTask(ClassificationTask):
    """A perceptron with parameters ``layers.0.weight`` (out, in), ``layers.0.bias`` (out,) and so on.

    Args:
        train: images to train on.
        valid: held-out images.
        widths: width of each hidden layer; none of them makes logistic regression.
        activation: name in :data:`~lightning_lopt.tasks.image.ACTIVATIONS`.
        batch_size: images in a mini-batch.
        init_scale: factor on the initial weights (biases excepted) of PyTorch's default.
        name: name of the task.
        config: what was drawn for it.
    """

    def __init__(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        widths: Sequence[int],
        activation: str = "relu",
        batch_size: int = 32,
        init_scale: float = 1.0,
        name: str = "image_mlp",
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(train, valid, batch_size, name, config or {})
        self.sizes = (train.features, *widths, train.classes)
        self.activation = ACTIVATIONS[activation]
        self.init_scale = init_scale
        self.layers = len(self.sizes) - 1
        self.roles: dict[str, Role] = {}
        for layer in range(self.layers):
            self.roles[f"layers.{layer}.weight"] = "head" if layer == self.layers - 1 else "matrix"
            self.roles[f"layers.{layer}.bias"] = "vector"

    def init(self, generator: torch.Generator) -> Params:
        params: Params = {}
        for layer, (fan_in, out) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            params[f"layers.{layer}.weight"] = uniform_init((out, fan_in), fan_in, self.init_scale, generator)
            params[f"layers.{layer}.bias"] = uniform_init((out,), fan_in, 1.0, generator)
        return params

    def logits(self, params: Params, inputs: Tensor) -> Tensor:
        x = inputs.flatten(1)
        for layer in range(self.layers):
            x = F.linear(x, params[f"layers.{layer}.weight"], params[f"layers.{layer}.bias"])
            if layer < self.layers - 1:
                x = self.activation(x)
        return x


class ImageMLP(ImageFamily):
    """Perceptrons of different depth, width and activation on (varied) images.

    Args:
        data: where images come from; see :class:`~lightning_lopt.tasks.image.ImageFamily`, also for ``options``.
        depths: numbers of hidden layers to draw from.
        widths: widths to draw from, for each hidden layer anew.
        options: ``activations``, ``batch_sizes``, ``variety``, ``size``, ``valid_fraction``, ``max_valid``.

    Raises:
        ValueError: if a list is empty, an entry is unknown, or data cannot be loaded.
    """

    name = "image_mlp"

    def __init__(
        self,
        data: DataLike | None = None,
        depths: Sequence[int] = (1, 2, 3),
        widths: Sequence[int] = (16, 32, 64, 128),
        **options: Any,
    ) -> None:
        super().__init__(data, **options)
        self.depths = check_sizes(depths, "depths")
        self.widths = check_sizes(widths, "widths")

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "depths": list(self.depths), "widths": list(self.widths)}

    def _build(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        config: dict[str, Any],
        label: str,
        generator: torch.Generator,
    ) -> ImageMLPTask:
        widths = [choice(self.widths, generator) for _ in range(choice(self.depths, generator))]
        config["widths"] = widths
        layers = "-".join(map(str, (train.features, *widths, train.classes)))
        activation, batch_size = config["activation"], config["batch_size"]
        name = f"{self.name}/{label}/{layers}/{activation}/b{batch_size}"
        return ImageMLPTask(train, valid, widths, activation, batch_size, config["init_scale"], name, config)
