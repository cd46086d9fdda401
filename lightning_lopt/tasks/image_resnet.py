"""Residual convolutional networks with batch or group normalisation on images."""

from __future__ import annotations

import math
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
from lightning_lopt.tasks.layers import ACTIVATIONS, batch_norm, group_norm, linear
from lightning_lopt.tasks.layout import Layout

NORMS = ("batch", "group")
MIN_HALVED_SIDE = 12
"""Smallest length in pixels of the shorter side at which the first convolution halves the image."""


class ImageResNetTask(ClassificationTask):
    r"""A residual network: a 3×3 convolution ``stem``, stages of blocks, the mean over the image, a linear ``head``.

    .. math:: x \leftarrow \phi\big(\text{shortcut}(x) + \text{norm}(W_2 * \phi(\text{norm}(W_1 * x)))\big)

    The first block of every stage except the first stage halves the image, rounding up. The shortcut of a block that
    changes size or channels is a 1×1 convolution ``blocks.i.shortcut.weight``; other shortcuts are the identity.
    Convolutions have no biases. Batch normalisation uses the statistics of the given batch, also for measuring.

    Args:
        train: images to train on.
        valid: held-out images.
        channels: channels of each stage, at least one stage.
        blocks: blocks in each stage.
        norm: ``"batch"`` or ``"group"`` (4 groups, or fewer if 4 does not divide the channels).
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights, not on biases.
        options: ``batch_size``, ``name``, ``config``.

    References: He et al. 2015, https://arxiv.org/abs/1512.03385; Wu and He 2018, https://arxiv.org/abs/1803.08494

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10)
        >>> task = ImageResNetTask(images, images, channels=(4, 8), blocks=1, norm="group")
        >>> tuple(task.logits(task.init(torch.Generator()), images.inputs).shape)
        (60, 10)
    """

    def __init__(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        channels: Sequence[int],
        blocks: int = 1,
        norm: str = "batch",
        activation: str = "relu",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        depth, height, width = train.shape
        layout = Layout(scheme, init_scale)
        layout.conv("stem", depth, channels[0], bias=False)
        layout.norm("stem.norm", channels[0])
        self.stem_stride = 2 if min(height, width) >= MIN_HALVED_SIDE else 1
        self.strides: list[int] = []
        channels_in = channels[0]
        for stage, out in enumerate(channels):
            for block in range(blocks):
                name = f"blocks.{len(self.strides)}"
                stride = 2 if stage > 0 and block == 0 else 1
                layout.conv(f"{name}.conv1", channels_in, out, bias=False)
                layout.norm(f"{name}.norm1", out)
                layout.conv(f"{name}.conv2", out, out, bias=False, active=False)
                layout.norm(f"{name}.norm2", out)
                if stride != 1 or channels_in != out:
                    layout.conv(f"{name}.shortcut", channels_in, out, 1, bias=False, active=False)
                self.strides.append(stride)
                channels_in = out
        layout.linear("head", channels_in, train.classes, role="head")
        super().__init__(train, valid, layout, **options)
        self.norm = norm
        self.activation = ACTIVATIONS[activation]

    def logits(self, params: Params, inputs: Tensor) -> Tensor:
        x = F.conv2d(inputs, params["stem.weight"], None, self.stem_stride, padding=1)
        x = self.activation(self._normalise(params, "stem.norm", x))
        for block, stride in enumerate(self.strides):
            name = f"blocks.{block}"
            branch = F.conv2d(x, params[f"{name}.conv1.weight"], None, stride, padding=1)
            branch = self.activation(self._normalise(params, f"{name}.norm1", branch))
            branch = F.conv2d(branch, params[f"{name}.conv2.weight"], None, padding=1)
            branch = self._normalise(params, f"{name}.norm2", branch)
            if f"{name}.shortcut.weight" in params:
                x = F.conv2d(x, params[f"{name}.shortcut.weight"], None, stride)
            x = self.activation(x + branch)
        return linear(params, "head", x.mean((2, 3)))

    def _normalise(self, params: Params, name: str, x: Tensor) -> Tensor:
        return batch_norm(params, name, x) if self.norm == "batch" else group_norm(params, name, x, _groups(x.shape[1]))


def _groups(channels: int) -> int:
    return math.gcd(channels, 4)


class ImageResNet(ImageFamily):
    """Residual networks of different depth, width and normalisation on (varied) images.

    Args:
        data: sources of images; see :class:`~lightning_lopt.tasks.image.ImageFamily`, also for ``options``.
        stages: numbers of stages to draw from.
        widths: channels of the first stage to draw from; each further stage has twice as many channels.
        blocks: blocks in a stage to draw from.
        norms: some of :data:`NORMS`.

    Raises:
        ValueError: if a list is empty, an entry is unknown, or data cannot be loaded.

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10, "mine")
        >>> family = ImageResNet(images, stages=(2,), widths=(4,), variety=False)
        >>> family.sample(torch.Generator().manual_seed(0)).name
        'image_resnet/mine/group-w4-s2-b2/silu/b16'
    """

    name = "image_resnet"
    layers = ("convolutions",)
    task_class = ImageResNetTask

    def __init__(
        self,
        data: DataLike | None = None,
        stages: Sequence[int] = (1, 2),
        widths: Sequence[int] = (4, 8),
        blocks: Sequence[int] = (1, 2),
        norms: Sequence[str] = NORMS,
        **options: Any,
    ) -> None:
        super().__init__(data, **{"max_size": 16, "batch_sizes": (8, 16), **options})
        self.ranges |= {
            "stages": check_size_options(stages, "stages"),
            "widths": check_size_options(widths, "widths"),
            "blocks": check_size_options(blocks, "blocks"),
            "norms": check_name_options(norms, "norms", NORMS),
        }

    def _draw(self, train: LabelledImages, generator: torch.Generator) -> tuple[dict[str, Any], str]:
        width, stages = self.pick("widths", generator), self.pick("stages", generator)
        blocks, norm = self.pick("blocks", generator), self.pick("norms", generator)
        channels = [width * 2**stage for stage in range(stages)]
        return {"channels": channels, "blocks": blocks, "norm": norm}, f"{norm}-w{width}-s{stages}-b{blocks}"
