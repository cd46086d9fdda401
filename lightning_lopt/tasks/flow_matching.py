"""Generation of images by flow matching, with a loss that is mostly noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.base import Batch
from lightning_lopt.tasks.examples import RandomExamplesTask
from lightning_lopt.tasks.labelled_images import LabelledImages
from lightning_lopt.tasks.layers import ACTIVATIONS, mlp
from lightning_lopt.tasks.layout import Layout

FREQUENCIES = 8


class FlowMatchingTask(RandomExamplesTask):
    r"""Mean squared error of the velocity along straight lines between images and noise.

    .. math:: L = \frac1D \lVert v(x_t, t) - (\varepsilon - x) \rVert^2, \qquad x_t = (1 - t)\,x + t\,\varepsilon,
        \quad \varepsilon \sim \mathcal N(0, 1), \; t \sim U(0, 1)

    The network is a perceptron ``layers.0`` and so on with layer normalisation. Its inputs are the pixels of
    :math:`x_t` and sines and cosines of t. The smallest possible loss is far above 0, since the velocity is random.

    A batch is ``{"inputs": (*lead, B, D), "noise": (*lead, B, D), "time": (*lead, B, 1)}``: images as rows. In
    :meth:`full_batch` noise and times are the same at every call. An uninformed model predicts the mean velocity:
    its loss is 1 plus the variance of all training pixels.

    Args:
        train: images to train on; labels are not used.
        valid: held-out images.
        widths: width of each hidden layer.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights, not on biases.
        options: ``batch_size``, ``name``, ``config``.

    References: Lipman et al. 2022, https://arxiv.org/abs/2210.02747; Liu et al. 2022, https://arxiv.org/abs/2209.03003

    Example:
        >>> from lightning_lopt.tasks.finetune.synthetic_images import draw_images
        >>> images = draw_images(torch.Generator().manual_seed(0), examples=60, size=8)
        >>> task = FlowMatchingTask(images, images, widths=(16,))
        >>> params = task.init(torch.Generator().manual_seed(0))
        >>> tuple(task.velocity(params, torch.zeros(5, 64), torch.zeros(5, 1)).shape)
        (5, 64)
    """

    def __init__(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        widths: Sequence[int] = (256, 256, 256),
        activation: str = "silu",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        layout = Layout(scheme, init_scale)
        layout.mlp((train.features + 2 * FREQUENCIES, *widths, train.features), norm=True)
        scale = 1.0 + float(train.inputs.var(correction=0))
        super().__init__({"train": {"inputs": train.flat}, "valid": {"inputs": valid.flat}}, layout, scale, **options)
        self.features = train.features
        self.layers = len(widths) + 1
        self.activation = ACTIVATIONS[activation]

    def random_entries(self, examples: torch.Size, generator: torch.Generator) -> Batch:
        noise = torch.randn(*examples, self.features, generator=generator)
        return {"noise": noise, "time": torch.rand(*examples, 1, generator=generator)}

    def velocity(self, params: Params, x: Tensor, time: Tensor) -> Tensor:
        """Output of the network, shape ``(B, D)``, for pixels ``(B, D)`` at times ``(B, 1)``."""
        angles = time * (math.pi * 2.0 ** torch.arange(FREQUENCIES, device=time.device) / 2)
        network_inputs = torch.cat([x, angles.sin(), angles.cos()], -1)
        return mlp(params, "layers", network_inputs, self.layers, self.activation)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        images, noise, time = batch["inputs"], batch["noise"], batch["time"]
        x = (1 - time) * images + time * noise
        return F.mse_loss(self.velocity(params, x, time), noise - images)
