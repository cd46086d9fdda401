"""Small convolutional networks on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.rules.base import Params, Role
from lightning_lopt.tasks._draw import check_names, check_sizes, choice
from lightning_lopt.tasks.data import DataLike
from lightning_lopt.tasks.image import ACTIVATIONS, ClassificationTask, ImageFamily, uniform_init
from lightning_lopt.tasks.labelled_images import LabelledImages

DOWNSAMPLINGS = ("stride", "max", "mean")
READOUTS = ("mean", "flatten")


class ImageCNNTask(ClassificationTask):
    """3×3 convolutions with parameters ``convs.0.weight`` (out, in, 3, 3), ``convs.0.bias`` and so on, then a linear
    ``head.weight`` and ``head.bias``. Each convolution halves the image, rounding up, as long as it is 4 pixels wide.

    Args:
        train: images to train on.
        valid: held-out images.
        channels: output channels of each convolution, at least one.
        activation: name in :data:`~lightning_lopt.tasks.image.ACTIVATIONS`.
        downsampling: how images shrink: ``"stride"`` of the convolution, ``"max"`` or ``"mean"`` over 2×2 pixels.
        readout: what the head reads: ``"mean"`` over the image, or all of it (``"flatten"``).
        batch_size: images in a mini-batch.
        init_scale: factor on the initial weights (biases excepted) of PyTorch's default.
        name: name of the task.
        config: what was drawn for it.
    """

    def __init__(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        channels: Sequence[int],
        activation: str = "relu",
        downsampling: str = "max",
        readout: str = "mean",
        batch_size: int = 32,
        init_scale: float = 1.0,
        name: str = "image_cnn",
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(train, valid, batch_size, name, config or {})
        depth, height, width = train.shape
        self.channels = (depth, *channels)
        self.activation = ACTIVATIONS[activation]
        self.downsampling = downsampling
        self.readout = readout
        self.init_scale = init_scale
        self.halves: list[bool] = []
        for _ in channels:
            self.halves.append(min(height, width) >= 4)
            if self.halves[-1]:
                height, width = (height + 1) // 2, (width + 1) // 2
        self.features = self.channels[-1] * (height * width if readout == "flatten" else 1)
        self.roles: dict[str, Role] = {}
        for layer in range(len(channels)):
            self.roles |= {f"convs.{layer}.weight": "matrix", f"convs.{layer}.bias": "vector"}
        self.roles |= {"head.weight": "head", "head.bias": "vector"}

    def init(self, generator: torch.Generator) -> Params:
        params: Params = {}
        for layer, (fan_in, out) in enumerate(zip(self.channels[:-1], self.channels[1:], strict=True)):
            shape = (out, fan_in, 3, 3)
            params[f"convs.{layer}.weight"] = uniform_init(shape, 9 * fan_in, self.init_scale, generator)
            params[f"convs.{layer}.bias"] = uniform_init((out,), 9 * fan_in, 1.0, generator)
        shape_head = (self.classes, self.features)
        params["head.weight"] = uniform_init(shape_head, self.features, self.init_scale, generator)
        params["head.bias"] = uniform_init((self.classes,), self.features, 1.0, generator)
        return params

    def logits(self, params: Params, inputs: Tensor) -> Tensor:
        # Plain conv2d, which vmap turns into one grouped convolution: measured forward and backward under vmap (PyTorch
        # 2.13, one thread of an x86 server CPU, two layers of 16 and 32 channels, batches of 32) it is the fastest of
        # three forms. 16 particles, 8x8: conv2d 19 ms, F.unfold + matmul 30, channels-last im2col + matmul 20;
        # 64 particles, 8x8: 70, 109, 75; 16 particles, 16x16x3: 67, 135, 101; a Python loop over the first: 32.
        x = inputs
        for layer, halve in enumerate(self.halves):
            stride = 2 if halve and self.downsampling == "stride" else 1
            x = F.conv2d(x, params[f"convs.{layer}.weight"], params[f"convs.{layer}.bias"], stride, padding=1)
            x = self.activation(x)
            if halve and self.downsampling == "max":
                x = F.max_pool2d(x, 2, ceil_mode=True)
            elif halve and self.downsampling == "mean":
                x = F.avg_pool2d(x, 2, ceil_mode=True)
        x = x.mean((2, 3)) if self.readout == "mean" else x.flatten(1)
        return F.linear(x, params["head.weight"], params["head.bias"])


class ImageCNN(ImageFamily):
    """Convolutional networks of different depth, width and make on (varied) images.

    Args:
        data: where images come from; see :class:`~lightning_lopt.tasks.image.ImageFamily`, also for ``options``.
        depths: numbers of convolutions to draw from.
        channels: channels to draw from, for each convolution anew.
        downsamplings: some of :data:`DOWNSAMPLINGS`.
        readouts: some of :data:`READOUTS`.
        options: ``activations``, ``batch_sizes``, ``variety``, ``size``, ``valid_fraction``, ``max_valid``.

    Raises:
        ValueError: if a list is empty, an entry is unknown, or data cannot be loaded.
    """

    name = "image_cnn"

    def __init__(
        self,
        data: DataLike | None = None,
        depths: Sequence[int] = (1, 2, 3),
        channels: Sequence[int] = (8, 16, 32),
        downsamplings: Sequence[str] = DOWNSAMPLINGS,
        readouts: Sequence[str] = READOUTS,
        **options: Any,
    ) -> None:
        super().__init__(data, **{"batch_sizes": (16, 32, 64), **options})
        self.depths = check_sizes(depths, "depths")
        self.channels = check_sizes(channels, "channels")
        self.downsamplings = check_names(downsamplings, "downsamplings", DOWNSAMPLINGS)
        self.readouts = check_names(readouts, "readouts", READOUTS)

    @property
    def config(self) -> dict[str, Any]:
        lists = {"depths": self.depths, "channels": self.channels, "readouts": self.readouts}
        lists |= {"downsamplings": self.downsamplings}
        return super().config | {key: list(values) for key, values in lists.items()}

    def _build(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        config: dict[str, Any],
        label: str,
        generator: torch.Generator,
    ) -> ImageCNNTask:
        channels = [choice(self.channels, generator) for _ in range(choice(self.depths, generator))]
        downsampling, readout = choice(self.downsamplings, generator), choice(self.readouts, generator)
        config |= {"channels": channels, "downsampling": downsampling, "readout": readout}
        layers = "-".join([*(f"c{count}" for count in channels), readout, str(train.classes)])
        activation, batch_size = config["activation"], config["batch_size"]
        name = f"{self.name}/{label}/{layers}/{activation}-{downsampling}/b{batch_size}"
        return ImageCNNTask(
            train, valid, channels, activation, downsampling, readout, batch_size, config["init_scale"], name, config
        )
