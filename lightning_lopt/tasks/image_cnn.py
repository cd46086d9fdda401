"""Small convolutional networks on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.checks import check_name_options, check_size_options
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.data import DataLike
from lightning_lopt.tasks.examples import ClassificationTask
from lightning_lopt.tasks.image import ImageFamily
from lightning_lopt.tasks.labelled_images import LabelledImages
from lightning_lopt.tasks.layers import ACTIVATIONS, linear
from lightning_lopt.tasks.layout import Layout

DOWNSAMPLINGS = ("stride", "max", "mean")
READOUTS = ("mean", "flatten")


class ImageCNNTask(ClassificationTask):
    """3×3 convolutions with parameters ``convs.0.weight`` (out, in, 3, 3), ``convs.0.bias`` and so on, then a linear
    ``head.weight`` and ``head.bias``. Each convolution halves the image, rounding up, while both sides have at
    least 4 pixels.

    Args:
        train: images to train on.
        valid: held-out images.
        channels: output channels of each convolution, at least one.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        downsampling: how images shrink: ``"stride"`` of the convolution, ``"max"`` or ``"mean"`` over 2×2 pixels.
        readout: input of the head: the ``"mean"`` over the image, or all of its pixels (``"flatten"``).
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights, not on biases.
        options: ``batch_size``, ``name``, ``config``.

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10)
        >>> train, valid = images.split(0.2, torch.Generator().manual_seed(0))
        >>> task = ImageCNNTask(train, valid, channels=(4, 8), batch_size=16)
        >>> {name: tuple(value.shape) for name, value in task.init(torch.Generator()).items() if "weight" in name}
        {'convs.0.weight': (4, 1, 3, 3), 'convs.1.weight': (8, 4, 3, 3), 'head.weight': (10, 8)}
    """

    def __init__(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        channels: Sequence[int],
        activation: str = "relu",
        downsampling: str = "max",
        readout: str = "mean",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        depth, height, width = train.shape
        layout = Layout(scheme, init_scale)
        self.halves: list[bool] = []
        for layer, (fan_in, out) in enumerate(zip((depth, *channels[:-1]), channels, strict=True)):
            layout.conv(f"convs.{layer}", fan_in, out)
            self.halves.append(min(height, width) >= 4)
            if self.halves[-1]:
                height, width = (height + 1) // 2, (width + 1) // 2
        features = channels[-1] * (height * width if readout == "flatten" else 1)
        layout.linear("head", features, train.classes, role="head")
        super().__init__(train, valid, layout, **options)
        self.activation = ACTIVATIONS[activation]
        self.downsampling = downsampling
        self.readout = readout

    def logits(self, params: Params, inputs: Tensor) -> Tensor:
        # Plain conv2d is the fastest form, since vmap turns it into one grouped convolution. Time in ms, forward and
        # backward under vmap (PyTorch 2.13, one thread of an x86 server CPU, two layers of 16 and 32 channels, batches
        # of 32):
        #
        #   particles, images   conv2d   F.unfold + matmul   channels-last im2col + matmul   Python loop
        #   16, 8x8                 19                  30                              20            32
        #   64, 8x8                 70                 109                              75
        #   16, 16x16x3             67                 135                             101
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
        return linear(params, "head", x)


class ImageCNN(ImageFamily):
    """Convolutional networks of different depth, width and layers on (varied) images.

    Args:
        data: sources of images; see :class:`~lightning_lopt.tasks.image.ImageFamily`, also for ``options``.
        depths: numbers of convolutions to draw from.
        channels: channels to draw from, separately for each convolution.
        downsamplings: some of :data:`DOWNSAMPLINGS`.
        readouts: some of :data:`READOUTS`.

    Raises:
        ValueError: if a list is empty, an entry is unknown, or data cannot be loaded.

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10, "mine")
        >>> family = ImageCNN(images, channels=(4, 8), variety=False)
        >>> family.sample(torch.Generator().manual_seed(0)).name
        'image_cnn/mine/c8-stride-flatten-10/silu/b64'
    """

    name = "image_cnn"
    layers = ("convolutions",)
    task_class = ImageCNNTask

    def __init__(
        self,
        data: DataLike | None = None,
        depths: Sequence[int] = (1, 2, 3),
        channels: Sequence[int] = (8, 16, 32),
        downsamplings: Sequence[str] = DOWNSAMPLINGS,
        readouts: Sequence[str] = READOUTS,
        **options: Any,
    ) -> None:
        super().__init__(data, **{"schemes": ("uniform",), "init_scales": (0.5, 2.0), **options})
        self.ranges |= {
            "depths": check_size_options(depths, "depths"),
            "channels": check_size_options(channels, "channels"),
            "downsamplings": check_name_options(downsamplings, "downsamplings", DOWNSAMPLINGS),
            "readouts": check_name_options(readouts, "readouts", READOUTS),
        }

    def _draw(self, train: LabelledImages, generator: torch.Generator) -> tuple[dict[str, Any], str]:
        channels = [self.pick("channels", generator) for _ in range(self.pick("depths", generator))]
        downsampling, readout = self.pick("downsamplings", generator), self.pick("readouts", generator)
        shape = "-".join([*(f"c{count}" for count in channels), downsampling, readout, str(train.classes)])
        return {"channels": channels, "downsampling": downsampling, "readout": readout}, shape
