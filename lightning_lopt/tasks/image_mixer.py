"""MLP-Mixers: perceptrons across patches and across features, in turn."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.examples import ClassificationTask
from lightning_lopt.tasks.labelled_images import LabelledImages
from lightning_lopt.tasks.layers import ACTIVATIONS, layer_norm, linear, mlp
from lightning_lopt.tasks.layout import Layout
from lightning_lopt.tasks.patches import Patches, PatchFamily


class ImageMixerTask(ClassificationTask):
    r"""A linear layer ``patch`` on patches, mixing blocks, the mean of all tokens, and a linear ``head``.

    .. math:: x \leftarrow x + f(\text{norm}(x)^\top)^\top, \qquad x \leftarrow x + g(\text{norm}(x))

    with perceptrons of one hidden layer, f over the T patches (``tokens``) and g over the W features (``features``).

    Args:
        train: images to train on.
        valid: held-out images.
        grid: patches along the longer side.
        width: features of a token W.
        depth: number of blocks.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights, not on biases.
        options: ``batch_size``, ``name``, ``config``.

    References: Tolstikhin et al. 2021, https://arxiv.org/abs/2105.01601

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10)
        >>> task = ImageMixerTask(images, images, grid=2, width=16, depth=1)
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
        activation: str = "gelu",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        self.patches = Patches(train.shape, grid)
        tokens = self.patches.tokens
        layout = Layout(scheme, init_scale)
        layout.linear("patch", self.patches.features, width)
        for layer in range(depth):
            name = f"blocks.{layer}"
            layout.norm(f"{name}.norm1", width)
            layout.mlp((tokens, 2 * tokens, tokens), f"{name}.tokens", last="matrix")
            layout.norm(f"{name}.norm2", width)
            layout.mlp((width, 2 * width, width), f"{name}.features", last="matrix")
        layout.norm("norm", width)
        layout.linear("head", width, train.classes, role="head")
        super().__init__(train, valid, layout, **options)
        self.depth = depth
        self.activation = ACTIVATIONS[activation]

    def logits(self, params: Params, inputs: Tensor) -> Tensor:
        x = linear(params, "patch", self.patches(inputs))
        for layer in range(self.depth):
            name = f"blocks.{layer}"
            transposed = layer_norm(params, f"{name}.norm1", x).mT
            x = x + mlp(params, f"{name}.tokens", transposed, 2, self.activation).mT
            x = x + mlp(params, f"{name}.features", layer_norm(params, f"{name}.norm2", x), 2, self.activation)
        return linear(params, "head", layer_norm(params, "norm", x).mean(1))


class ImageMixer(PatchFamily):
    """MLP-Mixers of different size on (varied) images, with the arguments of
    :class:`~lightning_lopt.tasks.patches.PatchFamily`.

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10, "mine")
        >>> family = ImageMixer(images, grids=(2,), widths=(16,), depths=(1,), variety=False)
        >>> family.sample(torch.Generator().manual_seed(0)).name
        'image_mixer/mine/g2-w16-d1/silu/b32'
    """

    name = "image_mixer"
    task_class = ImageMixerTask
