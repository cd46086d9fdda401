"""Denoising of images by a U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.base import Batch
from lightning_lopt.tasks.examples import RandomExamplesTask
from lightning_lopt.tasks.labelled_images import LabelledImages
from lightning_lopt.tasks.layers import ACTIVATIONS, group_norm
from lightning_lopt.tasks.layout import Layout

GROUPS = 4


class ImageUNetTask(RandomExamplesTask):
    r"""Mean squared error of a U-Net that removes noise from images.

    .. math:: L = \frac1D \lVert x - f(x + s\,\varepsilon) \rVert^2, \qquad \varepsilon \sim \mathcal N(0, 1)

    Level l of the encoder halves the image of level l - 1 by averages and has two 3×3 convolutions ``down.l.0`` and
    ``down.l.1``, each with group normalisation and an activation. Level l of the decoder doubles the image of level
    l + 1, concatenates the image of level l of the encoder, and has two convolutions ``up.l.0`` and ``up.l.1`` of the
    same kind. A 1×1 convolution ``head`` computes the pixels.

    A batch is ``{"inputs": (*lead, B, C, H, W), "noise": (*lead, B, C, H, W)}``. In :meth:`full_batch` the noise is the
    same at every call. An uninformed model predicts the mean pixel: its loss is the variance of all training
    pixels.

    Args:
        train: images to train on; labels are not used.
        valid: held-out images.
        channels: channels of each level, multiples of 4.
        corruption: standard deviation s of the noise, >= 0, in the unit of the pixels.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights, not on biases.
        options: ``batch_size``, ``name``, ``config``.

    Raises:
        ValueError: if the sides of the images cannot be halved once for each level after the first, or a number of
            channels is not a multiple of 4.

    References: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597; Vincent et al. 2008 (denoising)

    Example:
        >>> from lightning_lopt.tasks.finetune.synthetic_images import draw_images
        >>> images = draw_images(torch.Generator().manual_seed(0), examples=60, size=8)
        >>> train, valid = images.take(torch.arange(40)), images.take(torch.arange(40, 60))
        >>> task = ImageUNetTask(train, valid, channels=(4, 8), batch_size=2)
        >>> params = task.init(torch.Generator().manual_seed(0))
        >>> tuple(task.denoised(params, valid.inputs).shape)
        (20, 1, 8, 8)
    """

    def __init__(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        channels: Sequence[int] = (16, 32, 64),
        corruption: float = 1.0,
        activation: str = "silu",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        depth, height, width = train.shape
        factor = 2 ** (len(channels) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"{train.name}: {len(channels)} levels need sides divisible by {factor}, got {height} x {width}; "
                "resize the images, or give fewer channels."
            )
        if any(count % GROUPS for count in channels):
            raise ValueError(f"channels must be multiples of {GROUPS}, got {list(channels)}.")
        layout = Layout(scheme, init_scale)
        channels_in = depth
        for level, count in enumerate(channels):
            _add_two_convolutions(layout, f"down.{level}", channels_in, count)
            channels_in = count
        for level in reversed(range(len(channels) - 1)):
            _add_two_convolutions(layout, f"up.{level}", channels_in + channels[level], channels[level])
            channels_in = channels[level]
        layout.conv("head", channels_in, depth, 1, active=False, role="head")
        scale = float(train.inputs.var(correction=0)) or 1.0
        super().__init__(
            {"train": {"inputs": train.inputs}, "valid": {"inputs": valid.inputs}}, layout, scale, **options
        )
        self.shape = train.shape
        self.levels = len(channels)
        self.corruption = corruption
        self.activation = ACTIVATIONS[activation]

    def random_entries(self, examples: torch.Size, generator: torch.Generator) -> Batch:
        return {"noise": torch.randn(*examples, *self.shape, generator=generator)}

    def denoised(self, params: Params, images: Tensor) -> Tensor:
        """Output of the network for images of shape ``(B, C, H, W)``, of the same shape."""
        x, skips = images, []
        for level in range(self.levels):
            x = self._two_convolutions(params, f"down.{level}", F.avg_pool2d(x, 2) if level else x)
            skips.append(x)
        for level in reversed(range(self.levels - 1)):
            x = torch.cat([_doubled(x), skips[level]], 1)
            x = self._two_convolutions(params, f"up.{level}", x)
        return F.conv2d(x, params["head.weight"], params["head.bias"])

    def loss(self, params: Params, batch: Batch) -> Tensor:
        images = batch["inputs"]
        return F.mse_loss(self.denoised(params, images + self.corruption * batch["noise"]), images)

    def _two_convolutions(self, params: Params, name: str, x: Tensor) -> Tensor:
        for part in (f"{name}.0", f"{name}.1"):
            x = F.conv2d(x, params[f"{part}.weight"], None, padding=1)
            x = self.activation(group_norm(params, f"{part}.norm", x, GROUPS))
        return x


def _add_two_convolutions(layout: Layout, name: str, fan_in: int, out: int) -> None:
    for part, inputs in ((f"{name}.0", fan_in), (f"{name}.1", out)):
        layout.conv(part, inputs, out, bias=False)
        layout.norm(f"{part}.norm", out)


def _doubled(x: Tensor) -> Tensor:
    """Images in which every pixel becomes 2×2 pixels: ``(B, C, H, W)`` to ``(B, C, 2 H, 2 W)``."""
    batch, channels, height, width = x.shape
    squares = x[:, :, :, None, :, None].expand(batch, channels, height, 2, width, 2)
    return squares.reshape(batch, channels, 2 * height, 2 * width)
