"""Small vision transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.checks import check_name_options, check_size_options
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks._draw import chance
from lightning_lopt.tasks.attention import Transformer
from lightning_lopt.tasks.data import DataLike
from lightning_lopt.tasks.examples import ClassificationTask
from lightning_lopt.tasks.labelled_images import LabelledImages
from lightning_lopt.tasks.layers import linear
from lightning_lopt.tasks.layout import Layout
from lightning_lopt.tasks.patches import Patches, PatchFamily

POOLINGS = ("mean", "token")


class ImageViTTask(ClassificationTask):
    """A linear layer ``patch`` on patches, a learned ``position``, transformer blocks, and a linear ``head``.

    Args:
        train: images to train on.
        valid: held-out images.
        grid: patches along the longer side.
        width: features of a token W.
        depth: number of blocks.
        heads: attention heads; divides ``width``.
        pooling: input of the head: the ``"mean"`` of all tokens, or an extra first ``"token"`` named ``class.token``.
        prenorm, expansion: see :class:`~lightning_lopt.tasks.attention.Transformer`.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights, not on biases.
        options: ``batch_size``, ``name``, ``config``.

    Raises:
        ValueError: if ``heads`` does not divide ``width``.

    References: Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10)
        >>> task = ImageViTTask(images, images, grid=2, width=16, depth=1, pooling="token")
        >>> tuple(task.logits(task.init(torch.Generator()), images.inputs).shape)
        (60, 10)
    """

    def __init__(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        grid: int = 4,
        width: int = 32,
        depth: int = 2,
        heads: int = 2,
        pooling: str = "mean",
        prenorm: bool = True,
        activation: str = "gelu",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        expansion: int = 2,
        **options: Any,
    ) -> None:
        self.transformer = Transformer(width, depth, heads, activation, prenorm, expansion=expansion)
        self.patches = Patches(train.shape, grid)
        layout = Layout(scheme, init_scale)
        layout.linear("patch", self.patches.features, width)
        layout.table("position", self.patches.tokens, width)
        if pooling == "token":
            layout.vector("class.token", width)
        self.transformer.add_to(layout)
        layout.linear("head", width, train.classes, role="head")
        super().__init__(train, valid, layout, **options)
        self.pooling = pooling

    def logits(self, params: Params, inputs: Tensor) -> Tensor:
        x = linear(params, "patch", self.patches(inputs)) + params["position.weight"]
        if self.pooling == "token":
            x = torch.cat([params["class.token"].expand(len(x), 1, -1), x], 1)
        x = self.transformer(params, x)
        return linear(params, "head", x.mean(1) if self.pooling == "mean" else x[:, 0])


class ImageViT(PatchFamily):
    """Vision transformers of different size and pooling on (varied) images.

    Args:
        data: see :class:`~lightning_lopt.tasks.patches.PatchFamily`, also for ``grids``, ``widths`` and ``depths`` in
            ``options``.
        heads: numbers of attention heads to draw from; each must divide every width.
        poolings: some of :data:`POOLINGS`.

    Raises:
        ValueError: if a list is empty, an entry is unknown, or data cannot be loaded.

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10, "mine")
        >>> family = ImageViT(images, grids=(2,), widths=(16,), depths=(1,), variety=False)
        >>> family.sample(torch.Generator().manual_seed(0)).name
        'image_vit/mine/g2-w16-d1-h4-token-pre/silu/b32'
    """

    name = "image_vit"
    layers = ("attention",)
    task_class = ImageViTTask

    def __init__(
        self,
        data: DataLike | None = None,
        heads: Sequence[int] = (2, 4),
        poolings: Sequence[str] = POOLINGS,
        **options: Any,
    ) -> None:
        super().__init__(data, **options)
        self.ranges |= {
            "heads": check_size_options(heads, "heads"),
            "poolings": check_name_options(poolings, "poolings", POOLINGS),
        }

    def _draw(self, train: LabelledImages, generator: torch.Generator) -> tuple[dict[str, Any], str]:
        settings, shape = super()._draw(train, generator)
        heads, pooling = self.pick("heads", generator), self.pick("poolings", generator)
        prenorm = chance(0.75, generator)
        shape += f"-h{heads}-{pooling}-{'pre' if prenorm else 'post'}"
        return settings | {"heads": heads, "pooling": pooling, "prenorm": prenorm}, shape
